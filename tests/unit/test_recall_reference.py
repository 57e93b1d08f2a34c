"""Recall and attack success against implementations that are not ours, on random scores with ties.

CLIP-benchmark's `recall_at_k` counts the found positives of each query among the top k of `torch.topk`, which
breaks ties as it likes; above zero it says what R@k asks. A second reference sorts by hand, ties by a rule.
"""

import math

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_retrieval as clip_benchmark
from torch import Tensor

from psic_core.metrics import attack_success_rate, correct_at_k, count_flips, recall_at_k

SEEDS = range(12)


def case(seed: int, ties: bool) -> tuple[Tensor, Tensor]:
    """Scores of any size and 1 to 5 positives a query; with ties, a few levels only."""
    rng = torch.Generator().manual_seed(seed)
    n, items = (int(torch.randint(low, 40, (), generator=rng)) for low in (1, 6))
    # all numbers of a row differ where there are to be no ties
    scores = torch.stack([torch.randperm(items, generator=rng) for _ in range(n)]).double()
    if ties:
        scores = scores.remainder(int(torch.randint(1, 6, (), generator=rng)))
    count = torch.randint(1, 6, (n, 1), generator=rng)
    positives = torch.rand(n, items, generator=rng).argsort(1).argsort(1) < count
    return scores / items - 0.5, positives


def raised(scores: Tensor, chosen: Tensor) -> Tensor:
    """The chosen items a little ahead of their equals, and still behind all that were ahead of them."""
    return scores + chosen * 1e-9


def by_clip_benchmark(scores: Tensor, positives: Tensor, k: int) -> list[bool]:
    return (clip_benchmark.recall_at_k(scores, positives, k) > 0).tolist()


def by_sorting(scores: Tensor, positives: Tensor, k: int) -> list[bool]:
    """NumPy's sort by (score, whether negative): the negatives come first among equals."""
    found = []
    for row, right in zip(scores.numpy(), positives.numpy(), strict=True):
        order = np.lexsort((right, -row))
        found.append(bool(right[order[:k]].any()))
    return found


def ranks(scores: Tensor) -> list[int]:
    items = scores.shape[1]
    return sorted({1, 2, 5, items - 1, items})


# --- recall -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_without_ties_all_three_agree(seed: int):
    scores, positives = case(seed, ties=False)
    for k in ranks(scores):
        ours = correct_at_k(scores, positives, k).tolist()
        assert ours == by_clip_benchmark(scores, positives, k) == by_sorting(scores, positives, k)
        assert recall_at_k(scores, positives, k) == pytest.approx(sum(ours) / len(ours))


@pytest.mark.parametrize("seed", SEEDS)
def test_with_ties_ours_is_the_reference_with_negatives_ahead(seed: int):
    scores, positives = case(seed, ties=True)
    for k in ranks(scores):
        ours = correct_at_k(scores, positives, k).tolist()
        assert ours == by_clip_benchmark(raised(scores, ~positives), positives, k)
        assert ours == by_sorting(scores, positives, k)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_ties_ours_is_the_least_that_any_order_gives(seed: int):
    scores, positives = case(seed, ties=True)
    for k in ranks(scores):
        ours = correct_at_k(scores, positives, k).tolist()
        drawn = by_clip_benchmark(scores, positives, k)
        most = by_clip_benchmark(raised(scores, positives), positives, k)
        assert all(a <= b <= c for a, b, c in zip(ours, drawn, most, strict=True))


def test_the_cases_have_ties_that_matter_and_one_to_five_positives():
    differ, counts = 0, set()
    for seed in SEEDS:
        scores, positives = case(seed, ties=True)
        counts |= set(positives.sum(1).tolist())
        most = by_clip_benchmark(raised(scores, positives), positives, 1)
        differ += sum(a != b for a, b in zip(most, correct_at_k(scores, positives).tolist(), strict=True))
    assert counts == {1, 2, 3, 4, 5}
    assert differ > 50


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_shuffled_gallery_changes_nothing(seed: int, ties: bool):
    scores, positives = case(seed, ties)
    rng = torch.Generator().manual_seed(seed + 100)
    items, asked = torch.randperm(scores.shape[1], generator=rng), torch.randperm(len(scores), generator=rng)
    for k in ranks(scores):
        ours = correct_at_k(scores, positives, k)
        assert torch.equal(correct_at_k(scores[:, items], positives[:, items], k), ours)
        assert torch.equal(correct_at_k(scores[asked], positives[asked], k), ours[asked])


# --- attack success ---------------------------------------------------------------------------------


def versions(seed: int, ties: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What is right before and after an attack that changes some scores, and whose each sample is."""
    scores, positives = case(seed, ties)
    rng = torch.Generator().manual_seed(seed + 1000)
    attacked = scores + 0.5 * torch.randn(scores.shape, generator=rng)
    groups = torch.randint(5, (len(scores),), generator=rng)
    return correct_at_k(scores, positives, 2), correct_at_k(attacked, positives, 2), groups


def by_a_loop(before: Tensor, after: Tensor, groups: Tensor, seed: int) -> tuple[float, tuple[float, float]]:
    """The rate, and a bootstrap over groups, in plain Python and NumPy with other random numbers."""
    pairs = list(zip(before.tolist(), after.tolist(), groups.tolist(), strict=True))
    flipped = [sum(b and not a for b, a, g in pairs if g == group) for group in sorted(set(groups.tolist()))]
    right = [sum(b for b, _, g in pairs if g == group) for group in sorted(set(groups.tolist()))]
    rng, rates = np.random.default_rng(seed), []
    for _ in range(4000):
        drawn = rng.integers(len(right), size=len(right))
        below = sum(right[i] for i in drawn)
        rates += [sum(flipped[i] for i in drawn) / below] if below else []
    low, high = np.quantile(rates, [0.025, 0.975])
    return sum(flipped) / sum(right), (low, high)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_attack_success_is_what_a_loop_gives(seed: int, ties: bool):
    before, after, groups = versions(seed, ties)
    found = attack_success_rate(before, after, groups, resamples=4000)
    assert found.n == int(before.sum())
    if not before.any():
        assert math.isnan(found.value)
        return
    value, ci95 = by_a_loop(before, after, groups, seed)
    assert found.value == pytest.approx(value)
    assert found.ci95 == pytest.approx(ci95, abs=0.06)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_version_has_no_attack_success_against_itself(seed: int, ties: bool):
    before, _, groups = versions(seed, ties)
    found = attack_success_rate(before, before.clone(), groups)
    if before.any():
        assert (found.value, found.ci95, found.n) == (0.0, (0.0, 0.0), int(before.sum()))
    else:
        assert (math.isnan(found.value), found.n) == (True, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_where_nothing_was_right_the_rate_is_no_number(seed: int):
    scores, positives = case(seed, ties=True)
    hopeless = correct_at_k(torch.where(positives, -1.0, scores), positives)  # every negative is ahead
    has_negatives = ~positives.all(1)
    assert not hopeless[has_negatives].any()
    _, after, groups = versions(seed, ties=True)
    found = attack_success_rate(torch.zeros_like(after), after, groups)
    assert math.isnan(found.value)
    assert all(map(math.isnan, found.ci95))
    assert found.n == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_samples_does_not_count(seed: int):
    before, after, groups = versions(seed, ties=True)
    order = torch.randperm(len(before), generator=torch.Generator().manual_seed(seed))
    one, two = count_flips(before, after, groups), count_flips(before[order], after[order], groups[order])
    assert torch.equal(one.right, two.right)
    assert torch.equal(one.flipped, two.flipped)
