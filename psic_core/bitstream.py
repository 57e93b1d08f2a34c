"""The .psic container, format 2: one coded picture, whichever version a decoder will show.

Layout, little-endian (n strings)::

    offset  bytes  field
         0      4  magic b"PSIC"
         4      1  version, 2
         5      1  architecture: index in ARCHITECTURES, or 255 for "custom"
         6      1  quality
         7      1  flags: bit 0 is "portable", the others are zero
         8      8  fingerprint of the encoder's and entropy model's weights and tables
        16    4+4  height, width in pixels
        24      4  CRC-32 of the payload
        28      4  checksum of the coded symbols
        32      4  length of all chunks
        36      1  n, the number of strings
        37     4n  length of each string
     37+4n      4  CRC-32 of the header before it
     41+4n         chunks: type (4 letters), length of the content (4), CRC-32 of type and content (4), content
       ...         payload: the strings, end to end

A chunk ``SLOT`` is a keyword slot (`psic_core.keys`). ``CODE`` or ``SEAL``, of which a file has one at most, holds a
shield made for the photo (`psic_core.models.delta`), open or sealed. A chunk whose type begins with a small letter may
be ignored by who does not know it; one that begins with a capital may not.

What is coded never depends on a key. The checksums find accidents, not forgeries: nothing authenticates the sender.
"""

import struct
import zlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from psic_core import keys

MAGIC = b"PSIC"
VERSION = 2
MAX_SIDE = 65535
MAX_PIXELS = 50_000_000  # that a decoder allocates for, unless its caller allows more
MAX_STRINGS = 32
MAX_SLOTS = 16
MAX_CHUNK = 4096  # bytes of content
MAX_CHUNKS = 2**16  # bytes of all chunks

# CompressAI 1.2.8's image models; those of many rates (-vbr) are held at one. Files hold the index: only ever append.
ARCHITECTURES: tuple[str, ...] = (
    "bmshj2018-factorized", "bmshj2018-factorized-relu", "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018",
    "cheng2020-anchor", "cheng2020-attn", "cheng2020-anchor-checkerboard", "elic2022-official", "elic2022-chandelier",
    "bmshj2018-hyperprior-vbr", "mbt2018-mean-vbr", "mbt2018-vbr",
)  # fmt: skip
CUSTOM = "custom"
CUSTOM_ID = 255

_FIXED = struct.Struct("<4sBBBB8sIIIIIB")
_CHUNK = struct.Struct("<4sII")
CHUNK_BYTES = _CHUNK.size  # of a chunk besides its content
_SLOT = b"SLOT"
CARRIED, SEALED = b"CODE", b"SEAL"
_PORTABLE = 1
_U32_MAX = 2**32 - 1
_IDS = {name: index for index, name in enumerate(ARCHITECTURES)} | {CUSTOM: CUSTOM_ID}
_NAMES = {index: name for name, index in _IDS.items()}


class BitstreamError(ValueError):
    """The bytes are no valid .psic stream; the message says what is wrong."""


class Stream(NamedTuple):
    """What a .psic file holds.

    Attributes:
        architecture: one of `ARCHITECTURES`, or ``"custom"``.
        quality: the model's quality level, 0..255.
        portable: every machine decodes the file; if not, only those whose arithmetic equals the encoder's.
        fingerprint: 8 bytes that identify the weights and tables of encoder and entropy model.
        height: of the picture before padding, in pixels, 1..65535.
        width: likewise.
        strings: the entropy-coded strings, 1..32, in CompressAI's order.
        checksum: of the symbols that the decoder must arrive at, `psic_core.models.entropy.Coded`.
        slots: keyword slots, at most 16; `psic_core.keys.seal` makes them from `binding`.
        chunks: others, as (type, content): type of 4 letters, content of at most 4 KB.
    """

    architecture: str
    quality: int
    portable: bool
    fingerprint: bytes
    height: int
    width: int
    strings: tuple[bytes, ...]
    checksum: int
    slots: tuple[bytes, ...] = ()
    chunks: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return self.height, self.width

    @property
    def shield(self) -> tuple[bytes, bytes]:
        """The chunk of a shield made for the photo, ``CODE`` or ``SEAL``, and its content; else two empty strings."""
        return next((c for c in self.chunks if c[0] in (CARRIED, SEALED)), (b"", b""))


def header_bytes(strings: int) -> int:
    """Size in bytes of the header, chunks excluded, for that many strings (49 for two)."""
    return _FIXED.size + 4 * strings + 4


