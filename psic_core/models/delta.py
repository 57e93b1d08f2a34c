"""A change of a picture that was found for it, in a few bytes: signed cosines of one amplitude, at the reader's scale.

Not in the paper. Most of a small change's effect on a reader is in the places and signs of its largest DCT
coefficients (Ahmed et al., 1974); their sizes matter little, so that all have one.
"""

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import InterpolationMode, resize

from psic_core.bitstream import BitstreamError

BAND = 0.4  # of the frequencies of each axis that a change may have: what is finer, platforms take away first
MAX_SIGNS = 3000
MAX_BYTES = 4000
_HEAD = struct.Struct("<BHH")  # share of the triggers / 255; amplitude in 1/256 grey levels; number of cosines
#: Orthonormal axes of colour, as rows: grey, red against blue, green against both.
_COLOURS = torch.tensor([[2.0, 2.0, 2.0], [6**0.5, 0.0, -(6**0.5)], [2**0.5, -(8**0.5), 2**0.5]]) / 12**0.5

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)

Pictures = Float[Tensor, "batch 3 height width"]
Coefficients = Float[Tensor, "1 3 rows columns"]


class Adapted(NamedTuple):
    """What is added to the full version of a photo that a shield was made for.

    Attributes:
        triggers: Share of the triggers' change, 0 to 1; at 0 they rest.
        delta: A change at the reader's scale, of values in [0, 1]. Where it is added it is weighed by what `hiding`
            says of the picture there, and `enlarged`.
    """

    triggers: float
    delta: Float[Tensor, "1 3 small_height small_width"] | None


NOTHING = Adapted(0.0, None)  # the triggers rest, and nothing takes their place


def reading_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width at which a reader sees a picture: a shorter side of ``side``, or less where it has less."""
    scale = min(1.0, side / min(size))
    return round(size[0] * scale), round(size[1] * scale)


def reduced(x: Float[Tensor, "batch 3 height width"], side: int) -> Float[Tensor, "batch 3 small_height small_width"]:
    """Pictures in [0, 1] scaled down to `reading_size`, as readers do it."""
    size = reading_size(tuple(x.shape[-2:]), side)
    return resize(x.clamp(0, 1), list(size), InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)


def enlarged(
    delta: Float[Tensor, "batch 3 small_height small_width"], size: tuple[int, int]
) -> Float[Tensor, "batch 3 height width"]:
    """A change at the reader's scale at a picture's."""
    return functional.interpolate(delta, size, mode="bicubic")


def flatness(x: Pictures) -> Float[Tensor, "batch 1 height width"]:
    """How well each place of a picture in [0, 1] shows a change: eyes see noise in a sky, not in grass.

    ``2 / (1 + (sigma / 0.04)^2)``, with sigma the standard deviation of x's grey values in 9 x 9 pixels: 2 where x is
    flat, 1 at a sigma of 0.04, near 0 in strong texture. A stand-in for contrast masking; not in the paper.
    """
    grey = x.detach().mean(1, keepdim=True)
    mean, square = (functional.avg_pool2d(v, 9, 1, 4, count_include_pad=False) for v in (grey, grey**2))
    return 2 / (1 + (square - mean**2).clamp_min(0) / 0.04**2)


def visibility(x: Pictures) -> Float[Tensor, "batch 1 height width"]:
    """The weight of a change's square at each place: 2 where x is flat, down to 0.2 in strong texture."""
    return 0.2 + 0.9 * flatness(x.clamp(0, 1))


def hiding(x: Pictures) -> Float[Tensor, "batch 1 height width"]:
    """The share of a change that each place of x takes, so that its `energy` is the same everywhere: 0.7 to 2.2."""
    return visibility(x).rsqrt()


