"""What happens to a published picture: platforms, screens and tools. Real files and filters, on 8-bit pictures."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur, resize

from psic_core.codec import PSIC
from psic_core.models.images import round_to_8_bits, through_file

Picture = Float[Tensor, "1 3 height width"]
Processed = Float[Tensor, "1 3 new_height new_width"]  # of any size
Processing = Callable[[Picture], Processed]


def rescaled(share: float) -> Processing:
    """Scaled to a share of its sides (bicubic, antialiased), and back."""

    def process(x: Picture) -> Processed:
        size = list(x.shape[-2:])
        small = round_to_8_bits(resize(x, [max(1, round(side * share)) for side in size], 3, antialias=True))
        return round_to_8_bits(resize(small, size, 3, antialias=True))

    return process


def screenshot(x: Picture) -> Processed:
    """Shown at 125 %, bilinear, as a display does it, photographed off by a few pixels, saved as JPEG 90."""
    shown = round_to_8_bits(resize(x, [round(side * 1.25) for side in x.shape[-2:]], 2, antialias=True))
    return through_file(shown[..., 3:-2, 2:-3], "JPEG", quality=90)


def cropped(share: float) -> Processing:
    """The middle, that share of each side."""

    def process(x: Picture) -> Processed:
        top, left = (round(side * (1 - share) / 2) for side in x.shape[-2:])
        return x[..., top : x.shape[-2] - top, left : x.shape[-1] - left]

    return process


def blurred(sigma: float) -> Processing:
    """Gaussian blur; ``sigma`` in pixels."""
    return lambda x: round_to_8_bits(gaussian_blur(x, [9, 9], [sigma]))


def noisy(sigma: float) -> Processing:
    """Gaussian noise; ``sigma`` of 255. Equal for equal sizes: the same processing for all versions of a picture."""

    def process(x: Picture) -> Processed:
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(x.shape[-1])))
        return round_to_8_bits(x + sigma / 255 * drawn)

    return process


def recoded(codec: PSIC) -> Processing:
    """Coded once more by a learned codec: a plain one, or a PSIC, which protects again."""
    return lambda x: round_to_8_bits(codec.decompress_tensor(codec.compress(x)))


#: What platforms, screens and people do without a thought of the shield.
PLATFORMS: Mapping[str, Processing] = {
    "JPEG 75": partial(through_file, suffix="JPEG", quality=75),
    "JPEG 30": partial(through_file, suffix="JPEG", quality=30),
    "WebP 50": partial(through_file, suffix="WEBP", quality=50),
    "half size and back": rescaled(0.5),
    "screenshot": screenshot,
    "crop to 75 %": cropped(0.75),
    "blur 1.5 px": blurred(1.5),
    "noise 10/255": noisy(10),
}
