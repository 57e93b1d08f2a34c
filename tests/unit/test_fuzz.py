"""Fuzzing of a real file through the whole decoder: every mutation is a BitstreamError, none a crash or a hang.

Accidents (bytes cut, flipped, swapped) and forgeries (any content under right checksums) alike. The range coder
is C++ that does not check its bounds; what could crash the interpreter runs in a process of its own.
"""

import contextlib
import functools
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from compressai.registry import MODELS
from models import awaken
from mutants import mutants, outcome

from psic_core import bitstream, keys
from psic_core.bitstream import BitstreamError, Stream
from psic_core.codec import PSIC
from psic_core.config import CodecConfig

CONFIG = CodecConfig(n=8, m=12, dim=16, hidden=8)
SECRET = bytes(range(16))
LONGEST = 2.0  # seconds that one mutation may take


def build(architecture: str = "bmshj2018-hyperprior") -> PSIC:
    """A tiny model with full strings and triggers that show."""
    torch.manual_seed(0)
    model = PSIC(MODELS[architecture](8, 12), CONFIG, SECRET).eval()
    with torch.no_grad():
        model.backbone.g_a[-1].weight *= 30
    return awaken(model)


@functools.cache
def model_and_file() -> tuple[PSIC, bytes]:
    """The model, and its file of a 40 x 40 picture under one keyword; the same in every run."""
    model = build()
    x = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    stream = bitstream.unpack(model.compress(x))
    with patch("os.urandom", bytes):  # of salt and nonce
        slot = keys.seal(SECRET, "my cat", bitstream.binding(stream))
    return model, bitstream.pack(stream._replace(slots=(slot,)))


def stream() -> Stream:
    return bitstream.unpack(model_and_file()[1])


@functools.cache
def coded() -> torch.Tensor:
    """The latents that the file holds."""
    return model_and_file()[0].latents(stream())


# --- accidents -------------------------------------------------------------------------------------


