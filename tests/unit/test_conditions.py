"""Conditions without a key: interpolation, decoding with parts cut out, and searches that find the key's vector."""

from dataclasses import replace

import pytest
import torch
from models import awaken, picture
from torch import Tensor
from torch.nn import functional

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.lab.key_search import (
    Decoded,
    agreement,
    between,
    confidence,
    decode_watching,
    random_conditions,
    search,
    sharpness,
    smoothness,
    solve,
    without_triggers,
)
from psic_core.models.vlp import load_target

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


def test_between_interpolates_norms_and_goes_straight_from_no_keyword():
    a, b = random_conditions(2, 8)
    assert float(between(a, 3 * b, 0.25).norm()) == pytest.approx(1.5, abs=1e-5)
    assert torch.allclose(between(torch.zeros(8), b, 0.3), 0.3 * b)
    assert torch.allclose(between(b, torch.zeros(8), 2), -b)
    assert torch.allclose(between(b, b, 0.4), b)
    assert torch.allclose(between(b, -b, 0.5), torch.zeros(8), atol=1e-6)


# --- decoding ---------------------------------------------------------------------------------------


def test_decoding_is_the_models_own_and_sees_what_is_added(model: PSIC, y_hat: Tensor):
    (beta,) = random_conditions(1, 8)
    with torch.no_grad():
        seen = decode_watching(model, y_hat, beta)
        assert torch.allclose(seen.x_hat, model.synthesize(y_hat, beta), atol=1e-5)
        assert torch.allclose(decode_watching(model, y_hat).x_hat, model.synthesize(y_hat), atol=1e-5)
        first = model.g_s.triggers[0](y_hat, beta.expand(3, -1)) - y_hat
    expected = first.flatten(1).norm(dim=1) / y_hat.flatten(1).norm(dim=1)
    assert seen.added.shape == (3, 4)
    assert torch.allclose(seen.added[:, 0], expected, atol=1e-6)
    assert (seen.added > 1e-3).all()
    assert (decode_watching(model, y_hat, model.full_condition()).added < 1e-5).all()


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


# --- objectives -------------------------------------------------------------------------------------


def test_objectives_prefer_what_they_are_named_after():
    plain, rough = picture(32, 32), picture(32, 32) + 0.1 * torch.randn(1, 3, 32, 32)
    none, much = torch.zeros(1, 4), torch.ones(1, 4)
    assert sharpness(Decoded(rough, none)) < sharpness(Decoded(plain, none))
    assert smoothness(Decoded(plain, none)) < smoothness(Decoded(rough, none))
    assert agreement(Decoded(plain, none)) == 0
    assert agreement(Decoded(plain, much)) == 4


def test_sharpness_and_smoothness_by_hand():
    x = torch.zeros(1, 3, 3, 3)
    x[..., 1, 1] = 0.5  # its Laplacian is -2; four of twelve differences are 0.5
    assert float(sharpness(Decoded(x, x[:, 0]))) == pytest.approx(-4)
    assert float(smoothness(Decoded(x, x[:, 0]))) == pytest.approx(2 * 0.5 * 2 / 6)


def test_confidence_is_the_surprise_at_the_likeliest_text():
    target = load_target("tiny")
    x, texts = torch.rand(2, 3, 32, 32), target.encode_text(["a dog", "a cat", "a tree"])
    likeliest = target.probabilities(target.encode_image(x), texts).amax(1)
    value = confidence(target, texts)(Decoded(x, torch.zeros(2, 4)))
    assert float(value) == pytest.approx(float(-likeliest.log().mean()))


# --- searches ---------------------------------------------------------------------------------------


def test_agreement_finds_the_key_and_with_it_the_picture(model: PSIC, y_hat: Tensor):
    stolen, key = no_secret(model), model.full_condition()
    found = search(stolen, y_hat[:1], agreement, steps=80, restarts=2, rate=0.1)
    assert cosine(found.condition, key) > 0.995
    with torch.no_grad():
        full, near, wrong = (model.synthesize(y_hat, c) for c in (key, found.condition, torch.zeros(8)))
    assert (near - full).square().mean() < 0.01 * (wrong - full).square().mean()  # of files not searched on, too
    assert all(p.grad is None for p in stolen.parameters())


def test_a_search_reports_its_way(model: PSIC, y_hat: Tensor):
    found = search(model, y_hat, smoothness, steps=5, restarts=2, seed=7)
    assert found.trajectory.shape == (2, 5)
    assert found.path.shape == (2, 5, 8)
    assert torch.allclose(found.path[:, 0], random_conditions(2, 8, seed=7), atol=1e-6)
    assert torch.allclose(found.path.norm(dim=2), torch.ones(2, 5), atol=1e-5)
    assert found.value == found.trajectory.min()
    with torch.no_grad():
        assert float(smoothness(decode_watching(model, y_hat, found.condition))) == pytest.approx(found.value, rel=1e-5)
    assert found.value < found.trajectory[:, 0].min()


def test_off_the_sphere_the_norm_is_free(model: PSIC, y_hat: Tensor):
    found = search(model, y_hat, sharpness, steps=8, restarts=1, rate=0.3, sphere=False)
    assert abs(float(found.path[0, -1].norm()) - 1) > 0.05


@pytest.mark.parametrize("given", [{"steps": 0}, {"restarts": 0}])
def test_a_search_of_nothing_is_refused(given: dict, model: PSIC, y_hat: Tensor):
    with pytest.raises(ValueError, match="at least 1 of each"):
        search(model, y_hat, agreement, **given)


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


def test_a_solution_that_is_none_is_not_sold_as_one(model: PSIC):
    """A model that is not anchored to any condition: the residue says so."""
    broken = no_secret(model)
    with torch.no_grad():
        for trigger in broken.g_s.triggers:
            trigger.cltg.w_d.bias.add_(1)
    assert solve(broken, starts=1).residual > 0.1


def test_an_unanchored_model_cannot_be_solved():
    with pytest.raises(ValueError, match="unanchored"):
        solve(PSIC.build(replace(CONFIG, anchored=False)))


def test_an_untrained_model_has_nothing_to_solve():
    with pytest.raises(ValueError, match="untrained"):
        solve(PSIC.build(CONFIG))
