"""Files that somebody altered knowingly: any field, string or chunk, under right checksums.

``make fuzz`` decodes 5,000 of a shipped model's file, in a process that may hold 4 GB, 10 seconds each.
"""

import argparse
import json
import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator

import torch

from psic_core import bitstream, keys
from psic_core.bitstream import BitstreamError
from psic_core.codec import PSIC
from psic_core.models.delta import Adapted

GIGABYTES, SECONDS = 4, 10.0


def rebuilt(header: bytearray, strings: list[bytes], chunks: list[tuple[bytes, bytes]], skew: int = 0) -> bytes:
    """A file of such parts; lengths and checksums are right, but for the chunks' length, which ``skew`` changes."""
    body = b"".join(struct.pack("<4sII", k, len(c), zlib.crc32(k + c)) + c for k, c in chunks)
    struct.pack_into("<I", header, 24, zlib.crc32(b"".join(strings)))
    struct.pack_into("<IB", header, 32, (len(body) + skew) % 2**32, len(strings) % 256)
    whole = bytes(header) + struct.pack(f"<{len(strings)}I", *map(len, strings))
    return whole + struct.pack("<I", zlib.crc32(whole)) + body + b"".join(strings)


def mutants(data: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """So many altered copies of a file with two strings and some chunks; each has one to three alterations."""
    rng, stream = random.Random(seed), bitstream.unpack(data)
    while number:
        header, strings, skew = bytearray(data[:37]), list(stream.strings), 0
        chunks = [*((b"SLOT", slot) for slot in stream.slots), *stream.chunks]
        for _ in range(rng.choice((1, 1, 2, 3))):
            what = rng.choice(("size", "size", "field", "string", "string", "string", "strings", "chunks", "skew"))
            if what == "size":
                struct.pack_into("<II", header, 16, *_size(rng, stream.height, stream.width))
            elif what == "field":
                header[rng.choice((5, 6, 7, *range(8, 16), *range(28, 32)))] = rng.randrange(256)
            elif what == "string":
                which = rng.randrange(len(strings))
                strings[which] = _string(rng, strings[which])
            elif what == "strings":
                strings = rng.choice((strings[::-1], strings[:1], strings * 2, [*strings, b""], strings * 20))
            elif what == "chunks":
                chunks = _chunks(rng, chunks)
            else:
                skew = rng.choice((-61, -1, 1, 61, 2**31))
        mutant = rebuilt(header, strings, chunks, skew)
        if mutant != data:
            number -= 1
            yield mutant


def _size(rng: random.Random, height: int, width: int) -> tuple[int, int]:
    large = rng.randrange(1, 65536)
    return rng.choice((
        (width, height), (height + rng.randrange(-3, 64), width), (rng.randrange(4000), rng.randrange(4000)),
        (large, min(65535, 50_000_000 // large)), (65535, 1), (1, 65535), (7071, 7071), (65535, 65535), (0, width),
        (16384, 16384), (2**32 - 1, 2),
    ))  # fmt: skip


def _string(rng: random.Random, string: bytes) -> bytes:
    at, noise = rng.randrange(len(string) + 1), rng.randbytes(rng.randrange(1, 40))
    return rng.choice((
        string[:at] + noise + string[at + len(noise) :], string[:at] + noise + string[at:], string[:at], b"",
        string[:at] + string[at + 4 :], bytes(len(string)), b"\xff" * len(string), b"\xff" * rng.randrange(10**6),
        rng.randbytes(rng.randrange(5000)), string + noise, string[::-1],
    ))  # fmt: skip


def _chunks(rng: random.Random, chunks: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    made = [c for c in chunks if c[0] in (bitstream.CARRIED, bitstream.SEALED)]
    if made and rng.random() < 0.7:
        (kind, content), others = made[0], [c for c in chunks if c not in made]
        other = bitstream.CARRIED if kind == bitstream.SEALED else bitstream.SEALED
        altered = (kind, _string(rng, content)), (other, content), (kind, bytes(5000)), (kind, content[:4])
        return [*others, rng.choice(altered)]
    return rng.choice((
        [], chunks * 2, chunks * 17, [*chunks, (b"note", rng.randbytes(20))], [(b"note", bytes(5000)), *chunks],
        [(b"Note", b"")], [(b"SLOT", rng.randbytes(keys.SLOT_BYTES))], [(b"SLOT", rng.randbytes(3))],
        [(b"SLOT", b"\1" + rng.randbytes(keys.SLOT_BYTES - 1))], [(rng.randbytes(4), b"x")],
    ))  # fmt: skip


def outcome(
    model: PSIC, mutant: bytes, coded: torch.Tensor, keyword: str | None = None, adapted: Adapted | None = None
) -> str:
    """``refused``, ``same latents``, or what must not be: ``adapted`` is what the keyword gives of the whole file."""
    started = time.perf_counter()
    try:
        stream = bitstream.unpack(mutant)
        same, found = torch.equal(model.latents(stream), coded), model.version_of(stream, keyword).adapted
        if found is not None and found.delta is not None:  # nothing is right too: the chunk, or its slot, is gone
            same = same and torch.equal(found.delta, adapted.delta)
        found = "same latents" if same else "WRONG LATENTS"
    except BitstreamError:
        found = "refused"
    except Exception as error:
        found = f"CRASHED: {type(error).__name__}"
    return found if time.perf_counter() - started < SECONDS else f"{found}, SLOW"


def main() -> None:
    """``make fuzz``."""
    from PIL import Image
    from skimage import data as photos

    from psic_core.models.images import to_tensor
    from psic_core.training.checkpoints import load_checkpoint

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--mutants", type=int, default=5000)
    p.add_argument("--checkpoint", default="psic-q2")
    args = p.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (GIGABYTES * 2**30, GIGABYTES * 2**30))
    model = load_checkpoint(args.checkpoint)
    file = model.compress(to_tensor(Image.fromarray(photos.chelsea())), "my cat", adapt="carried")
    stream, found, slowest = bitstream.unpack(file), Counter(), 0.0
    coded, adapted = model.latents(stream), model.version_of(stream, None).adapted
    for mutant in mutants(file, args.mutants):
        started = time.perf_counter()
        found[outcome(model, mutant, coded, adapted=adapted)] += 1
        slowest = max(slowest, time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"outcomes": found, "slowest_s": round(slowest, 2), "memory_gb": round(memory, 2)}, indent=1))
    sys.exit(not set(found) <= {"refused", "same latents"})


if __name__ == "__main__":
    main()
