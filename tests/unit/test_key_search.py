"""Conditions without a key: guesses, and equations that give the key."""

from dataclasses import replace

import pytest
import torch
from models import awaken

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.lab.rivals import random_conditions, solve

CONFIG = CodecConfig(n=8, m=12, dim=8, hidden=32, ladder=4)


@pytest.fixture(scope="module")
def model() -> PSIC:
    """Small, anchored, with triggers that answer."""
    torch.manual_seed(0)
    return awaken(PSIC.build(CONFIG)).eval()


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
    assert found.evaluations > 1


def test_an_unanchored_model_cannot_be_solved():
    with pytest.raises(ValueError, match="unanchored"):
        solve(PSIC.build(replace(CONFIG, anchored=False)))


def test_an_untrained_model_has_nothing_to_solve():
    with pytest.raises(ValueError, match="untrained"):
        solve(PSIC.build(CONFIG))
