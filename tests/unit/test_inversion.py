"""Inversion: a protected picture and the public decoder give the full version, and no key is asked for."""

import pytest
import torch
from models import SMALL, awaken, backbone, picture
from torch import Tensor

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.lab.rivals import invert, stripped
from psic_core.models.images import pad_to, round_to_8_bits


@pytest.fixture(scope="module")
def model() -> PSIC:
    """Small, with triggers that answer and a decoder whose pictures are neither black nor white."""
    model = awaken(PSIC.wrap(backbone("bmshj2018-hyperprior"), keys.secret("owner"), **SMALL), scale=1.0).eval()
    with torch.no_grad():
        x_hat = model.synthesize(model.quantised_latents(photos()))
        last = model.g_s.stages[-1][-1]
        last.weight.mul_(0.15 / x_hat.std())
        last.bias.mul_(0.15 / x_hat.std())
        last.bias.add_(0.5 - model.synthesize(model.quantised_latents(photos())).mean())
    return model


def photos() -> Tensor:
    return pad_to(torch.cat([picture(64, 128, seed=i) for i in range(2)]), 64)


@pytest.fixture(scope="module")
def versions(model: PSIC) -> tuple[Tensor, Tensor]:
    """Protected and full, at 8 bits, cut to a size that is no multiple of anything."""
    with torch.no_grad():
        y_hat = model.quantised_latents(photos())
        both = (model.synthesize(y_hat, c) for c in (None, model.full_condition()))
        protected, full = (round_to_8_bits(x[..., :60, :101]) for x in both)
    return protected, full


def mse(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())


def test_the_full_version_comes_back_without_a_secret(model: PSIC, versions: tuple[Tensor, Tensor]):
    protected, full = versions
    secret, model.secret = model.secret, None
    try:
        found = stripped(model, protected, steps=100, rate=0.4, batch=1)
    finally:
        model.secret = secret
    assert mse(protected, full) > 1e-4
    assert mse(found, full) < 0.25 * mse(protected, full)
    assert found.shape == protected.shape
    assert torch.equal((found * 255).round() / 255, found)
    assert not found.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_more_steps_explain_the_picture_better(model: PSIC, versions: tuple[Tensor, Tensor]):
    protected, _ = versions
    again = invert(model, protected, steps=0)
    assert torch.equal(again, model.quantised_latents(pad_to(protected, model.factor)))
    off = []
    with torch.no_grad():
        for steps in (0, 10, 60):
            with torch.enable_grad():
                y = invert(model, protected, steps, rate=0.4)
            off.append(mse(model.synthesize(y)[..., :60, :101], protected))
    assert off[0] > 1.2 * off[1] > 1.5 * off[2]


def test_a_negative_number_of_steps_is_refused(model: PSIC, versions: tuple[Tensor, Tensor]):
    with pytest.raises(ValueError, match="steps -1"):
        invert(model, versions[0], -1)