def pack(stream: Stream) -> bytes:
    """Write a stream; `unpack` of the result equals `stream`.

    Raises:
        BitstreamError: a field is out of range. The picture may have any size.
    """
    _check(stream)
    chunks = b"".join(_chunk(*c) for c in (*((_SLOT, slot) for slot in stream.slots), *stream.chunks))
    return b"".join([_header(stream, len(chunks)), chunks, *stream.strings])


def binding(stream: Stream) -> bytes:
    """What ties a keyword slot to its file: the header without its chunks, with the payload's CRC-32 in it."""
    return _header(stream, 0)


def unpack(data: bytes, max_pixels: int = MAX_PIXELS) -> Stream:
    """Read a stream, checking every byte of it; work and memory are linear in ``len(data)``.

    Args:
        data: a whole .psic file, no more and no less.
        max_pixels: of the picture; what decodes it allocates some hundred bytes for each.

    Raises:
        BitstreamError: anything is missing, damaged, out of range or left over.
        TypeError: `data` is not bytes.
    """
    if not isinstance(data, bytes):
        raise TypeError(f"a .psic stream is bytes, not {type(data).__name__}; read it in mode 'rb'")
    _check_start(data)
    lengths = _checked_lengths(data)
    _, _, architecture, quality, flags, fingerprint, height, width, crc, checksum, extra, _ = _FIXED.unpack_from(data)
    if flags & ~_PORTABLE:
        raise BitstreamError(f"flags are {flags:#x}, of which this code knows {_PORTABLE:#x}: update psic_core")
    if reason := too_large(height, width, max_pixels):
        raise BitstreamError(reason)
    _whole("bytes of chunks", extra, 0, MAX_CHUNKS)
    chunks, *strings = _split(data, header_bytes(len(lengths)), (extra, *lengths))
    slots, others = _chunks(chunks)
    name = _NAMES.get(architecture, f"number {architecture}")
    portable = bool(flags & _PORTABLE)
    stream = Stream(name, quality, portable, fingerprint, height, width, tuple(strings), checksum, slots, others)
    _check(stream)
    if zlib.crc32(b"".join(strings)) != crc:
        raise BitstreamError("payload is damaged: its CRC-32 is wrong; use another copy")
    return stream


def too_large(height: int, width: int, max_pixels: int) -> str:
    """Why a picture of this size is refused, or nothing."""
    if max(height, width) > MAX_SIDE:
        return f"{height} x {width} pixels: a side has at most {MAX_SIDE}; cut the picture up"
    if height * width > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        return f"{height} x {width} pixels are more than {limit}; raise the limit (max_pixels, --max-megapixels)"
    return ""


def describe(data: bytes) -> dict[str, Any]:
    """Summarise a .psic file in JSON types, as ``psic info --json`` prints it.

    Height and width are in pixels, ``bpp`` is bits of the whole file per pixel, ``keywords`` is the number of slots,
    ``shield`` is trained, carried or sealed. Raises as `unpack` does, but takes pictures of every size.
    """
    stream = unpack(data, MAX_SIDE**2)
    header, payload = header_bytes(len(stream.strings)), sum(map(len, stream.strings))
    return {
        "version": VERSION,
        "architecture": stream.architecture,
        "quality": stream.quality,
        "portable": stream.portable,
        "fingerprint": stream.fingerprint.hex(),
        "height": stream.height,
        "width": stream.width,
        "bytes": {"total": len(data), "header": header, "chunks": len(data) - header - payload, "payload": payload},
        "bpp": 8 * len(data) / (stream.height * stream.width),
        "keywords": len(stream.slots),
        "shield": {CARRIED: "carried", SEALED: "sealed"}.get(stream.shield[0], "trained"),
    }


def _header(stream: Stream, chunk_bytes: int) -> bytes:
    who = (_IDS[stream.architecture], stream.quality, _PORTABLE * stream.portable, stream.fingerprint)
    sums = (zlib.crc32(b"".join(stream.strings)), stream.checksum, chunk_bytes, len(stream.strings))
    header = _FIXED.pack(MAGIC, VERSION, *who, stream.height, stream.width, *sums)
    header += struct.pack(f"<{len(stream.strings)}I", *map(len, stream.strings))
    return header + struct.pack("<I", zlib.crc32(header))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return _CHUNK.pack(kind, len(content), zlib.crc32(kind + content)) + content


