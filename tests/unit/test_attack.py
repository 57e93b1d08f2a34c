"""The attack on one batch: its pool of clean pairs, its masks, its wrong keys; no model is needed for that."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from psic_core import keys, objectives
from psic_core.config import TrainConfig
from psic_core.objectives import (
    attack_loss,
    authors_loss,
    naive_loss,
    uaeo_loss,
    wrong_conditions,
)
from psic_core.training.pairs import Pairs

INDEX = torch.tensor([7, 0, 4, 1])
CONFIG = TrainConfig(stage="one", pool=9, s=0.2, tau=0.5)


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
    calls, real = [], objectives.evidence.target_captions

    def spy(image: Tensor, text: Tensor, mask: Tensor, *args: object, **options: object) -> Tensor:
        answer = real(image, text, mask, *args, **options)
        calls.append({"image": image, "text": text, "mask": mask, "answer": answer, "args": args} | options)
        return answer

    monkeypatch.setattr(objectives.evidence, "target_captions", spy)
    return calls


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attacked(
    features: Tensor,
    pairs: Pairs,
    index: Tensor,
    config: TrainConfig,
    rng: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The attack over a pool drawn from the pairs, as the trainer draws it."""
    return attack_loss(features, pairs.pool(index, config.pool, rng), config, rng)


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
    assert call["args"][:2] == (0.2, 0.5)


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


def test_the_literal_objective_masks_nothing(pairs: Pairs, asked: list[dict]):
    attacked(unit(4, 16), pairs, INDEX, replace(CONFIG, objective="literal"), rng(0))
    assert not asked[0]["mask"].any()


def test_random_targets_are_others_captions_and_all_of_them(pairs: Pairs, asked: list[dict], monkeypatch):
    seen, config = [], replace(CONFIG, objective="random_target", pool=12)
    monkeypatch.setattr(objectives, "uaeo_loss", lambda f, t, target, *a: seen.append((t, target)) or f.sum())
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
