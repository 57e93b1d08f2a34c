"""Expectation over transformations (Athalye et al., ICML 2018): what platforms do to pictures, with a gradient."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur, resize

from psic_core.models.images import round_to_8_bits

Picture = Float[Tensor, "batch 3 height width"]


def random_platform_transform(
    x: Float[Tensor, "batch 3 height width"], share: float, rng: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures as a platform may hand them on: a share through one of `TRANSFORMATIONS`, the others as they are.

    The kind and its strength are drawn once for the batch, so that a GPU has one call and not one a picture; the
    expectation is over the steps.

    Args:
        x: As a decoder gives them; rounded to 8 bits first.
        share: Of the pictures that are transformed: the first of the batch.
        rng: Draws.

    Returns:
        Pictures at 8 bits, of the same size; gradients flow.
    """
    kinds, x, n = list(TRANSFORMATIONS.values()), round_to_8_bits(x), round(share * len(x))
    kind, strength = torch.rand(2, generator=rng).tolist()
    if not n:
        return x
    return torch.cat([round_to_8_bits(kinds[int(kind * len(kinds))](x[:n], strength, rng)), x[n:]])


def jpeg(x: Picture, strength: float, rng: torch.Generator) -> Picture:
    """JPEG, quality 95 to 40 (Reich et al., WACV 2024, in kornia: a polynomial in the place of rounding)."""
    from kornia.enhance import jpeg_codec_differentiable  # two seconds, which only this training has to wait

    return jpeg_codec_differentiable(x, x.new_full((len(x),), 95 - 55 * strength))


def rescale(x: Picture, strength: float, rng: torch.Generator) -> Picture:
    """Down to 95 to 40 % of the size and back."""
    size = x.shape[-2:]
    small = resize(x, [max(1, round(side * (0.95 - 0.55 * strength))) for side in size], 3, antialias=True)
    return resize(small.clamp(0, 1), list(size), 3, antialias=True)


def crop(x: Picture, strength: float, rng: torch.Generator) -> Picture:
    """A part, 98 to 75 % of each side, anywhere, enlarged to the old size, as a model's preprocessing does."""
    size = x.shape[-2:]
    kept = [max(1, round(side * (0.98 - 0.23 * strength))) for side in size]
    top, left = (int(torch.randint(a - b + 1, (), generator=rng)) for a, b in zip(size, kept, strict=True))
    return resize(x[..., top : top + kept[0], left : left + kept[1]], list(size), 3, antialias=True)


def blur(x: Picture, strength: float, rng: torch.Generator) -> Picture:
    """Gaussian, with a standard deviation of 0.4 to 1.4 pixels."""
    return gaussian_blur(x, [9, 9], [0.4 + strength])


def noise(x: Picture, strength: float, rng: torch.Generator) -> Picture:
    """Gaussian, with a standard deviation of 1 to 9 of 255."""
    drawn = torch.randn(x.shape, generator=rng).to(x)
    return x + (1 + 8 * strength) / 255 * drawn


def median(x: Picture, strength: float, rng: torch.Generator) -> Picture:
    """Of 3 × 3 pixels, mixed with the picture: what the simplest denoiser does."""
    around = functional.unfold(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3)
    middle = around.unflatten(1, (3, 9)).median(2).values.view_as(x)
    return x + (0.3 + 0.7 * strength) * (middle - x)


#: Each takes a picture, a strength in [0, 1) and a generator. `random_platform_transform` draws each as often.
TRANSFORMATIONS: Mapping[str, Callable[[Picture, float, torch.Generator], Picture]] = {
    "jpeg": jpeg,
    "rescale": rescale,
    "crop": crop,
    "blur": blur,
    "noise": noise,
    "median": median,
}
