"""The shield at every size: Eq. 3 up to the reading side, above it the triggers of the small copy, enlarged."""

from dataclasses import replace

import pytest
import torch
from models import OWNER, awaken, backbone, picture
from torchvision.transforms.functional import InterpolationMode, resize

from psic_core import bitstream, keys
from psic_core.bitstream import ARCHITECTURES
from psic_core.codec import PSIC
from psic_core.models.delta import energy, within_budget
from psic_core.models.images import pad_to

SMALL = {"dim": 16, "hidden": 8, "ladder": 4, "reading_side": 64}


@pytest.fixture(scope="module")
def model() -> PSIC:
    return awaken(PSIC.wrap(backbone("bmshj2018-hyperprior"), keys.secret(OWNER), **SMALL)).eval()


def decoded(model: PSIC, height: int, width: int, condition: torch.Tensor | None, tile: int = 0) -> torch.Tensor:
    x = picture(height, width)
    return model.picture(model.quantised_latents(pad_to(x, model.factor)), (height, width), condition, tile)


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (30, 64)])
def test_up_to_the_reading_side_it_is_eq_3(model: PSIC, size: tuple[int, int]):
    y_hat = model.quantised_latents(pad_to(picture(*size), model.factor))
    for condition in (None, torch.randn(16)):
        expected = model.synthesize(y_hat, condition)[..., : size[0], : size[1]].clamp(0, 1)
        assert torch.equal(model.picture(y_hat, size, condition), expected)


@pytest.mark.parametrize("condition", [None, torch.ones(16) / 4])
def test_a_large_photo_gets_the_change_of_its_small_copy_enlarged(model: PSIC, condition: torch.Tensor | None):
    x = picture(256, 384)
    y_hat = model.quantised_latents(x)
    full = model.g_s.plain(y_hat)
    small = resize(full.clamp(0, 1), [64, 96], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    y_small = model.analysed(pad_to(small, model.coder.cell))  # not rounded
    delta = (model.synthesize(y_small, condition) - model.g_s.plain(y_small))[..., :96]
    assert delta.abs().max() > 0.01
    wanted = (full + torch.nn.functional.interpolate(delta, (256, 384), mode="bicubic")).clamp(0, 1)
    assert torch.equal(model.picture(y_hat, (256, 384), condition), wanted)


def test_full_is_the_plain_picture_at_every_size_and_zero_is_none(model: PSIC):
    y_hat = model.quantised_latents(pad_to(picture(100, 130), model.factor))
    plain = model.g_s.plain(y_hat)[..., :100, :130].clamp(0, 1)
    assert torch.equal(model.picture(y_hat, (100, 130), model.full_condition()), plain)
    assert torch.equal(model.picture(y_hat, (100, 130), torch.zeros(16)), model.picture(y_hat, (100, 130)))


def test_windows_change_nothing_and_the_owner_alone_can_be_without_the_secret(model: PSIC):
    whole = decoded(model, 200, 300, None)
    assert torch.allclose(decoded(model, 200, 300, None, tile=64), whole, atol=2e-3)
    secret, model.secret = model.secret, None
    try:
        assert torch.allclose(decoded(model, 200, 300, None), whole, atol=1e-6)
    finally:
        model.secret = secret


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_shields_photos_above_the_reading_side(name: str):
    psic = awaken(PSIC.wrap(backbone(name), keys.secret(OWNER), **SMALL)).eval()
    file = psic.compress(picture(100, 140))
    full, protected = (psic.decompress_tensor(file, keyword) for keyword in (OWNER, None))
    assert full.shape == protected.shape == (1, 3, 100, 140)
    assert (full - protected).abs().max() > 1e-3
    assert bitstream.unpack(file).size == (100, 140)


@pytest.mark.parametrize("size", [(64, 96), (160, 200)])
def test_no_photo_is_changed_by_more_than_the_budget(model: PSIC, size: tuple[int, int]):
    y_hat = model.quantised_latents(pad_to(picture(*size), model.factor))
    full, free = (model.picture(y_hat, size, c) for c in (model.full_condition(), None))
    allowed = float(energy(free - full, full)) / 4
    model.config = replace(model.config, budget=allowed)
    bounded = model.picture(y_hat, size, None)
    model.config = replace(model.config, budget=None)
    assert torch.equal(model.picture(y_hat, size, model.full_condition()), full)
    assert 0.2 * allowed < float(energy(bounded - full, full)) < 1.05 * allowed


def test_a_change_within_the_budget_stays_as_it_is():
    x = picture(32, 32)
    delta = torch.linspace(-0.2, 0.2, x.numel()).view_as(x)
    cut = within_budget(delta, x, 8.0)
    assert torch.allclose(energy(cut, x), torch.tensor(8.0))
    assert torch.allclose(cut, delta * cut.norm() / delta.norm())
    assert torch.equal(within_budget(cut / 2, x, 8.0), cut / 2)