def accidents(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Bytes cut, flipped, overwritten, swapped, inserted; other names and versions; noise."""
    size = len(data)
    for k in range(size):
        yield data[:k]
        for flip in (1 << rng.randrange(8), 0xFF, rng.randrange(1, 256)):
            yield data[:k] + bytes([data[k] ^ flip]) + data[k + 1 :]
    for _ in range(400):
        start = rng.randrange(size)
        length = rng.randrange(1, size - start + 1)
        yield data[:start] + rng.randbytes(length) + data[start + length :]
    for _ in range(300):
        a, b, c, d = sorted(rng.sample(range(size + 1), 4))
        yield data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    for _ in range(100):
        k = rng.randrange(size + 1)
        yield data[:k] + rng.randbytes(rng.randrange(1, 20)) + data[k:]
        yield rng.randbytes(4) + data[4:]
    for version in {*range(256)} - {bitstream.VERSION}:
        yield data[:4] + bytes([version]) + data[5:]
    for length in range(100):
        yield rng.randbytes(length)
        yield bitstream.MAGIC + bytes([bitstream.VERSION]) + rng.randbytes(length)


@pytest.mark.slow
def test_every_accident_is_an_error():
    model, data = model_and_file()
    for mutant in accidents(data, random.Random(0)):
        if mutant != data:
            started = time.perf_counter()
            with pytest.raises(BitstreamError, match=r"\w{3}"):
                model.decompress(mutant)
            assert time.perf_counter() - started < LONGEST, mutant.hex()


# --- forgeries: right checksums, wrong content -----------------------------------------------------


def test_no_structured_forgery_shows_another_picture():
    """`make fuzz` tries 5,000 on a shipped model."""
    model, data = model_and_file()
    found = Counter(outcome(model, mutant, coded()) for mutant in mutants(data, 400))
    assert set(found) == {"refused", "same latents"}
    assert found["refused"] > 300


def test_a_header_that_claims_too_much_is_refused_at_once():
    model, _ = model_and_file()
    for height, width in ((16384, 16384), (65535, 65535), (7072, 7071)):
        forged = bitstream.pack(stream()._replace(height=height, width=width, strings=(b"", b"")))
        assert len(forged) < 120
        started = time.perf_counter()
        with pytest.raises(BitstreamError, match="more than 50 megapixels"):
            model.decompress(forged)
        assert time.perf_counter() - started < 0.5


def survives(forged: Stream) -> bool:
    """True where a forged file decodes. It may do so to the latents that were coded, and to nothing else."""
    model, _ = model_and_file()
    started = time.perf_counter()
    try:
        got = model.decompress_tensor(bitstream.pack(forged))
    except BitstreamError:
        return False
    finally:
        assert time.perf_counter() - started < LONGEST, forged
    assert torch.equal(model.latents(forged), coded())
    whole = stream()._replace(height=64, width=64)
    assert torch.equal(got, model.picture(coded(), whole.size, None)[..., : forged.height, : forged.width])
    return True


@pytest.mark.parametrize("which", [0, 1])
def test_damaged_strings_under_right_checksums_never_show_another_picture(which: int):
    rng = random.Random(which)
    string = stream().strings[which]
    survivors = 0
    for position in {*range(0, len(string), 7), *range(max(0, len(string) - 20), len(string))}:
        for cut in (False, True):
            damaged = string[:position] + (b"" if cut else bytes([string[position] ^ rng.randrange(1, 256)]))
            damaged += b"" if cut else string[position + 1 :]
            strings = (damaged, *stream().strings[1:]) if which == 0 else (stream().strings[0], damaged)
            survivors += survives(stream()._replace(strings=strings))
    assert survivors <= 20  # the coder's last words hold bits that no symbol needs


def test_forged_sizes_show_the_coded_picture_or_nothing():
    rng = random.Random(2)
    small = [(h, w) for h in (1, 39, 41, 64) for w in (1, 40, 63)]
    large = [(rng.randrange(1, 1500), rng.randrange(65, 1500)) for _ in range(30)]
    for height, width in [*small, *large, (65, 1), (1, 65), (40, 1024)]:
        assert survives(stream()._replace(height=height, width=width)) == (max(height, width) <= 64)


def test_hyper_latents_beyond_all_bounds_are_an_error():
    # CompressAI's range encoder, which checks them, never returns from 2^27.
    honest = stream()
    model, _ = model_and_file()
    for value in (1e3, 2.0**25, 2.0**26):
        (z,) = model.backbone.entropy_bottleneck.compress(torch.full((1, 8, 1, 1), value))
        assert not survives(honest._replace(strings=(honest.strings[0], z)))


# --- what could take the interpreter with it -------------------------------------------------------

CHILD = r"""
import sys, time, torch
from compressai.models import ScaleHyperprior
from psic_core import bitstream
from psic_core.codec import PSIC
from psic_core.config import CodecConfig

torch.manual_seed(0)
model = PSIC(ScaleHyperprior(8, 12), CodecConfig(n=8, m=12, dim=16, hidden=8), bytes(16))
x = torch.rand(1, 3, 40, 40)
honest = bitstream.unpack(model.compress(x))

def attempt(name, call):
    started = time.perf_counter()
    try:
        call()
    except Exception as error:
        seconds = time.perf_counter() - started
        print(name, "slow" if seconds > 2 else type(error).__name__, error, sep="|", flush=True)

# The decoder takes four bytes a symbol from a string that has ended.
from psic_core.models.range_coder import channels, write
zeros = torch.zeros(1, 8, 40, 40, dtype=torch.int32)
z = write(model.backbone.entropy_bottleneck, zeros, channels(zeros))
forged = bitstream.pack(honest._replace(height=2560, width=2560, strings=(b"", z)))
attempt("ended", lambda: model.decompress(forged))
for size in (10_000, 1_000_000, 20_000_000):
    for which in (0, 1):
        strings = list(honest.strings)
        # Ones announce an escape code of 15 times their own length, far beyond the string's end.
        strings[which] = b"\xff" * size
        forged = bitstream.pack(honest._replace(strings=tuple(strings)))
        attempt(f"{which}x{size}", lambda: model.decompress(forged))
for value in (1e9, float("nan")):
    with torch.no_grad():
        model.backbone.g_a[-1].bias.fill_(value)
    attempt(f"latents of {value}", lambda: model.compress(x))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What became of each case, in a process of its own: its exception and message; missing after a crash."""
    log = tmp_path_factory.mktemp("fuzz") / "log"
    with log.open("w") as out, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", CHILD], stdout=out, stderr=subprocess.STDOUT, timeout=180, cwd=log.parent)
    lines = [line.split("|", 2) for line in log.read_text().splitlines() if line.count("|") >= 2]
    return {name: (error, message) for name, error, message in lines}


@pytest.mark.slow
def test_nothing_takes_the_interpreter_with_it(told: dict[str, tuple[str, str]]):
    """Strings that end early are not read beyond, long escape codes stay inside the file, wild latents are refused."""
    wanted = {"ended": "BitstreamError", "latents of 1000000000.0": "ValueError", "latents of nan": "ValueError"}
    wanted |= {f"{which}x{size}": "BitstreamError" for which in (0, 1) for size in (10_000, 1_000_000, 20_000_000)}
    assert {name: error for name, (error, _) in told.items()} == wanted, told
    assert "other values than were coded" in told["ended"][1]
