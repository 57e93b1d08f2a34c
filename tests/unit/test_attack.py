"""The attack on one batch: its pool of clean pairs, its masks, its wrong keys; no model is needed for that."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from models import awaken
from torch import Tensor
from torch.nn import functional

from psic_core import attack, keys
from psic_core.attack import at_angle, attack_loss, pull, seeker, training_conditions, wrong_conditions
from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.objectives import authors_loss, naive_loss, questions_loss, uaeo_loss
from psic_core.pairs import Pairs

INDEX = torch.tensor([7, 0, 4, 1])
CONFIG = TrainConfig(stage="one", pool=9, s=0.2, tau=0.5, center=True)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Twelve pictures with two captions each; pictures 0 and 1 share both."""
    text, ids = unit(12, 2, 16, seed=1), torch.arange(24).reshape(12, 2)
    text[1], ids[1] = text[0], ids[0]
    captions = [("not", "read")] * 12
    return Pairs(torch.zeros(12, 3, 16, 16, dtype=torch.uint8), captions, unit(12, 16), text, ids)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Every call of Eq. 5 to 8, with its answer."""
    calls, real = [], attack.evidence.targets

    def spy(image: Tensor, text: Tensor, mask: Tensor, *args: object, **options: object) -> Tensor:
        answer = real(image, text, mask, *args, **options)
        calls.append({"image": image, "text": text, "mask": mask, "answer": answer, "args": args} | options)
        return answer

    monkeypatch.setattr(attack.evidence, "targets", spy)
    return calls


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attacked(
    features: Tensor,
    pairs: Pairs,
    index: Tensor,
    config: TrainConfig,
    rng: torch.Generator,
    answers: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The attack over a pool drawn from the pairs, as the trainer draws it."""
    return attack_loss(features, pairs.pool(index, config.pool, rng), config, rng, answers)


# --- the pool ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_targets_come_from_clean_cached_features_with_the_batch_first(seed: int, pairs: Pairs, asked: list[dict]):
    attacked(unit(4, 16, seed=5), pairs, INDEX, CONFIG, rng(seed))
    (call,) = asked
    assert call["image"].shape == call["text"].shape == (9, 16)
    assert torch.equal(call["image"][:4], pairs.image_features[INDEX])  # of the clean pictures, not what is attacked
    own = (call["text"][:4, None] == pairs.text_features[INDEX]).all(2).any(1)
    assert own.all()  # row i is one of the captions of picture i
    assert len(call["image"].unique(dim=0)) == 9  # no picture twice
    assert (call["args"], call["center"]) == ((0.2, 0.5), True)


def test_the_own_caption_is_never_the_target(pairs: Pairs, asked: list[dict]):
    for seed in range(20):
        attacked(unit(4, 16), pairs, INDEX, replace(CONFIG, pool=12), rng(seed))
        call = asked[-1]
        assert call["mask"].diagonal().all()
        assert not call["mask"][torch.arange(12), call["answer"]].any()


def test_equal_captions_of_other_pictures_are_masked(pairs: Pairs, asked: list[dict]):
    found = []
    for seed in range(20):
        attacked(unit(4, 16), pairs, INDEX, CONFIG, rng(seed))
        call = asked[-1]  # pictures 0 and 1 stand in rows 1 and 3
        found.append(torch.equal(call["text"][1], call["text"][3]))
        expected = torch.eye(9, dtype=torch.bool)
        expected[1, 3] = expected[3, 1] = found[-1]
        assert torch.equal(call["mask"], expected)
    assert set(found) == {True, False}  # both cases were seen


@pytest.mark.parametrize(("pool", "size"), [(1, 4), (4, 4), (5, 5), (12, 12), (500, 12)])
def test_a_small_pool_is_the_batch_and_a_large_one_all_pairs(pool: int, size: int, pairs: Pairs, asked: list[dict]):
    attacked(unit(4, 16), pairs, INDEX, replace(CONFIG, pool=pool), rng(0))
    assert len(asked[0]["text"]) == size


def test_the_generator_decides_and_the_global_one_does_not(pairs: Pairs):
    features = unit(4, 16)
    first, _ = attacked(features, pairs, INDEX, CONFIG, rng(1))
    torch.manual_seed(99)
    again, _ = attacked(features, pairs, INDEX, CONFIG, rng(1))
    other, _ = attacked(features, pairs, INDEX, CONFIG, rng(2))
    assert first == again
    assert first != other


# --- the loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["i2t", "both"])
def test_the_loss_is_uaeo_over_the_pool(direction: str, pairs: Pairs, asked: list[dict]):
    features = unit(4, 16, seed=5)
    loss, row = attacked(features, pairs, INDEX, replace(CONFIG, direction=direction), rng(0))
    call = asked[0]
    assert loss == uaeo_loss(features, call["text"], call["answer"][:4], 0.2, direction)
    assert row["l_uc"] == pytest.approx(loss.item())
    assert row["cos_own"] == pytest.approx((features * call["text"][:4]).sum(1).mean().item(), abs=1e-6)
    assert row["distinct_targets"] == len(set(call["answer"][:4].tolist())) / 4


