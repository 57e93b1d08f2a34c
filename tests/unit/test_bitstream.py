"""The .psic container: exact round trips, and an error with a reason for everything else."""

import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psic_core import bitstream
from psic_core.bitstream import BitstreamError, Stream, describe, pack, unpack

STREAM = Stream(
    architecture="bmshj2018-hyperprior",
    quality=3,
    portable=True,
    fingerprint=b"\x01\x23\x45\x67\x89\xab\xcd\xef",
    height=120,
    width=161,
    strings=(bytes(range(70)), b"\xff\x00hyper"),
    checksum=0xDEADBEEF,
    slots=(bytes(range(49)), b"s" * 49),
    chunks=((b"note", b"hello"),),
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
    portable=st.booleans(),
    fingerprint=st.binary(min_size=8, max_size=8),
    height=st.integers(1, bitstream.MAX_SIDE),
    width=st.integers(1, bitstream.MAX_PIXELS // bitstream.MAX_SIDE),
    strings=st.lists(st.binary(max_size=60), min_size=1, max_size=32).map(tuple),
    checksum=st.integers(0, 2**32 - 1),
    slots=st.lists(st.binary(min_size=49, max_size=49), max_size=16).map(tuple),
    chunks=st.lists(st.tuples(st.just(b"note"), st.binary(max_size=30)), max_size=3).map(tuple),
)


@settings(deadline=None, max_examples=150)
@given(streams)
def test_unpack_inverts_pack(stream: Stream):
    data = pack(stream)
    assert unpack(data) == stream
    assert pack(unpack(data)) == data
    content = sum(map(len, (*stream.strings, *stream.slots, *(c for _, c in stream.chunks))))
    assert len(data) == 41 + 4 * len(stream.strings) + 12 * len(stream.slots + stream.chunks) + content


def test_layout_is_the_documented_one():
    assert DATA.hex().startswith("50534943020203010123456789abcdef78000000a1000000")
    assert struct.unpack_from("<IIIB", DATA, 24) == (zlib.crc32(b"".join(STREAM.strings)), 0xDEADBEEF, 2 * 61 + 17, 2)
    assert struct.unpack_from("<III", DATA, 37) == (70, 7, zlib.crc32(DATA[:45]))
    slot = STREAM.slots[0]
    assert DATA[HEADER:].startswith(struct.pack("<4sII", b"SLOT", 49, zlib.crc32(b"SLOT" + slot)) + slot)
    note = struct.pack("<4sII", b"note", 5, zlib.crc32(b"notehello")) + b"hello"
    assert DATA.endswith(note + b"".join(STREAM.strings))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # CompressAI calls torch.jit.script
def test_architectures_are_compressais_in_a_fixed_order():
    import compressai.models  # noqa: F401  (fills the registry)
    from compressai.registry import MODELS

    assert len(bitstream.ARCHITECTURES) == 13
    assert set(bitstream.ARCHITECTURES) <= set(MODELS)
    assert pack(STREAM._replace(architecture="mbt2018-vbr"))[5] == 12
    assert pack(STREAM._replace(architecture="custom"))[5] == 255


def test_binding_is_of_the_picture_and_not_of_its_keywords():
    assert bitstream.binding(STREAM) == bitstream.binding(STREAM._replace(slots=(), chunks=()))
    for change in ({"quality": 4}, {"portable": False}, {"width": 160}, {"checksum": 1}, {"strings": (b"", b"")}):
        assert bitstream.binding(STREAM._replace(**change)) != bitstream.binding(STREAM)


def test_pictures_beyond_the_limit_are_refused_unless_the_caller_allows_them():
    data = pack(STREAM._replace(height=5000, width=10001))
    with pytest.raises(BitstreamError, match=r"5000 x 10001 pixels are more than 50 megapixels; raise the limit"):
        unpack(data)
    assert unpack(data, 10**8).width == 10001
    assert describe(data)["width"] == 10001
    assert unpack(pack(STREAM._replace(height=5000, width=10000))).width == 10000


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0x7F, 0xFF])
def test_every_flipped_byte_is_noticed(flip: int):
    for position in range(len(DATA)):
        damaged = bytearray(DATA)
        damaged[position] ^= flip
        with pytest.raises(BitstreamError) as error:
            unpack(bytes(damaged))
        assert len(str(error.value)) > 15


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
        (b"PSIC\x01" + DATA[5:], "format 1, .*encode the photo anew"),
        (b"PSIC\x03", "format 3, .*reads format 2: update psic_core"),
        (b"PSIC\x00" + DATA[5:], "format 0"),
        (DATA[:37], "ends after 37 bytes, inside its header of 49"),
        (DATA[:-1], f"ends after {len(DATA) - 1} of {len(DATA)} bytes"),
        (DATA + b"\0", f"1 bytes too many after its {len(DATA)}"),
        (DATA[:20] + b"\7" + DATA[21:], "header is damaged"),
        (DATA[: HEADER + 45] + b"\7" + DATA[HEADER + 46 :], "a keyword slot is damaged"),
        (DATA[: HEADER + 4] + b"\xff" + DATA[HEADER + 5 :], "chunks .* cut off"),
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
        (7, b"\x03", "flags are 0x3"),
        (32, b"\xff", "file ends"),
        (32, struct.pack("<I", 2**16 + 1), "bytes of chunks is 65537"),
        (32, bytes(4), "bytes too many"),
        (16, bytes(4), "height is 0"),
        (20, struct.pack("<I", 65536), "120 x 65536 pixels: a side has at most 65535"),
        (16, struct.pack("<II", 65535, 65535), "65535 x 65535 pixels are more than 50 megapixels"),
        (36, b"\x00", "number of strings is 0"),
        (36, b"\x21", "number of strings is 33"),
        (37, struct.pack("<I", 2**32 - 1), f"file ends after {len(DATA)} of {2**32 - 1 + len(DATA) - 70} bytes"),
    ],
)
def test_forged_fields_under_a_right_checksum(offset: int, value: bytes, says: str):
    with pytest.raises(BitstreamError, match=says):
        unpack(patched(offset, value))


