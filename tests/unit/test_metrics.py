"""Metrics against brute force, by hand, and by the laws that they must keep."""

import math

import pytest
import torch
from models import picture
from torch import Tensor

from psic_core.metrics import (
    attack_success_rate,
    balanced_accuracy,
    correct_at_k,
    psnr,
    recall_at_k,
    ssimulacra2,
)


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


# --- fidelity and rate ------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 5, 51, 255])
def test_psnr_of_a_constant_error_is_known(levels: int):
    x = torch.zeros(1, 3, 4, 5)
    assert psnr(x + levels / 255, x) == pytest.approx(20 * math.log10(255 / levels), abs=1e-4)


def test_psnr_sees_pictures_as_files_would_hold_them():
    x = torch.full((1, 3, 4, 4), 0.4)
    assert psnr(x + 0.4 / 255, x) == float("inf")  # rounds to the same level
    assert psnr(torch.full_like(x, 7.0), torch.ones_like(x)) == float("inf")  # clamped
    assert psnr(x, x) == float("inf")


# --- recall -----------------------------------------------------------------------------------------


def rank_by_sorting(scores: list[float], positives: list[bool]) -> int:
    """Rank of the best positive when negatives come first among equals, by an explicit sort."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], positives[i]))
    return next(rank for rank, i in enumerate(order) if positives[i])


def queries(seed: int, n: int = 40, items: int = 12, levels: int = 6) -> tuple[Tensor, Tensor]:
    """Scores of few levels, hence full of ties, and 1 to 5 positives a query."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (n, items), generator=rng).float() / levels
    count = torch.randint(1, 6, (n, 1), generator=rng)
    order = torch.rand(n, items, generator=rng).argsort(1).argsort(1)
    return scores, order < count


@pytest.mark.parametrize("k", [1, 2, 5, 11, 12])
@pytest.mark.parametrize("seed", range(3))
def test_recall_is_what_sorting_gives(seed: int, k: int):
    scores, positives = queries(seed)
    assert sorted(set(positives.sum(1).tolist())) == [1, 2, 3, 4, 5]
    expected = [rank_by_sorting(s, p) < k for s, p in zip(scores.tolist(), positives.tolist(), strict=True)]
    assert correct_at_k(scores, positives, k).tolist() == expected
    assert recall_at_k(scores, positives, k) == pytest.approx(sum(expected) / len(expected))


def test_a_tie_with_a_negative_counts_against_the_query():
    assert recall_at_k(torch.zeros(1, 4), flags(1, 0, 0, 0)[None], 1) == 0.0
    assert recall_at_k(torch.zeros(1, 4), flags(1, 0, 0, 0)[None], 4) == 1.0
    assert recall_at_k(torch.zeros(1, 4), flags(1, 1, 1, 1)[None], 1) == 1.0


@pytest.mark.parametrize(
    ("scores", "positives", "k", "says"),
    [
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), 0, "k=0.*3 items"),
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), 4, "k=4.*3 items"),
        (torch.zeros(2, 3), torch.tensor([[True, False, False], [False] * 3]), 1, "query 1 has no positive"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_recall_refuses(scores: Tensor, positives: Tensor, k: int, says: str):
    with pytest.raises(ValueError, match=says):
        recall_at_k(scores, positives, k)


# --- attack success rate ----------------------------------------------------------------------------


def sample(n: int, flip: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    before = torch.rand(n, generator=rng) < 0.7
    return before, before & (torch.rand(n, generator=rng) >= flip)


def test_asr_by_hand():
    before, after = flags(1, 1, 1, 1, 0, 0), flags(0, 1, 0, 0, 1, 0)
    found = attack_success_rate(before, after)
    assert (found.value, found.n) == (0.75, 4)  # what was wrong before does not count, whatever it is now


@pytest.mark.parametrize("flip", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("n", [40, 300])
def test_the_interval_holds_the_value_inside_zero_to_one(n: int, flip: float):
    found = attack_success_rate(*sample(n, flip))
    low, high = found.ci95
    assert 0 <= low <= found.value <= high <= 1
    assert low < high


def test_nothing_right_before_gives_nan_and_no_crash():
    found = attack_success_rate(flags(0, 0, 0), flags(1, 0, 1))
    assert math.isnan(found.value)
    assert all(map(math.isnan, found.ci95))
    assert found.n == 0


def test_groups_of_equal_samples_widen_the_interval_but_not_the_value():
    before, after = sample(80, 0.4)
    groups = torch.arange(80).repeat_interleave(5)
    before, after = before.repeat_interleave(5), after.repeat_interleave(5)
    naive = attack_success_rate(before, after)
    grouped = attack_success_rate(before, after, groups)
    assert grouped.value == naive.value
    ratio = (grouped.ci95[1] - grouped.ci95[0]) / (naive.ci95[1] - naive.ci95[0])
    assert ratio == pytest.approx(math.sqrt(5), rel=0.2)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("shape", [(4,), (3, 1)])
def test_asr_wants_one_flag_a_sample(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="one flag a sample"):
        attack_success_rate(flags(1, 0, 1), torch.ones(shape, dtype=torch.bool))


# --- balanced accuracy ------------------------------------------------------------------------------


def balanced_by_hand(predicted: list[bool], truth: list[bool]) -> float:
    """The mean share of right answers among the pictures that have the attribute and among those that do not."""
    shares = []
    for kind in (True, False):
        of_kind = [p == t for p, t in zip(predicted, truth, strict=True) if t is kind]
        shares.append(sum(of_kind) / len(of_kind) if of_kind else math.nan)
    return sum(shares) / 2


@pytest.mark.parametrize("seed", range(5))
def test_balanced_accuracy_is_what_a_loop_gives(seed: int):
    rng = torch.Generator().manual_seed(seed)
    rare = torch.tensor([0.02, 0.1, 0.5, 0.9, 0.0, 1.0])  # the last two have one kind only
    truth = torch.rand(30, 6, generator=rng) < rare
    predicted = torch.rand(30, 6, generator=rng) < 0.5
    expected = [balanced_by_hand(predicted[:, a].tolist(), truth[:, a].tolist()) for a in range(6)]
    found = balanced_accuracy(predicted, truth)
    assert (found.shape, found.dtype) == ((6,), torch.float64)
    assert found.tolist() == pytest.approx(expected, nan_ok=True)
    assert found.isnan()[4:].all()


def test_a_constant_answer_is_worth_one_half_however_rare_the_attribute():
    truth = torch.zeros(100, 2, dtype=torch.bool)
    truth[:3] = True
    says = torch.tensor([True, False]).expand(100, 2)
    assert balanced_accuracy(says, truth).tolist() == [0.5, 0.5]
    assert balanced_accuracy(truth, truth).tolist() == [1.0, 1.0]
    assert balanced_accuracy(~truth, truth).tolist() == [0.0, 0.0]


def test_ssimulacra2_is_100_for_equal_pictures_and_falls_with_noise():
    x = picture(64, 80)
    scores = [ssimulacra2((x + s * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1), x)
              for s in (0, 0.02, 0.1)]  # fmt: skip
    assert scores[0] == pytest.approx(100)
    assert scores[0] > scores[1] > scores[2]