def test_the_naive_objective_is_the_similarity_to_the_own_caption(pairs: Pairs, asked: list[dict]):
    features = unit(4, 16, seed=5)
    loss, row = attacked(features, pairs, INDEX, CONFIG, rng(0))
    text = asked[0]["text"][:4]
    naive, logged = attacked(features, pairs, INDEX, replace(CONFIG, objective="naive"), rng(0))
    assert naive == naive_loss(features, text)
    assert logged == {"cos_own": row["cos_own"]}
    assert loss != naive


def test_questions_add_their_weight(pairs: Pairs):
    features, answers = unit(4, 16, seed=5), unit(3, 2, 16, seed=6)
    plain, _ = attacked(features, pairs, INDEX, CONFIG, rng(0))
    loss, row = attacked(features, pairs, INDEX, replace(CONFIG, questions=3.0), rng(0), answers)
    asked = questions_loss(features, pairs.image_features[INDEX], answers, 0.2)
    assert float(loss) == pytest.approx(float(plain + 3 * asked))
    assert row["l_questions"] == pytest.approx(float(asked))


def test_the_literal_objective_masks_nothing(pairs: Pairs, asked: list[dict]):
    attacked(unit(4, 16), pairs, INDEX, replace(CONFIG, objective="literal"), rng(0))
    assert not asked[0]["mask"].any()


def test_random_targets_are_others_captions_and_all_of_them(pairs: Pairs, asked: list[dict], monkeypatch):
    seen, config = [], replace(CONFIG, objective="random_target", pool=12)
    monkeypatch.setattr(attack, "uaeo_loss", lambda f, t, target, *a: seen.append((t, target)) or f.sum())
    drawn = set()
    for seed in range(60):
        attacked(unit(4, 16), pairs, INDEX, config, rng(seed))
        text, target = seen[-1]
        assert (target != torch.arange(4)).all()
        equal = (text[target] == text[:4]).all(1)
        assert not equal.any()  # an equal caption of another picture is no other caption
        drawn |= set(target.tolist())
    assert asked == []  # no evidence is asked
    assert drawn == set(range(12))


def test_a_pool_of_equal_captions_pulls_to_the_own(pairs: Pairs, monkeypatch):
    seen = []
    monkeypatch.setattr(attack, "uaeo_loss", lambda f, t, target, *a: seen.append(target) or f.sum())
    config = replace(CONFIG, objective="random_target", pool=2)
    same = replace(pairs, caption_ids=torch.zeros_like(pairs.caption_ids))
    attacked(unit(2, 16), same, INDEX[:2], config, rng(0))
    assert seen[0].max() < 2


@pytest.mark.parametrize(("preset", "s", "tau"), [("none", 0.2, 0.5), ("decl", 1.0, 0.1), ("authors", 0.07, 0.1)])
def test_a_preset_sets_both_temperatures_of_the_evidence(preset, s, tau, pairs: Pairs, asked: list[dict]):
    loss, _ = attacked(unit(4, 16, seed=5), pairs, INDEX, replace(CONFIG, preset=preset, row_only=True), rng(0))
    assert asked[0]["args"] == (s, tau)
    assert asked[0]["row_only"]
    again = uaeo_loss(unit(4, 16, seed=5), asked[0]["text"], asked[0]["answer"][:4], 0.2, CONFIG.direction)
    assert loss == again  # Eq. 9 keeps its own s


@pytest.mark.parametrize(("stage", "harmonic"), [("one", False), ("two", True)])
def test_the_authors_objective_has_its_own_batch(stage: str, harmonic: bool, pairs: Pairs):
    features, config = unit(4, 16, seed=5), replace(CONFIG, objective="authors", stage=stage)
    loss, row = attacked(features, pairs, INDEX, config, rng(0))
    chosen = itertools.product(range(2), repeat=4)  # one caption of each picture was drawn
    assert any(authors(features, pairs, list(choice), harmonic) == loss for choice in chosen)
    assert set(row) == {"cos_own"}


def authors(features: Tensor, pairs: Pairs, choice: list[int], harmonic: bool) -> Tensor:
    text = pairs.text_features[INDEX, torch.tensor(choice)]
    return authors_loss(features, pairs.image_features[INDEX], text, harmonic=harmonic)


def test_gradients_reach_every_picture_of_the_batch(pairs: Pairs):
    features = unit(4, 16).requires_grad_()
    attacked(features, pairs, INDEX, CONFIG, rng(0))[0].backward()
    assert (features.grad.norm(dim=1) > 0).all()


