"""Entropy parameters in whole numbers: against Python's own integers, in any order, tiled or not, and bounded."""

import pytest
import torch
from models import backbone
from torch import Tensor, nn

from psic_core.models import exact
from psic_core.models.exact import PLACES, SCALES, THRESHOLDS, WEIGHT_PLACES, ExactHyperprior

NAMES = ["bmshj2018-hyperprior", "mbt2018-mean"]


def hyper_latents(height: int, width: int, channels: int = 8) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    return torch.randint(-40, 40, (1, channels, height, width), generator=rng, dtype=torch.int32)


def by_hand(layers: nn.Sequential, x: Tensor) -> Tensor:
    """h_s in int64, each product on its own: no library's convolution, no float."""
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            x = x.clamp(min=0)
            continue
        if isinstance(layer, nn.LeakyReLU):
            x = torch.where(x < 0, (x * 655 + 2**15) // 2**16, x)
            continue
        weight = (layer.weight.detach().double() * 2**WEIGHT_PLACES).round().long()
        bias = (layer.bias.detach().double() * 2 ** (PLACES + WEIGHT_PLACES)).round().long()
        transposed, (pad, _) = isinstance(layer, nn.ConvTranspose2d), layer.padding
        if transposed:  # the same as a convolution of the spread input with the turned kernel
            spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
            spread[..., ::2, ::2] = x
            x, weight, pad = spread, weight.flip(2, 3).transpose(0, 1), weight.shape[-1] - 1 - pad
        size = weight.shape[-1]
        x = nn.functional.pad(x, (pad, pad, pad, pad))
        height, width = x.shape[2] - size + 1, x.shape[3] - size + 1
        out = bias[None, :, None, None].expand(1, -1, height, width).clone()
        for i in range(size):
            for j in range(size):
                part = x[:, None, :, i : i + height, j : j + width] * weight[None, :, :, i, j, None, None]
                out += part.sum(2)
        x = ((out + 2**15) // 2**16).clamp(-(2**20), 2**20)
    return x


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_integer_arithmetic(name: str):
    model, z = backbone(name), hyper_latents(3, 2)
    with torch.no_grad():
        model.entropy_bottleneck.quantiles[:, 0, 1] += torch.linspace(-2, 2, 8)
        model.h_s[-2 if name == NAMES[0] else -1].bias.add_(1)
    x = z.long() * 2**PLACES
    x += (model.entropy_bottleneck.quantiles[:, 0, 1].double() * 2**PLACES).round().long()[:, None, None]
    expected = by_hand(model.h_s, x)
    indexes, means = ExactHyperprior(model)(z)
    if name == "mbt2018-mean":
        expected, mu = expected.chunk(2, 1)
        assert torch.equal(means.long(), mu)
        assert mu.unique().numel() > 20
    else:
        assert not means.any()
    assert torch.equal(indexes, sum((expected > t).int() for t in THRESHOLDS[:-1]))
    assert indexes.unique().numel() > 20


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_near_those_of_floats(name: str):
    model, z = backbone(name), hyper_latents(4, 5)
    with torch.no_grad():
        floats = model.h_s(z + model.entropy_bottleneck.quantiles[:, 0, 1, None, None])
    indexes, means = ExactHyperprior(model)(z)
    scales = floats.chunk(2, 1)[0] if name == "mbt2018-mean" else floats
    off = (indexes - torch.bucketize(scales.contiguous(), SCALES[:-1])).abs()
    assert off.max() <= 1
    assert off.float().mean() < 0.02
    if name == "mbt2018-mean":
        assert (means / 2**PLACES - floats.chunk(2, 1)[1]).abs().max() < 0.01


def test_large_pictures_are_computed_in_windows_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    hyperprior, z = ExactHyperprior(backbone("mbt2018-mean")), hyper_latents(11, 14)
    whole = hyperprior(z)
    monkeypatch.setattr(exact, "_TILE", 3)
    for one, other in zip(hyperprior(z), whole, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("weight", [2.0**24, torch.inf, torch.nan])
def test_weights_that_could_leave_the_exact_range_are_refused(weight: float):
    model = backbone("bmshj2018-hyperprior")
    ExactHyperprior(model)
    with torch.no_grad():
        model.h_s[0].weight[0, 0, 0, 0] = weight
    with pytest.raises(ValueError, match=r"beyond 2\^53: the model has diverged"):
        ExactHyperprior(model)
