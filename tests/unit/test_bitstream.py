"""The .psic container: exact round trips, and an error with a reason for everything else."""

import binascii
import json
import random
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psic_core import bitstream, keys
from psic_core.bitstream import BitstreamError, Stream, describe, pack, unpack


def slot(body: bytes) -> bytes:
    """An intact slot without the cost of scrypt."""
    return body + binascii.crc_hqx(body, 0).to_bytes(2, "little")


STREAM = Stream(
    architecture="bmshj2018-hyperprior",
    quality=3,
    fingerprint=b"\x01\x23\x45\x67\x89\xab\xcd\xef",
    height=120,
    width=161,
    shape=(2, 3),
    strings=(bytes(range(70)), b"\xff\x00hyper"),
    latent_checksum=0xDEADBEEF,
    slots=(slot(bytes(range(38))), slot(b"s" * 38)),
)
DATA = pack(STREAM)
HEADER = bitstream.header_bytes(2)


def resealed(header: bytes, rest: bytes) -> bytes:
    """A forged file: any header without its checksum, under a right checksum."""
    return header + struct.pack("<I", zlib.crc32(header)) + rest


def patched(offset: int, value: bytes) -> bytes:
    header = DATA[:offset] + value + DATA[offset + len(value) : HEADER - 4]
    return resealed(header, DATA[HEADER:])


streams = st.builds(
    Stream,
    architecture=st.sampled_from([*bitstream.ARCHITECTURES, bitstream.CUSTOM]),
    quality=st.integers(0, 255),
    fingerprint=st.binary(min_size=8, max_size=8),
    height=st.integers(1, bitstream.MAX_SIDE),
    width=st.integers(1, bitstream.MAX_PIXELS // bitstream.MAX_SIDE),
    shape=st.tuples(st.integers(1, 256), st.integers(1, 256)),
    strings=st.lists(st.binary(max_size=60), min_size=1, max_size=32).map(tuple),
    latent_checksum=st.integers(0, 2**32 - 1),
    slots=st.lists(st.binary(min_size=38, max_size=38).map(slot), max_size=16).map(tuple),
    version=st.just(1),
)


@settings(deadline=None, max_examples=150)
@given(streams)
def test_unpack_inverts_pack(stream: Stream):
    data = pack(stream)
    assert unpack(data) == stream
    assert pack(unpack(data)) == data
    assert len(data) == (41 + 4 * len(stream.strings) + 40 * len(stream.slots) + sum(map(len, stream.strings)))


def test_layout_is_the_documented_one():
    assert DATA.hex().startswith("50534943010203020123456789abcdef78000000a100000002000300")
    assert struct.unpack_from("<IIB", DATA, 28) == (
        zlib.crc32(b"".join(STREAM.strings)),
        0xDEADBEEF,
        2,
    )
    assert struct.unpack_from("<III", DATA, 37) == (70, 7, zlib.crc32(DATA[:45]))
    assert DATA[HEADER:] == b"".join(STREAM.slots + STREAM.strings)


def test_header_is_small():
    assert len(pack(STREAM._replace(slots=()))) - 77 == HEADER == 49 <= 64
    assert len(pack(STREAM)) - len(pack(STREAM._replace(slots=STREAM.slots[:1]))) == 40


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # CompressAI calls torch.jit.script
def test_architectures_are_compressais_in_a_fixed_order():
    import compressai.models  # noqa: F401  (fills the registry)
    from compressai.registry import MODELS

    assert len(bitstream.ARCHITECTURES) == 13
    assert set(bitstream.ARCHITECTURES) <= set(MODELS)
    assert pack(STREAM._replace(architecture="mbt2018-vbr"))[5] == 12
    assert pack(STREAM._replace(architecture="custom"))[5] == 255


def test_another_keyword_changes_bytes_of_its_slot_only():
    secret = keys.secret("owner")
    one, two = (pack(STREAM._replace(slots=(keys.seal(secret, words),))) for words in ("my cat", "my dog"))
    assert one != two
    assert one[:HEADER] == two[:HEADER]
    assert one[HEADER + 40 :] == two[HEADER + 40 :]
    none = pack(STREAM._replace(slots=()))
    changed = {i for i in range(HEADER) if none[i] != one[i]}
    assert changed <= {7, *range(HEADER - 4, HEADER)}  # the slot count and the header's checksum


def test_largest_picture_is_accepted_and_a_larger_one_refused():
    stream = STREAM._replace(height=2**14, width=2**14)
    assert unpack(pack(stream)) == stream
    with pytest.raises(BitstreamError, match="16385 x 16384 pixels"):
        pack(stream._replace(height=2**14 + 1))


def test_truncation_at_every_length():
    for length in range(len(DATA)):
        with pytest.raises(BitstreamError, match=f"file ends after {length}|is empty"):
            unpack(DATA[:length])


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0x7F, 0xFF])
def test_every_flipped_byte_is_noticed(flip: int):
    for position in range(len(DATA)):
        damaged = bytearray(DATA)
        damaged[position] ^= flip
        with pytest.raises(BitstreamError) as error:
            unpack(bytes(damaged))
        assert len(str(error.value)) > 15