def test_pull_is_the_gradients_norm_at_the_picture():
    x_hat = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    term = (x_hat**2).sum()  # gradient 2 x = 1 at each of twelve places
    assert pull(term, x_hat) == pytest.approx(math.sqrt(12))
    term.backward()  # the graph is still there


# --- wrong keys -------------------------------------------------------------------------------------


def test_wrong_conditions_are_none_or_random_directions_and_never_the_secret():
    beta = wrong_conditions(400, 16, rng(0))
    norms = beta.norm(dim=1)
    none = norms == 0
    assert torch.allclose(norms[~none], torch.ones(int((~none).sum())))
    assert 0.4 < none.float().mean() < 0.6
    assert (beta @ keys.condition(keys.secret("psic course"), 16)).max() < 0.95
    assert len(beta[~none].unique(dim=0)) == int((~none).sum())
    assert beta[~none].mean(0).norm() < 0.2  # all directions alike
    assert torch.equal(beta, wrong_conditions(400, 16, rng(0)))


KEY = keys.condition(keys.secret("psic course"), 16)


def angles(beta: Tensor, key: Tensor = KEY) -> Tensor:
    """To the key, in degrees, of those that are not zero."""
    beta = beta[beta.any(1)]
    assert torch.allclose(beta.norm(dim=1), torch.ones(len(beta)))
    return torch.rad2deg((beta @ key).clamp(-1, 1).acos())


def test_without_negatives_nothing_else_is_drawn():
    """What shipped models were trained with: one normal vector and one uniform number each, in this order."""
    mine, generator = rng(3), rng(3)
    direction = functional.normalize(torch.randn(40, 16, generator=mine), dim=1)
    expected = torch.where(torch.rand(40, 1, generator=mine) < 0.5, 0, direction)
    assert torch.equal(wrong_conditions(40, 16, generator), expected)
    assert torch.equal(mine.get_state(), generator.get_state())


def test_negatives_stand_near_the_key_but_not_at_it():
    found = wrong_conditions(2000, 16, rng(0), 1.0, KEY)
    near = angles(found)
    assert 900 < len(near) < 1100  # no keyword stays half of all
    assert near.min() > 14.99
    assert near.max() < 75.01
    assert near.mean() == pytest.approx(45, abs=2)
    assert near.std() == pytest.approx(60 / 12**0.5, abs=1)  # uniform
    aside = functional.normalize(found[found.any(1)] - (found[found.any(1)] @ KEY)[:, None] * KEY, dim=1)
    assert aside.mean(0).norm() < 0.1  # on all sides of the key


def test_negatives_of_no_key_are_refused():
    with pytest.raises(ValueError, match=r"near 0.5.*pass key"):
        wrong_conditions(4, 16, rng(0), 0.5)


def test_the_share_is_of_the_directions():
    plain, mixed = wrong_conditions(2000, 16, rng(0)), wrong_conditions(2000, 16, rng(0), 0.25, KEY)
    changed = (plain != mixed).any(1)
    assert 0.2 < changed.sum() / plain.any(1).sum() < 0.3
    assert angles(mixed[changed]).max() < 75.01
    assert not plain.any(1).logical_xor(mixed.any(1)).any()


def test_searched_negatives_add_less_and_stop_short_of_the_key():
    torch.manual_seed(0)
    model = awaken(PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=32, residual=4)))
    key = model.full_condition()
    start = at_angle(functional.normalize(torch.randn(50, 16), dim=1), key, torch.full((50, 1), 1.2))
    added = [
        attack._added(model, beta, key).mean() for beta in (start, seeker(model, 3)(start), seeker(model, 40)(start))
    ]
    assert added[0] > added[1] > added[2]
    assert angles(seeker(model, 3)(start), key).max() > 20
    far = angles(seeker(model, 40)(start), key)
    assert far.min() > 14.99  # the search would end at the key: it must decode full
    assert far.median() < 20
    assert all(p.grad is None for p in model.parameters())


def test_a_phase_gets_the_conditions_that_it_asks_for():
    torch.manual_seed(0)
    model = awaken(PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=32, residual=4)))
    key = model.full_condition()
    default = training_conditions(model, CONFIG, 30, rng(1))
    assert torch.equal(default, wrong_conditions(30, 16, rng(1)))
    near = training_conditions(model, replace(CONFIG, negatives=1.0), 30, rng(1))
    assert torch.equal(near, wrong_conditions(30, 16, rng(1), 1.0, key))
    with torch.no_grad():
        sought = training_conditions(model, replace(CONFIG, negatives=1.0, searched=4), 30, rng(1))
    assert angles(sought, key).mean() < angles(near, key).mean() - 3
    assert not sought.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 1.5}, "negatives 1.5.*0 to 1"),
        ({"negatives": -0.1}, "negatives -0.1"),
        ({"searched": 3}, "searched 3.*negatives above 0"),
        ({"negatives": 0.5, "searched": -1}, "searched -1"),
    ],
)
def test_negatives_that_make_no_sense_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)
