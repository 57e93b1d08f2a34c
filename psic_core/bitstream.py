"""The .psic container: one coded picture, whichever version a decoder will show.

Layout, little-endian (n strings, k keyword slots)::

    offset  bytes  field
         0      4  magic b"PSIC"
         4      1  version, 1
         5      1  architecture: index in ARCHITECTURES, or 255 for "custom"
         6      1  quality
         7      1  k, the number of keyword slots
         8      8  fingerprint of the encoder's and entropy model's weights
        16    4+4  height, width in pixels
        24    2+2  height, width of CompressAI's ``shape`` (the latent z)
        28      4  CRC-32 of the payload
        32      4  checksum of the decoded latents
        36      1  n, the number of strings
        37     4n  length of each string
     37+4n      4  CRC-32 of the header before it
     41+4n    40k  keyword slots (psic_core.keys), each with its own CRC-16
       ...    ...  payload: the strings, end to end

What is coded never depends on a key: another keyword changes bytes of its slot and nothing else.
The checksums find accidents, not forgeries; nothing here authenticates the sender.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from psic_core import keys

MAGIC = b"PSIC"
VERSION = 1
MAX_SIDE = 65535
MAX_PIXELS = 2**28  # bounds what a decoder allocates for a header of 50 bytes
MAX_STRINGS = 32
MAX_SLOTS = 16

# CompressAI 1.2.8's image models. The index is the identifier in the file: only ever append.
ARCHITECTURES: tuple[str, ...] = (
    "bmshj2018-factorized",
    "bmshj2018-factorized-relu",
    "bmshj2018-hyperprior",
    "mbt2018-mean",
    "mbt2018",
    "cheng2020-anchor",
    "cheng2020-attn",
    "cheng2020-anchor-checkerboard",
    "elic2022-official",
    "elic2022-chandelier",
    "bmshj2018-hyperprior-vbr",
    "mbt2018-mean-vbr",
    "mbt2018-vbr",
)
CUSTOM = "custom"
CUSTOM_ID = 255

_FIXED = struct.Struct("<4sBBBB8sIIHHIIB")
_U32_MAX = 2**32 - 1
_LATENT_PADDING = 256  # codecs pad a picture to a multiple of at most this
_IDS = {name: index for index, name in enumerate(ARCHITECTURES)} | {CUSTOM: CUSTOM_ID}
_NAMES = {index: name for name, index in _IDS.items()}


class BitstreamError(ValueError):
    """The bytes are no valid .psic stream; the message says what is wrong."""


class Stream(NamedTuple):
    """What a .psic file holds.

    Attributes:
        architecture: one of `ARCHITECTURES`, or ``"custom"``.
        quality: the model's quality level, 0..255.
        fingerprint: 8 bytes that identify the weights of encoder and entropy model.
        height: of the picture before padding, in pixels, 1..65535.
        width: likewise; height * width is at most `MAX_PIXELS`.
        shape: height and width that CompressAI's ``decompress`` takes (of z).
        strings: the entropy-coded strings, 1..32, in CompressAI's order.
        latent_checksum: `latent_checksum` of the y_hat that the decoder must arrive at.
        slots: keyword slots of 40 bytes, at most 16.
        version: of the container.
    """

    architecture: str
    quality: int
    fingerprint: bytes
    height: int
    width: int
    shape: tuple[int, int]
    strings: tuple[bytes, ...]
    latent_checksum: int
    slots: tuple[bytes, ...] = ()
    version: int = VERSION


def header_bytes(strings: int) -> int:
    """Size in bytes of the header, slots excluded, for that many strings (49 for two)."""
    return _FIXED.size + 4 * strings + 4


def pack(stream: Stream) -> bytes:
    """Write a stream; `unpack` of the result equals `stream`.

    Raises:
        BitstreamError: a field is out of range or of the wrong type.
    """
    _check(stream)
    payload = b"".join(stream.strings)
    fixed = _FIXED.pack(
        MAGIC,
        stream.version,
        _IDS[stream.architecture],
        stream.quality,
        len(stream.slots),
        stream.fingerprint,
        stream.height,
        stream.width,
        *stream.shape,
        zlib.crc32(payload),
        stream.latent_checksum,
        len(stream.strings),
    )
    header = fixed + struct.pack(f"<{len(stream.strings)}I", *map(len, stream.strings))
    return b"".join([header, struct.pack("<I", zlib.crc32(header)), *stream.slots, payload])


def unpack(data: bytes) -> Stream:
    """Read a stream, checking every byte of it; work and memory are linear in ``len(data)``.

    Args:
        data: a whole .psic file, no more and no less.

    Raises:
        BitstreamError: anything is missing, damaged, out of range or left over.
        TypeError: `data` is not bytes.
    """
    if not isinstance(data, bytes):
        raise TypeError(f"a .psic stream is bytes, not {type(data).__name__}; read it in mode 'rb'")
    _check_start(data)
    lengths = _checked_lengths(data)
    _, version, architecture, quality, n_slots, fingerprint, *numbers = _FIXED.unpack_from(data)
    height, width, shape_h, shape_w, payload_crc, latents, _ = numbers
    sizes = [keys.SLOT_BYTES] * n_slots + list(lengths)
    parts = _split(data, header_bytes(len(lengths)), sizes)
    stream = Stream(
        _NAMES.get(architecture, f"number {architecture}"),
        quality,
        fingerprint,
        height,
        width,
        shape=(shape_h, shape_w),
        strings=parts[n_slots:],
        latent_checksum=latents,
        slots=parts[:n_slots],
        version=version,
    )
    _check(stream)
    if zlib.crc32(b"".join(stream.strings)) != payload_crc:
        raise BitstreamError("payload is damaged: its CRC-32 is wrong; use another copy")
    return stream


def latent_checksum(y_hat: Float[Tensor, "..."]) -> int:
    """CRC-32 of the decoded latents: makes an error of a stream that decodes astray.

    Rate models evaluated on different devices can disagree, and the stream then decodes to garbage.

    Args:
        y_hat: any shape and device; rounded (half to even) and taken as little-endian int32 in C
            order, so that the noise of floating-point sums does not count.

    Raises:
        ValueError: a value is not finite or does not fit 32 bits.
    """
    rounded = y_hat.detach().cpu().double().round()
    if not bool((rounded.abs() < 2**31).all()):  # false for NaN too
        raise ValueError("y_hat has values that are not finite or exceed 32 bits; check the model")
    return zlib.crc32(rounded.numpy().astype("<i4").tobytes())


def describe(data: bytes) -> dict[str, Any]:
    """Summarise a .psic file in JSON types, as ``psic info --json`` prints it.

    Height and width are in pixels, ``bpp`` is bits of the whole file per pixel, ``keywords`` is
    the number of slots. Raises as `unpack` does.
    """
    stream = unpack(data)
    return {
        "version": stream.version,
        "architecture": stream.architecture,
        "quality": stream.quality,
        "fingerprint": stream.fingerprint.hex(),
        "height": stream.height,
        "width": stream.width,
        "bytes": {
            "total": len(data),
            "header": header_bytes(len(stream.strings)),
            "slots": keys.SLOT_BYTES * len(stream.slots),
            "payload": sum(map(len, stream.strings)),
        },
        "bpp": 8 * len(data) / (stream.height * stream.width),
        "keywords": len(stream.slots),
    }


def _check_start(data: bytes) -> None:
    """Check magic, version and that the fixed part of the header is there."""
    start, version = data[: len(MAGIC)], data[len(MAGIC) : len(MAGIC) + 1]
    if not data:
        raise BitstreamError("not a .psic file: it is empty")
    if not MAGIC.startswith(start):
        raise BitstreamError(f"not a .psic file: starts with {start!r} instead of {MAGIC!r}")
    # Before any length: another version may have another header.
    if version and version[0] != VERSION:
        found = f".psic version {version[0]}"
        raise BitstreamError(f"{found}, but this code reads version {VERSION}: update psic_core")
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
    parts = []
    for size in sizes:
        parts.append(data[start : start + size])
        start += size
    return tuple(parts)


def _check(stream: Stream) -> None:
    """Check every field's type and range: the one place for both directions."""
    for name in ("shape", "strings", "slots"):
        if not isinstance(value := getattr(stream, name), tuple):
            raise BitstreamError(f"{name} is {type(value).__name__}, not a tuple")
    if not isinstance(stream.architecture, str) or stream.architecture not in _IDS:
        known = ", ".join(_IDS)
        found = f"architecture {stream.architecture!r}"
        raise BitstreamError(f"{found} is not among {known}: update psic_core")
    _whole("version", stream.version, VERSION, VERSION)
    _whole("quality", stream.quality, 0, 255)
    _whole("latent checksum", stream.latent_checksum, 0, _U32_MAX)
    _sized("fingerprint", stream.fingerprint, 8, 8)
    _check_geometry(stream)
    _whole("number of strings", len(stream.strings), 1, MAX_STRINGS)
    for index, string in enumerate(stream.strings):
        _sized(f"string {index}", string, 0, _U32_MAX)
    _whole("number of keyword slots", len(stream.slots), 0, MAX_SLOTS)
    for index, slot in enumerate(stream.slots):
        _sized(f"keyword slot {index}", slot, keys.SLOT_BYTES, keys.SLOT_BYTES)
        if not keys.slot_intact(slot):
            raise BitstreamError(f"keyword slot {index} is damaged: its CRC-16 is wrong")


def _check_geometry(stream: Stream) -> None:
    for name in ("height", "width"):
        _whole(name, getattr(stream, name), 1, MAX_SIDE)
    if stream.height * stream.width > MAX_PIXELS:
        size = f"{stream.height} x {stream.width}"
        raise BitstreamError(f"{size} pixels are more than {MAX_PIXELS}; cut the picture up")
    if len(stream.shape) != 2:
        raise BitstreamError(f"latent shape {stream.shape!r} is not (height, width)")
    for side, latent in zip((stream.height, stream.width), stream.shape, strict=True):
        # A forged shape would make the entropy decoder run for hours on a tiny picture.
        padded = -(-side // _LATENT_PADDING) * _LATENT_PADDING
        _whole("latent side", latent, 1, min(padded, MAX_SIDE))


def _whole(what: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or not low <= value <= high:
        raise BitstreamError(f"{what} is {value!r}; it must be a whole number from {low} to {high}")


def _sized(what: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, bytes):
        raise BitstreamError(f"{what} is {type(value).__name__}, not bytes")
    if not low <= len(value) <= high:
        raise BitstreamError(f"{what} has {len(value)} bytes; it must have {low} to {high}")
