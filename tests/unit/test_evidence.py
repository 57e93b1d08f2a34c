"""Evidence, Eq. 5 to 8: the algebra that the equations promise, and what they leave open."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psic_core import evidence as ev
from psic_core.evidence import PRESETS, UnreliableEvidence

PAIRS = [pytest.param(*preset, id=name) for name, preset in PRESETS.items()]


def cosines(k: int, seed: int, scale: float = 0.35) -> Tensor:
    """Similarities as CLIP gives them: spread over +-scale, all different."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(k, k, generator=generator) * 2 - 1) * scale


def combined(k: int, seed: int, s: float = 0.07, tau: float = 1.0) -> Tensor:
    return ev.bidirectional(ev.evidence(cosines(k, seed), s, tau))


batches = given(k=st.integers(1, 9), seed=st.integers(0, 10_000))
fast = settings(max_examples=40)


# --- Eq. 5: evidence -------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "tau"), PAIRS)
def test_evidence_is_the_printed_formula(s: float, tau: float):
    cos = torch.tensor([[-1.0], [-0.3], [0.0], [0.02], [0.31], [1.0]])
    expected = [math.exp(math.tanh(c / s) / tau) for (c,) in cos.tolist()]
    assert ev.evidence(cos, s, tau)[:, 0].tolist() == pytest.approx(expected, rel=3e-6)


def test_float16_keeps_the_order_that_its_own_tanh_would_lose():
    cos = torch.tensor([[0.50, 0.40, 0.36], [0.40, 0.50, 0.45], [0.36, 0.45, 0.50]]).half()
    naive = torch.tanh(cos / 0.07)
    assert (naive == 1).all()  # all equal: the arg min would be whatever stands first
    assert ev.least_believed(ev.bidirectional(ev.evidence(cos))).tolist() == [2, 0, 0]


def test_saturation_warns_and_says_where():
    with pytest.warns(UnreliableEvidence, match=r"s=0\.01: 2 pairs"):
        ev.evidence(torch.tensor([[0.2, 0.3], [0.0, 0.01]]), s=0.01)


@pytest.mark.parametrize(
    ("s", "tau", "says"),
    [
        (0.0, 1.0, "s=0.0"),
        (-0.07, 1.0, "s=-0.07"),
        (0.07, 0.0, "tau=0.0"),
        (0.07, -1.0, "tau=-1.0"),
        (math.nan, 1.0, "s=nan"),
        (0.07, math.nan, "tau=nan"),
        (0.07, 0.01, "tau=0.01"),  # exp(100) is infinite in float32: every large b would tie
    ],
)
def test_bad_temperature_is_refused(s: float, tau: float, says: str):
    with pytest.raises(ValueError, match=says):
        ev.evidence(torch.full((2, 2), 0.3), s, tau)


# --- Eq. 6: both directions ------------------------------------------------------------------------


def test_bidirectional_adds_row_and_column():
    e = torch.tensor([[1.0, 2.0], [5.0, 4.0]])
    assert ev.bidirectional(e).tolist() == [[2, 7], [7, 8]]


# --- Eq. 7: belief, strength, vacuity --------------------------------------------------------------


@pytest.mark.parametrize(("s", "tau"), PAIRS)
@fast
@batches
def test_belief_and_vacuity_share_all_mass(s: float, tau: float, k: int, seed: int):
    b = combined(k, seed, s, tau)
    whole = ev.belief(b).sum(1) + ev.vacuity(b)
    assert torch.allclose(whole, torch.ones(k), rtol=0, atol=2e-6)
    assert (ev.belief(b).sum(1) < 1 + 1e-6).all()
    # P3: within bounds that do not depend on K.
    assert (ev.vacuity(b) > 1 / (1 + 2 * math.exp(1 / tau)) * (1 - 1e-5)).all()
    assert (ev.vacuity(b) < 1 / (1 + 2 * math.exp(-1 / tau)) * (1 + 1e-5)).all()


def test_strength_and_belief_by_hand():
    b = torch.tensor([[2.0, 7.0], [7.0, 8.0]])
    assert ev.strength(b).tolist() == [11, 17]
    assert torch.allclose(ev.belief(b), torch.tensor([[2 / 11, 7 / 11], [7 / 17, 8 / 17]]))
    assert torch.allclose(ev.vacuity(b), torch.tensor([2 / 11, 2 / 17]))


# --- Eq. 8: the target -----------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "tau"), PAIRS)
@fast
@given(k=st.integers(2, 9), seed=st.integers(0, 10_000))
def test_the_normaliser_never_changes_the_target(s: float, tau: float, k: int, seed: int):
    e = ev.evidence(cosines(k, seed), s, tau)
    b = ev.bidirectional(e)
    own = torch.eye(k, dtype=torch.bool)
    u, both = ev.belief(b), e + e.T
    chosen = ev.least_believed(b)
    assert torch.equal(chosen, both.masked_fill(own, torch.inf).argmin(1))
    assert torch.equal(chosen, ev.least_believed(u))
    rows = torch.arange(k)
    assert (u[rows, chosen][:, None] <= u.masked_fill(own, torch.inf)).all()


def test_the_target_is_the_least_believed_and_not_the_own_caption():
    cos = torch.full((4, 4), 0.1) + 0.3 * torch.eye(4)
    b = ev.bidirectional(ev.evidence(cos))
    assert ev.belief(b).argmax(1).tolist() == [0, 1, 2, 3]  # the literal words of the paper
    assert ev.least_believed(b).tolist() == [1, 0, 0, 0]  # the first of equals


def test_equal_captions_are_masked():
    captions = ["A cat", "a dog", " a CAT ", "a bird"]
    mask = ev.same_caption(captions)
    assert mask.tolist() == [
        [True, False, True, False],
        [False, True, False, False],
        [True, False, True, False],
        [False, False, False, True],
    ]
    cos = torch.full((4, 4), 0.2)
    cos[0, 2] = cos[2, 0] = -0.3  # least believed of all, yet the same words
    cos[0, 1] = 0.1
    b = ev.bidirectional(ev.evidence(cos))
    assert ev.least_believed(b).tolist()[0] == 2
    assert ev.least_believed(b, mask).tolist() == [1, 0, 1, 0]


def test_a_row_that_is_masked_whole_points_to_itself():
    mask = ev.same_caption(["a cat"] * 3)
    assert mask.all()
    assert ev.least_believed(combined(3, 4), mask).tolist() == [0, 1, 2]
    part = torch.eye(3, dtype=torch.bool)
    part[2] = True
    chosen = ev.least_believed(combined(3, 4), part).tolist()
    assert chosen[2] == 2
    assert chosen[0] != 0
    assert chosen[1] != 1


def test_targets_chain_the_equations_and_keep_no_gradient():
    generator = torch.Generator().manual_seed(6)
    image, text = torch.nn.functional.normalize(torch.randn(2, 7, 16, generator=generator), dim=-1)
    image.requires_grad_()
    for options in ({}, {"s": 0.2, "tau": 0.1}):
        chosen = ev.target_captions(image, text, **options)
        b = ev.bidirectional(ev.evidence(image.detach() @ text.T, options.get("s", 0.07), options.get("tau", 1.0)))
        assert torch.equal(chosen, ev.least_believed(b))
        assert not chosen.requires_grad
    everything = torch.ones(7, 7, dtype=torch.bool)
    assert ev.target_captions(image, text, everything).tolist() == list(range(7))
