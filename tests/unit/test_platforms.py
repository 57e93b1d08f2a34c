"""What platforms do to pictures, with a gradient, and its share in training."""

import pytest
import torch
from models import picture
from torch import Tensor

from psic_core.lab.versions import jpeg as real_jpeg
from psic_core.metrics import psnr
from psic_core.models.images import round_to_8_bits
from psic_core.training.platforms import TRANSFORMATIONS, random_platform_transform


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def many(n: int = 40, side: int = 24) -> Tensor:
    return round_to_8_bits(torch.cat([picture(side, side, seed) for seed in range(n)]))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_transformation_changes_the_picture_more_where_it_is_stronger_and_passes_gradients(name: str):
    x = round_to_8_bits(picture(48, 40) * 0.8 + 0.1 * torch.rand(1, 3, 48, 40, generator=rng()))
    x.requires_grad_(True)
    weak, strong = (TRANSFORMATIONS[name](x, strength, rng()) for strength in (0.0, 0.99))
    assert weak.shape == strong.shape == x.shape
    assert psnr(strong.detach().clamp(0, 1), x.detach()) < psnr(weak.detach().clamp(0, 1), x.detach()) < 60
    (gradient,) = torch.autograd.grad(strong.square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.99])
def test_jpeg_is_near_to_pillows(strength: float):
    x = round_to_8_bits(picture(64, 64))
    ours = round_to_8_bits(TRANSFORMATIONS["jpeg"](x, strength, rng()))
    theirs = real_jpeg(x, round(95 - 55 * strength))
    assert psnr(ours, theirs) > psnr(theirs, x) - 1
    assert psnr(ours, theirs) > 33


def test_the_share_of_pictures_is_changed_and_all_have_8_bits():
    x = many()
    shown = random_platform_transform(x, 0.5, rng())
    changed = (shown != x).flatten(1).any(1)
    assert changed.tolist() == [i < len(x) // 2 for i in range(len(x))]
    assert torch.allclose((shown * 255).round() / 255, shown, atol=1e-6)
    assert torch.equal(random_platform_transform(x, 0.0, rng()), x)