def mutation(rng: random.Random) -> bytes:
    at, noise = rng.randrange(len(DATA)), rng.randbytes(rng.randint(1, 60))
    mutations = [
        DATA[:at] + noise + DATA[at + len(noise) :],
        DATA[:at] + noise + DATA[at:],
        DATA[:at] + DATA[at + len(noise) :],
        bytes(rng.randrange(256) if rng.random() < 0.1 else byte for byte in DATA),
        rng.choice([b"", b"PSIC", b"PSIC\x01"]) + noise,
    ]
    return rng.choice(mutations)


def test_2000_random_mutations():
    rng = random.Random(0)
    mutations = [m for m in (mutation(rng) for _ in range(2000)) if m != DATA]
    assert len(mutations) > 1990
    for data in mutations:
        with pytest.raises(BitstreamError):
            unpack(data)


@settings(deadline=None, max_examples=150)
@given(st.binary(min_size=1, max_size=120), st.sampled_from([b"", b"PSIC\x01", DATA[:36], DATA]))
def test_arbitrary_bytes_and_arbitrary_tails_are_refused(tail: bytes, start: bytes):
    with pytest.raises(BitstreamError):
        unpack(start + tail)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), r"not a \.psic file: starts with b'\\x89PNG'"),
        (b"psic" + DATA[4:], "not a .psic file"),
        (b"PSIC\x02", "version 2, .*reads version 1: update psic_core"),
        (b"PSIC\x00" + DATA[5:], "version 0"),
        (DATA[:37], "ends after 37 bytes, inside its header of 49"),
        (DATA[:-1], f"ends after {len(DATA) - 1} of {len(DATA)} bytes"),
        (DATA + b"\0", f"1 bytes too many after its {len(DATA)}"),
        (DATA[:20] + b"\7" + DATA[21:], "header is damaged"),
        (DATA[: HEADER + 45] + b"\7" + DATA[HEADER + 46 :], "keyword slot 1 is damaged"),
        (DATA[:-1] + b"\0", "payload is damaged"),
    ],
)
def test_message_says_what_is_wrong(data: bytes, says: str):
    with pytest.raises(BitstreamError, match=says):
        unpack(data)


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (5, b"\x0d", "architecture 'number 13' is not among .*: update psic_core"),
        (7, b"\x11", "file ends"),
        (16, bytes(4), "height is 0"),
        (20, struct.pack("<I", 65536), "width is 65536"),
        (16, struct.pack("<II", 65535, 65535), "65535 x 65535 pixels are more than 268435456"),
        (24, struct.pack("<HH", 0, 3), "latent side is 0"),
        (24, struct.pack("<HH", 2, 65535), "latent side is 65535"),
        (36, b"\x00", "number of strings is 0"),
        (36, b"\x21", "number of strings is 33"),
        (37, struct.pack("<I", 2**32 - 1), "file ends after 206 of 4294967431 bytes"),
    ],
)
def test_forged_fields_under_a_right_checksum(offset: int, value: bytes, says: str):
    with pytest.raises(BitstreamError, match=says):
        unpack(patched(offset, value))