def energy(delta: Pictures, x_hat_f: Pictures) -> Float[Tensor, "batch 1 1 1"]:
    """What a change costs, in squared grey levels of 255: a mean square that counts what eyes see.

    Half of it is the mean square of the colours, half that of the luminance, so that a change of colour alone costs
    half of a change of brightness. Flat places weigh ten times as much as strong texture.

    Args:
        delta: The change, in units of [0, 1].
        x_hat_f: The pictures that are changed.
    """
    luminance = (delta * delta.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
    square = (delta.square().mean(1, keepdim=True) + luminance.square()) / 2
    return 255**2 * (visibility(x_hat_f) * square).mean((1, 2, 3), keepdim=True)


def within_budget(delta: Pictures, x_hat_f: Pictures, budget: float) -> Pictures:
    """The change, scaled down in those pictures where its `energy` exceeds the budget."""
    return delta * (budget / energy(delta, x_hat_f).clamp_min(1e-9)).sqrt().clamp_max(1)


def band(size: tuple[int, int]) -> tuple[int, int]:
    """How many frequencies of each axis a change of this size may have."""
    return math.ceil(BAND * size[0]), math.ceil(BAND * size[1])


def cosines(c: Coefficients, size: tuple[int, int]) -> Float[Tensor, "1 3 height width"]:
    """The inverse DCT-II of coefficients of the lowest frequencies; orthonormal, so that energies are equal."""
    rows, columns = (dct_basis(n, k).to(c) for n, k in zip(size, c.shape[-2:], strict=True))
    return torch.einsum("kc,nkhw->nchw", _COLOURS.to(c), rows.T @ c @ columns)


def coefficients(x: Float[Tensor, "1 3 height width"], kept: tuple[int, int]) -> Coefficients:
    """The transpose of `cosines`: a picture's DCT coefficients, as many of each axis as are kept."""
    rows, columns = (dct_basis(n, k).to(x) for n, k in zip(x.shape[-2:], kept, strict=True))
    return torch.einsum("kc,nchw->nkhw", _COLOURS.to(x), rows @ x @ columns.T)


def dct_basis(n: int, frequencies: int) -> Float[Tensor, "frequencies n"]:
    """The orthonormal DCT-II of n samples: row k holds the cosine of frequency k."""
    k, i = torch.arange(frequencies, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    return torch.cos(math.pi * k * (i + 0.5) / n) * torch.where(k == 0, 1 / n, 2 / n).sqrt()


def to_code(signs: Coefficients, amplitude: float, triggers: float = 0.0) -> bytes:
    """Write a change: the gaps between its cosines under a Huffman code (zlib's), and a bit for each sign.

    Args:
        signs: -1, 0 and 1, of the frequencies in `band`.
        amplitude: Of each cosine, in grey levels of 255.
        triggers: As in `Adapted`, rounded to 1/255.

    Raises:
        ValueError: The picture is so long and narrow that the code would exceed `MAX_BYTES`.
    """
    flat = signs.flatten().numpy()
    places = np.flatnonzero(flat)
    gaps = np.diff(places, prepend=-1) - 1
    spelled = b"".join(b"\xff" * (gap // 255) + bytes([gap % 255]) for gap in gaps.tolist())
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    head = _HEAD.pack(round(255 * triggers), min(65535, round(256 * amplitude)), len(places))
    code = head + np.packbits(flat[places] > 0).tobytes() + packer.compress(spelled) + packer.flush()
    if len(code) > MAX_BYTES:
        raise ValueError(f"a shield of {len(code)} bytes, and {MAX_BYTES} are the most: cut the picture up")
    return code


def from_code(code: bytes, size: tuple[int, int]) -> Adapted:
    """Read a change for a picture.

    Args:
        code: From `to_code`.
        size: Height and width at the reader's scale.

    Raises:
        BitstreamError: The code is none of such a picture.
    """
    if len(code) < _HEAD.size:
        raise BitstreamError(f"the code of a shield has {len(code)} bytes; it has {_HEAD.size} at least")
    triggers, amplitude, count = _HEAD.unpack_from(code)
    rows, columns = band(size)
    places = _places(code[_HEAD.size + -(-count // 8) :], min(count, MAX_SIGNS), 3 * rows * columns)
    if len(places) != count or (count and places[-1] >= 3 * rows * columns):
        raise BitstreamError(f"the code of a shield does not fit a picture of {size[0]} x {size[1]} at reading scale")
    bits = np.unpackbits(np.frombuffer(code, np.uint8, -(-count // 8), _HEAD.size), count=count)
    c = torch.zeros(3 * rows * columns, dtype=torch.float64)
    c[torch.from_numpy(places)] = torch.from_numpy(2.0 * bits - 1) * amplitude / 256 / 255
    return Adapted(triggers / 255, cosines(c.view(1, 3, rows, columns), size).float())


def _places(packed: bytes, most: int, positions: int) -> np.ndarray:
    reader = zlib.decompressobj(-15)
    try:
        spelled = np.frombuffer(reader.decompress(packed, most + positions // 255 + 1), np.uint8)
    except zlib.error as error:
        raise BitstreamError(f"the code of a shield is damaged: {error}") from None
    if not reader.eof or reader.unused_data or (len(spelled) and spelled[-1] == 255):
        raise BitstreamError("the code of a shield is damaged: it does not end where it should")
    ends = spelled != 255
    return np.cumsum(spelled.astype(np.int64) + ends)[ends] - 1