def _chunks(data: bytes) -> tuple[tuple[bytes, ...], tuple[tuple[bytes, bytes], ...]]:
    """Keyword slots, and other chunks."""
    slots, others, start = [], [], 0
    while start < len(data):
        head = data[start : start + _CHUNK.size].ljust(_CHUNK.size, b"\0")
        kind, length, crc = _CHUNK.unpack(head)
        start += _CHUNK.size
        content = data[start : start + length]
        start += length
        if start > len(data):
            raise BitstreamError("the chunks after the header are damaged: the last one is cut off")
        if zlib.crc32(kind + content) != crc:
            what = "a keyword slot" if kind == _SLOT else f"chunk {kind!r}"
            raise BitstreamError(f"{what} is damaged: its CRC-32 is wrong; use another copy")
        slots.append(content) if kind == _SLOT else others.append((kind, content))
    return tuple(slots), tuple(others)


def _check_start(data: bytes) -> None:
    """Check magic, version and length of the fixed part."""
    start, version = data[: len(MAGIC)], data[len(MAGIC) : len(MAGIC) + 1]
    if not data:
        raise BitstreamError("not a .psic file: it is empty")
    if not MAGIC.startswith(start):
        raise BitstreamError(f"not a .psic file: starts with {start!r} instead of {MAGIC!r}")
    # Before any length: another version may have another header.
    if version == b"\1":
        raise BitstreamError("file of format 1, which opened only where it was written: encode the photo anew")
    if version and version[0] != VERSION:
        raise BitstreamError(f"file of format {version[0]}, but this code reads format {VERSION}: update psic_core")
    if len(data) < _FIXED.size:
        raise BitstreamError(f"file ends after {len(data)} bytes, inside its header")


def _checked_lengths(data: bytes) -> tuple[int, ...]:
    """Return the lengths of the strings, from a header whose checksum is right."""
    count = data[_FIXED.size - 1]
    _whole("number of strings", count, 1, MAX_STRINGS)
    end = header_bytes(count)
    if len(data) < end:
        raise BitstreamError(f"file ends after {len(data)} bytes, inside its header of {end}")
    *lengths, crc = struct.unpack_from(f"<{count + 1}I", data, _FIXED.size)
    if zlib.crc32(data[: end - 4]) != crc:
        raise BitstreamError("header is damaged: its CRC-32 is wrong; use another copy")
    return tuple(lengths)


def _split(data: bytes, start: int, sizes: Sequence[int]) -> tuple[bytes, ...]:
    """Cut everything after `start` into parts, which must fill the data exactly."""
    total = start + sum(sizes)
    if len(data) < total:
        raise BitstreamError(f"file ends after {len(data)} of {total} bytes")
    if len(data) > total:
        raise BitstreamError(f"file has {len(data) - total} bytes too many after its {total}")
    ends = list(accumulate(sizes, initial=start))
    return tuple(data[i:j] for i, j in pairwise(ends))


def _check(stream: Stream) -> None:
    """Check every field's range: the one place for both directions."""
    if stream.architecture not in _IDS:
        raise BitstreamError(f"architecture {stream.architecture!r} is not among {', '.join(_IDS)}: update psic_core")
    _whole("quality", stream.quality, 0, 255)
    _whole("portable", stream.portable, 0, 1)
    _whole("checksum", stream.checksum, 0, _U32_MAX)
    _sized("fingerprint", stream.fingerprint, 8, 8)
    _whole("height", stream.height, 1, MAX_SIDE)
    _whole("width", stream.width, 1, MAX_SIDE)
    _whole("number of strings", len(stream.strings), 1, MAX_STRINGS)
    for index, string in enumerate(stream.strings):
        _sized(f"string {index}", string, 0, _U32_MAX)
    _whole("number of keyword slots", len(stream.slots), 0, MAX_SLOTS)
    for index, slot in enumerate(stream.slots):
        _sized(f"keyword slot {index}", slot, keys.SLOT_BYTES, keys.SLOT_BYTES)
    for kind, content in stream.chunks:
        _sized("chunk type", kind, 4, 4)
        if kind not in (CARRIED, SEALED) and (not kind.isalpha() or kind[:1].isupper()):
            raise BitstreamError(f"chunk {kind!r} is none that this code knows: update psic_core")
        _sized(f"chunk {kind!r}", content, 0, MAX_CHUNK)
    _whole("number of shields made for the photo", sum(k in (CARRIED, SEALED) for k, _ in stream.chunks), 0, 1)


def _whole(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise BitstreamError(f"{what} is {value!r}; it must be a whole number from {low} to {high}")


def _sized(what: str, value: bytes, low: int, high: int) -> None:
    if not low <= len(value) <= high:
        raise BitstreamError(f"{what} has {len(value)} bytes; it must have {low} to {high}")