def test_too_many_slots_are_refused_even_if_they_are_there():
    header = DATA[:7] + b"\x11" + DATA[8 : HEADER - 4]
    rest = STREAM.slots[0] * 17 + b"".join(STREAM.strings)
    with pytest.raises(BitstreamError, match="number of keyword slots is 17"):
        unpack(resealed(header, rest))


def test_huge_claims_are_refused_without_allocating():
    header = DATA[:36] + b"\x20" + b"\xff\xff\xff\xff" * 32
    start = time.perf_counter()
    for _ in range(200):
        with pytest.raises(BitstreamError, match="of 137438953"):
            unpack(resealed(header, DATA[HEADER:]))
    assert time.perf_counter() - start < 2


def test_text_instead_of_bytes_is_a_type_error():
    with pytest.raises(TypeError):
        unpack("PSIC")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("architecture", "jpeg", "'jpeg' is not among bmshj2018-factorized, .*custom"),
        ("architecture", ["mbt2018"], "not among"),
        ("quality", 256, "quality is 256"),
        ("quality", 3.0, "quality is 3.0"),
        ("fingerprint", b"short", "fingerprint has 5 bytes"),
        ("fingerprint", "abcdefgh", "fingerprint is str"),
        ("height", 0, "height is 0"),
        ("height", 65536, "height is 65536"),
        ("width", 2**22, "width is 4194304"),
        ("shape", (2,), "not .height, width."),
        ("shape", (0, 3), "latent side is 0"),
        ("shape", (2, 257), "latent side is 257"),
        ("shape", None, "shape is NoneType"),
        ("strings", (), "number of strings is 0"),
        ("strings", (b"", "text"), "string 1 is str"),
        ("strings", b"bytes", "strings is bytes, not a tuple"),
        ("latent_checksum", 2**32, "latent checksum is 4294967296"),
        ("slots", (STREAM.slots[0],) * 17, "number of keyword slots is 17"),
        ("slots", (STREAM.slots[0], bytes(39) + b"\1"), "keyword slot 1 is damaged"),
        ("version", 2, "version is 2"),
    ],
)
def test_pack_is_as_strict_as_unpack(field: str, value: Any, says: str):
    with pytest.raises(BitstreamError, match=says):
        pack(STREAM._replace(**{field: value}))


def test_latent_checksum_is_the_crc_of_int32():
    y_hat = torch.tensor([[[[0.0, -1.0], [2.4999, -300.0001]]]])
    stored = zlib.crc32(np.array([0, -1, 2, -300], dtype="<i4").tobytes())
    assert bitstream.latent_checksum(y_hat) == stored
    assert bitstream.latent_checksum(-torch.zeros(3)) == bitstream.latent_checksum(torch.zeros(3))
    assert bitstream.latent_checksum(y_hat.double().requires_grad_()) == stored


def test_latent_checksum_notices_one_step_and_the_order():
    y_hat = torch.arange(24.0).reshape(1, 2, 3, 4)
    checksum = bitstream.latent_checksum(y_hat)
    moved = y_hat.clone()
    moved[0, 1, 2, 3] += 1
    assert bitstream.latent_checksum(moved) != checksum
    assert bitstream.latent_checksum(y_hat.transpose(2, 3)) != checksum
    strided = y_hat.contiguous(memory_format=torch.channels_last)
    assert bitstream.latent_checksum(strided) == checksum


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -(2.0**31), 2.0**31])
def test_latent_checksum_refuses_what_is_no_latent(value: float):
    with pytest.raises(ValueError, match="y_hat"):
        bitstream.latent_checksum(torch.tensor([0.0, value]))


def test_describe_adds_up_and_is_json():
    summary = json.loads(json.dumps(describe(DATA)))
    assert summary == {
        "version": 1,
        "architecture": "bmshj2018-hyperprior",
        "quality": 3,
        "fingerprint": "0123456789abcdef",
        "height": 120,
        "width": 161,
        "bytes": {"total": 206, "header": 49, "slots": 80, "payload": 77},
        "bpp": pytest.approx(8 * 206 / (120 * 161)),
        "keywords": 2,
    }
    with pytest.raises(BitstreamError, match="file ends"):
        describe(DATA[:-3])
