"""Conditions without a key: guesses, interpolation, decoding without triggers, and equations that give the key."""

from dataclasses import replace

import pytest
import torch
from models import awaken
from torch import Tensor
from torch.nn import functional

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.lab.key_search import between, random_conditions, solve, without_triggers

CONFIG = CodecConfig(n=8, m=12, dim=8, hidden=32, residual=4)


@pytest.fixture(scope="module")
def model() -> PSIC:
    """Small, anchored, with triggers that answer."""
    torch.manual_seed(0)
    return awaken(PSIC.build(CONFIG)).eval()


@pytest.fixture(scope="module")
def y_hat() -> Tensor:
    return torch.randn(3, 12, 4, 5, generator=torch.Generator().manual_seed(1)).mul(4).round()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a, b, dim=0))


def no_secret(model: PSIC) -> PSIC:
    """What the attacker has."""
    stolen = PSIC.build(model.config)
    stolen.load_state_dict(model.state_dict())
    stolen.secret = None
    return stolen.eval()


# --- conditions -------------------------------------------------------------------------------------


def test_guessed_keys_are_seeded_directions():
    found = random_conditions(200, 16, seed=3)
    assert torch.allclose(found.norm(dim=1), torch.ones(200))
    assert found.mean(0).norm() < 0.2
    assert torch.equal(found, random_conditions(200, 16, seed=3))
    assert not torch.equal(found, random_conditions(200, 16, seed=4))


def test_between_has_its_ends_and_keeps_to_the_sphere():
    a, b = random_conditions(2, 8)
    assert torch.allclose(between(a, b, 0), a, atol=1e-6)
    assert torch.allclose(between(a, b, 1), b, atol=1e-6)
    half = between(a, b, 0.5)
    assert float(half.norm()) == pytest.approx(1, abs=1e-5)
    assert cosine(half, a) == pytest.approx(cosine(half, b), abs=1e-5)
    beyond = between(a, b, 1.5)
    assert float(beyond.norm()) == pytest.approx(1, abs=1e-5)
    angles = [torch.tensor(cosine(*pair)).acos() for pair in ((a, b), (b, beyond))]
    assert float(angles[1] / angles[0]) == pytest.approx(0.5, abs=1e-3)


# --- decoding ---------------------------------------------------------------------------------------


def test_a_program_without_triggers_needs_no_key(model: PSIC, y_hat: Tensor):
    full = model.synthesize(y_hat, model.full_condition())
    assert torch.equal(without_triggers(no_secret(model), y_hat, range(4)), full)
    none = without_triggers(model, y_hat, [])
    assert torch.allclose(none, model.synthesize(y_hat), atol=1e-5)
    one = [without_triggers(model, y_hat, [i]) for i in range(4)]
    assert all(not torch.allclose(x, y, atol=1e-4) for x in one for y in (none, full))
    assert not torch.allclose(one[0], one[1], atol=1e-4)
    assert not without_triggers(model, y_hat, [0]).requires_grad


@pytest.mark.parametrize("stages", [[4], [-1, 0]])
def test_a_trigger_that_is_not_there_is_refused(stages: list[int], model: PSIC, y_hat: Tensor):
    with pytest.raises(ValueError, match=f"no trigger {min(stages)}: this decoder has 4"):
        without_triggers(model, y_hat, stages)


# --- searches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", ["one owner", "another"])
def test_the_weights_alone_give_the_key_away(passphrase: str, model: PSIC):
    mine = no_secret(model)
    mine.secret = model.secret
    keys.rekey(mine, model.secret, keys.secret(passphrase))
    key = mine.full_condition()
    mine.secret = None
    found = solve(mine)
    assert torch.allclose(found.condition, key, atol=1e-4)
    assert found.residual < 1e-4
    assert found.evaluations > 1


def test_an_unanchored_model_cannot_be_solved():
    with pytest.raises(ValueError, match="unanchored"):
        solve(PSIC.build(replace(CONFIG, anchored=False)))


def test_an_untrained_model_has_nothing_to_solve():
    with pytest.raises(ValueError, match="untrained"):
        solve(PSIC.build(CONFIG))
