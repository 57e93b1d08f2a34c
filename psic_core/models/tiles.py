"""Large pictures in bounded memory: a transform computed window by window, equal to computing it whole.

A convolutional transform is local: each value of its output depends on a bounded neighbourhood of its input. A window
that brings this neighbourhood along gives, in its middle, what the whole picture would have given. So nothing is
blended, there are no seams, and the file is the same: only ``g_a`` and ``g_s`` need much memory, while the latents of
24 megapixels are small enough to be entropy-coded in one piece.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

#: Side of a window in pixels, context not counted.
TILE = 1024
#: Pictures of up to so many pixels are computed whole, unless a tile's side is given.
WHOLE = 2**22
_WIDEST = 32  # cells; a transform that sees further is not local

Transform = Callable[[Float[Tensor, "batch c h w"]], Float[Tensor, "batch d height width"]]


def reach(
    transform: Transform, channels: int, cell: int, device: torch.device | None = None, widest: int = _WIDEST
) -> int:
    """How many cells away an input can change an output, measured: NaN in one cell spreads to whatever reads it.

    Args:
        transform: From pixels to latents or back.
        channels: Of its input.
        cell: Side in input samples of a cell: 16 for ``g_a`` of most codecs, 1 for ``g_s``.
        device: Where the transform is.
        widest: Cells beyond which the answer does not matter; it saves looking.

    Raises:
        ValueError: An output depends on more cells around it than were looked at, `widest` at most.
    """
    radius = 4
    while radius <= widest:
        side = 2 * radius + 1
        x = torch.zeros(1, channels, side * cell, side * cell, device=device)
        x[..., radius * cell : (radius + 1) * cell, radius * cell : (radius + 1) * cell] = torch.nan
        with torch.no_grad():
            out = transform(x).isnan()[0].any(0)
        size = out.shape[-1] // side
        touched = torch.cat([out.any(axis).view(side, size).any(1).nonzero()[:, 0] for axis in (0, 1)])
        far = int((touched - radius).abs().max()) if len(touched) else 0
        if far < radius:  # else it may go on beyond the edge
            return far
        radius *= 2
    raise ValueError(f"the transform looks further than {radius // 2} latents: it cannot be tiled; pass tile=0")


def tiled(
    transform: Transform, x: Float[Tensor, "1 c h w"], scale: tuple[int, int], tile: int, context: int, what: str
) -> Float[Tensor, "1 d height width"]:
    """Apply a local transform window by window.

    Args:
        transform: Its zero padding at a window's inner edges stays inside the context.
        x: Input; its sides are multiples of the cell.
        scale: Samples a cell has on each side, in the input and in the output.
        tile: Cells that a window keeps on each side.
        context: Cells read around them, as `reach` measures.
        what: Title of the progress bar, which is shown on a terminal only.
    """
    into, out = scale
    height, width = (side // into for side in x.shape[-2:])
    whole: Tensor | None = None
    for r in tqdm(range(0, height, tile), what, leave=False, disable=None):
        for c in range(0, width, tile):
            top, left = max(0, r - context), max(0, c - context)
            rows, columns = (slice(a * into, (b + tile + context) * into) for a, b in ((top, r), (left, c)))
            part = transform(x[..., rows, columns])
            if whole is None:
                whole = part.new_empty(1, part.shape[1], height * out, width * out)
            kept = (..., *(slice(n * out, (n + tile) * out) for n in (r - top, c - left)))
            whole[..., r * out : (r + tile) * out, c * out : (c + tile) * out] = part[kept]
    return whole


def tile_for(height: int, width: int, tile: int | None) -> int:
    """The side of the windows for a picture, in pixels; 0 computes it whole.

    Args:
        height: In pixels.
        width: Likewise.
        tile: 0 never tiles, another number always does; ``None`` tiles pictures above `WHOLE` pixels by `TILE`.

    Raises:
        ValueError: The side is negative or no whole number.
    """
    if tile is None:
        return TILE if height * width > WHOLE else 0
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 0:
        raise ValueError(f"tile is {tile!r}; it is a side in pixels, such as {TILE}, or 0 to compute pictures whole")
    return tile