def test_what_an_older_decoder_may_ignore_and_what_not():
    def with_chunk(kind: bytes) -> bytes:
        chunk = struct.pack("<4sII", kind, 2, zlib.crc32(kind + b"hi")) + b"hi"
        header = DATA[:32] + struct.pack("<I", len(chunk)) + DATA[36 : HEADER - 4]
        return resealed(header, chunk + b"".join(STREAM.strings))

    assert unpack(with_chunk(b"later"[:4])).chunks == ((b"late", b"hi"),)
    for kind in (b"Late", b"l\0te"):
        with pytest.raises(BitstreamError, match="chunk .* is none that this code knows: update psic_core"):
            unpack(with_chunk(kind))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("architecture", "jpeg", "'jpeg' is not among bmshj2018-factorized, .*custom"),
        ("quality", 256, "quality is 256"),
        ("fingerprint", b"short", "fingerprint has 5 bytes"),
        ("height", 0, "height is 0"),
        ("height", 65536, "height is 65536"),
        ("width", 2**22, "width is 4194304"),
        ("strings", (), "number of strings is 0"),
        ("checksum", 2**32, "checksum is 4294967296"),
        ("slots", (STREAM.slots[0],) * 17, "number of keyword slots is 17"),
        ("slots", (STREAM.slots[0], bytes(40)), "keyword slot 1 has 40 bytes"),
        ("chunks", ((b"note", bytes(4097)),), "has 4097 bytes"),
        ("chunks", ((b"NOTE", b""),), "none that this code knows"),
    ],
)
def test_pack_is_as_strict_as_unpack(field: str, value: Any, says: str):
    with pytest.raises(BitstreamError, match=says):
        pack(STREAM._replace(**{field: value}))


def test_describe_adds_up_and_is_json():
    summary = json.loads(json.dumps(describe(DATA)))
    assert summary == {
        "version": 2,
        "architecture": "bmshj2018-hyperprior",
        "quality": 3,
        "portable": True,
        "fingerprint": "0123456789abcdef",
        "height": 120,
        "width": 161,
        "bytes": {"total": 265, "header": 49, "chunks": 139, "payload": 77},
        "bpp": pytest.approx(8 * 265 / (120 * 161)),
        "keywords": 2,
        "shield": "trained",
    }
    with pytest.raises(BitstreamError, match="file ends"):
        describe(DATA[:-3])
