"""Expectation over transformations (Athalye et al., ICML 2018): what platforms do to pictures, with a gradient."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur, resize

from psic_core.models.images import round_to_8_bits

Picture = Float[Tensor, "1 3 height width"]


def random_platform_transform(
    x: Float[Tensor, "batch 3 height width"], share: float, rng: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Each picture as a platform may hand it on: one of `TRANSFORMATIONS`, at a strength of its own, or none.

    Args:
        x: As a decoder gives them; rounded to 8 bits first.
        share: Of the pictures that are transformed; the others come back as they are.
        rng: Draws; each picture has a seed of its own.

    Returns:
        Pictures at 8 bits, of the same size; gradients flow.
    """
    kinds, shown = list(TRANSFORMATIONS.values()), []
    seeds = torch.randint(2**62, (len(x),), generator=rng)
    for picture, seed in zip(round_to_8_bits(x).split(1), seeds.tolist(), strict=True):
        own = torch.Generator().manual_seed(seed)
        chance, kind, strength = torch.rand(3, generator=own).tolist()
        if chance < share:
            picture = round_to_8_bits(kinds[int(kind * len(kinds))](picture, strength, own))
        shown.append(picture)
    return torch.cat(shown)


def jpeg(x: Picture, strength: float, rng: torch.Generator) -> Picture:
    """JPEG, quality 95 to 40 (Reich et al., WACV 2024, in kornia: a polynomial in the place of rounding)."""
    from kornia.enhance import jpeg_codec_differentiable  # two seconds, which only this training has to wait

    return jpeg_codec_differentiable(x, x.new_tensor([95 - 55 * strength]))


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
