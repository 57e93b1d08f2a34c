"""What the target gets to see in training, and the rival who learns beside the model."""

from dataclasses import replace

import pytest
import torch
from models import awaken, picture
from torch import Tensor

from psic_core.batches import Batch
from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.handed_on import HandedOn
from psic_core.images import round_to_8_bits
from psic_core.processes import Processes, started

PURIFIED = TrainConfig("two", purifier=1.0)
Step = tuple[Tensor, Batch, Tensor]


@pytest.fixture(scope="module")
def model() -> PSIC:
    """One whose triggers change a mid-grey picture, in training mode as a phase has it."""
    torch.manual_seed(0)
    model = awaken(PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8))).train().requires_grad_(False)
    biases = [p for name, p in model.named_parameters() if "g_s.stages" in name and p.shape == (3,)]
    biases[-1].add_(0.5)
    return model


def decoded(model: PSIC, seed: int = 0, side: int = 64) -> Step:
    """A protected batch, what its step knows of it, and its latents."""
    x = torch.cat([picture(side, side, seed=k) for k in range(4)])
    y_hat = model.quantised_latents(x)
    return model.synthesize(y_hat), Batch(x, y_hat, torch.arange(4), torch.Generator().manual_seed(seed)), y_hat


def way(model: PSIC, config: TrainConfig) -> HandedOn:
    return HandedOn(model, config, Processes(started()))


def test_without_options_nothing_happens_and_nothing_is_drawn(model: PSIC):
    x_hat, batch, y_hat = decoded(model)
    before = batch.rng.get_state()
    handed_on = way(model, TrainConfig("two"))
    shown, row = handed_on(x_hat, batch, y_hat)
    assert shown is x_hat
    assert row == handed_on.state() == {}
    assert torch.equal(before, batch.rng.get_state())


def test_the_rival_learns_to_take_the_shield_off(model: PSIC):
    handed_on, left = way(model, PURIFIED), []
    for step in range(60):
        shown, row = handed_on(*decoded(model, seed=step))
        left.append(row["purified"])
    assert left[0] == pytest.approx(1)  # he starts with the identity
    assert sum(left[-5:]) / 5 < 0.6
    x_hat, _, y_hat = decoded(model)
    full = model.synthesize(y_hat, model.full_condition())
    assert (shown - full).square().mean() < 0.7 * (x_hat - full).square().mean()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_pictures_goes_through_him(model: PSIC, share: float):
    handed_on = way(model, replace(PURIFIED, purifier=share or 1e-9))
    torch.nn.init.constant_(handed_on.rival.layers[-1].bias, 0.3)
    changed = 0
    for seed in range(20):
        x_hat, batch, y_hat = decoded(model, seed)
        shown, _ = handed_on(x_hat, batch, y_hat)
        changed += int(((shown - x_hat).abs().flatten(1).amax(1) > 0.05).sum())
    assert changed == 80 * share if share != 0.5 else 20 < changed < 60


def test_gradients_flow_through_him_to_the_model_and_none_stay_with_him(model: PSIC):
    x_hat, batch, y_hat = decoded(model)
    handed_on = way(model, PURIFIED)
    x_hat.requires_grad_()
    shown, _ = handed_on(x_hat, batch, y_hat)
    before = [p.clone() for p in handed_on.rival.parameters()]
    held = [p.grad.clone() for p in handed_on.rival.parameters()]
    shown.square().sum().backward()
    assert (x_hat.grad != 0).float().mean() > 0.9
    now = list(handed_on.rival.parameters())
    assert all(torch.equal(a, b) and torch.equal(g, b.grad) for a, g, b in zip(before, held, now, strict=True))


def test_what_he_gets_is_what_a_file_would_hold(model: PSIC):
    handed_on = way(model, PURIFIED)
    x_hat, batch, y_hat = decoded(model)
    handed_on.optimiser.param_groups[0]["lr"] = 0.0  # the identity
    shown, _ = handed_on(x_hat, batch, y_hat)
    assert torch.equal(shown, round_to_8_bits(x_hat))


def test_platforms_and_the_rival_share_a_batch(model: PSIC):
    """Without him, platforms draw what they always drew."""
    alone, _ = way(model, TrainConfig("two", eot=1.0))(*decoded(model))
    both = way(model, TrainConfig("two", eot=1.0, purifier=0.5))
    both.optimiser.param_groups[0]["lr"] = 0.0
    x_hat, batch, y_hat = decoded(model)
    shown, _ = both(x_hat, batch, y_hat)
    for one, other, own in zip(alone, shown, round_to_8_bits(x_hat), strict=True):
        assert torch.equal(other, one) or torch.equal(other, own)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_a_share(share: float):
    with pytest.raises(ValueError, match=f"purifier is {share}"):
        TrainConfig(purifier=share)


def test_he_leaves_the_global_generator_alone(model: PSIC):
    before = torch.random.get_rng_state()
    first, second = way(model, PURIFIED), way(model, PURIFIED)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.rival.layers[0].weight, second.rival.layers[0].weight)
