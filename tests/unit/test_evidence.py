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


def test_presets_are_those_of_their_sources():
    assert PRESETS == {"paper": (0.07, 1.0), "decl": (1.0, 0.1), "authors": (0.07, 0.1)}
    cos = cosines(4, 0)
    assert torch.equal(ev.evidence(cos), ev.evidence(cos, *PRESETS["paper"]))


@pytest.mark.parametrize(("s", "tau"), PAIRS)
@fast
@given(cos=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8))
def test_evidence_stays_within_its_bounds(s: float, tau: float, cos: list[float]):
    e = ev.evidence(torch.tensor([[c] for c in cos]), s, tau).double()
    inner = math.tanh(1 / s) / tau  # P1; float32 may round to the bound itself
    assert e.min() >= math.exp(-inner) * (1 - 2e-6)
    assert e.max() <= math.exp(inner) * (1 + 2e-6)
    assert e.max() <= math.exp(1 / tau) * (1 + 2e-6)


@pytest.mark.parametrize(("s", "tau"), PAIRS)
def test_more_similar_pairs_have_more_evidence(s: float, tau: float):
    cos = torch.linspace(-0.4, 0.4, 400)[:, None]
    assert (ev.evidence(cos, s, tau).diff(dim=0) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_evidence_is_float32_whatever_comes_in(dtype: torch.dtype):
    cos = cosines(6, 1).to(dtype)
    assert torch.equal(ev.evidence(cos), ev.evidence(cos.float()))
    assert ev.evidence(cos).dtype == torch.float32


def test_float16_keeps_the_order_that_its_own_tanh_would_lose():
    cos = torch.tensor([[0.50, 0.40, 0.36], [0.40, 0.50, 0.45], [0.36, 0.45, 0.50]]).half()
    naive = torch.tanh(cos / 0.07)
    assert (naive == 1).all()  # all equal: the arg min would be whatever stands first
    assert ev.least_believed(ev.bidirectional(ev.evidence(cos))).tolist() == [2, 0, 0]


def test_targets_of_float16_features_are_those_of_float32():
    generator = torch.Generator().manual_seed(2)
    features = torch.nn.functional.normalize(torch.randn(2, 40, 32, generator=generator), dim=-1)
    image, text = features.half()
    expected = ev.target_captions(image.float(), text.float())
    assert torch.equal(ev.target_captions(image, text), expected)


def test_saturation_warns_and_says_where():
    with pytest.warns(UnreliableEvidence, match=r"s=0\.01: 2 pairs"):
        ev.evidence(torch.tensor([[0.2, 0.3], [0.0, 0.01]]), s=0.01)


@pytest.mark.filterwarnings("error")
def test_one_saturated_pair_in_a_row_is_no_tie():
    ev.evidence(torch.tensor([[0.3, 0.0], [0.0, 0.3]]), s=0.01)
    ev.evidence(cosines(16, 3))


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
    assert ev.bidirectional(e, row_only=True).tolist() == [[1, 2], [5, 4]]
    # Columns have the means 3 and 3.
    third = ev.bidirectional(e, center=True) * 3
    assert torch.allclose(third, torch.tensor([[2.0, 7.0], [7.0, 8.0]]))
    assert torch.allclose(ev.bidirectional(e, row_only=True, center=True) * 3, e)


@fast
@batches
def test_combined_evidence_is_symmetric_within_its_bounds(k: int, seed: int):
    b = combined(k, seed)
    assert torch.equal(b, b.T)
    assert b.min() > 2 / math.e
    assert b.max() < 2 * math.e


@fast
@batches
def test_swapping_pictures_and_captions_changes_nothing(k: int, seed: int):
    e = ev.evidence(cosines(k, seed))
    b, swapped = ev.bidirectional(e), ev.bidirectional(e.T)
    assert torch.equal(b, swapped)
    assert torch.allclose(ev.belief(b), ev.belief(swapped), rtol=1e-6)  # sums in another order
    assert torch.equal(ev.least_believed(b), ev.least_believed(swapped))


def test_centring_frees_the_batch_of_a_caption_that_fits_nothing():
    e = ev.evidence(cosines(12, 5, scale=0.1) + 0.1)
    e[:, 7] = e[:, 7] * 0.1
    hub = ev.least_believed(ev.bidirectional(e, row_only=True))
    centred = ev.least_believed(ev.bidirectional(e, row_only=True, center=True))
    assert (hub == 7).sum() == 11  # everybody's but its own picture's
    assert (centred == 7).sum() < 6


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


def test_vacuity_of_the_paper_lies_between_the_printed_figures():
    low, high = torch.full((3, 3), 2 * math.e), torch.full((3, 3), 2 / math.e)
    assert ev.vacuity(low).tolist() == pytest.approx([0.1554] * 3, abs=1e-4)
    assert ev.vacuity(high).tolist() == pytest.approx([0.5761] * 3, abs=1e-4)


def test_strength_and_belief_by_hand():
    b = torch.tensor([[2.0, 7.0], [7.0, 8.0]])
    assert ev.strength(b).tolist() == [11, 17]
    assert torch.allclose(ev.belief(b), torch.tensor([[2 / 11, 7 / 11], [7 / 17, 8 / 17]]))
    assert torch.allclose(ev.vacuity(b), torch.tensor([2 / 11, 2 / 17]))


def test_uniform_similarities_believe_everything_alike():
    b = ev.bidirectional(ev.evidence(torch.full((5, 5), 0.2)))
    assert torch.allclose(ev.belief(b), b / (5 * (b + 1)))


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


@fast
@given(k=st.integers(2, 9), seed=st.integers(0, 10_000))
def test_permuting_the_batch_permutes_belief_and_targets(k: int, seed: int):
    cos = cosines(k, seed)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed + 1))
    b = ev.bidirectional(ev.evidence(cos))
    permuted = ev.bidirectional(ev.evidence(cos[order][:, order]))
    assert torch.equal(permuted, b[order][:, order])
    assert torch.allclose(ev.belief(permuted), ev.belief(b)[order][:, order], rtol=1e-6)
    assert torch.equal(order[ev.least_believed(permuted)], ev.least_believed(b)[order])


def test_raising_a_similarity_can_only_leave_the_target():
    cos = cosines(6, 11)
    before = ev.least_believed(ev.bidirectional(ev.evidence(cos)))
    for n in range(1, 6):
        raised = cos.clone()
        raised[0, n] += 0.2
        after = int(ev.least_believed(ev.bidirectional(ev.evidence(raised)))[0])
        assert after == before[0] or n == before[0]


def test_the_target_is_the_least_believed_and_not_the_own_caption():
    cos = torch.full((4, 4), 0.1) + 0.3 * torch.eye(4)
    b = ev.bidirectional(ev.evidence(cos))
    assert ev.belief(b).argmax(1).tolist() == [0, 1, 2, 3]  # the literal words of the paper
    assert ev.least_believed(b).tolist() == [1, 0, 0, 0]  # the first of equals


def test_a_badly_aligned_pair_does_not_get_its_own_caption():
    cos = torch.tensor([[-0.3, 0.1, 0.0], [0.1, 0.3, 0.0], [0.0, 0.0, 0.3]])
    b = ev.bidirectional(ev.evidence(cos))
    assert ev.least_believed(b).tolist()[0] == 2
    literal = torch.zeros(3, 3, dtype=torch.bool)
    assert ev.least_believed(b, literal).tolist()[0] == 0


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


def test_a_batch_of_one_points_to_itself():
    b = ev.bidirectional(ev.evidence(torch.tensor([[0.3]])))
    assert ev.least_believed(b).tolist() == [0]
    u = ev.belief(b).item()
    assert u == pytest.approx(b.item() / (b.item() + 1))
    assert 0.4239 < u < 0.8446


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
    for options in ({}, {"row_only": True}, {"center": True}, {"s": 0.2, "tau": 0.1}):
        chosen = ev.target_captions(image, text, **options)
        s, tau = options.pop("s", 0.07), options.pop("tau", 1.0)
        b = ev.bidirectional(ev.evidence(image.detach() @ text.T, s, tau), **options)
        assert torch.equal(chosen, ev.least_believed(b))
        assert not chosen.requires_grad
    everything = torch.ones(7, 7, dtype=torch.bool)
    assert ev.target_captions(image, text, everything).tolist() == list(range(7))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0), (2, 2, 2)])
def test_evidence_that_is_no_square_is_refused(shape: tuple[int, ...], unchecked_shapes: None):
    for function in (ev.bidirectional, ev.strength, ev.belief, ev.vacuity, ev.least_believed):
        with pytest.raises(ValueError, match=str(list(shape))[1:-1]):
            function(torch.ones(shape))


def test_mask_of_another_shape_is_refused(unchecked_shapes: None):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 3\)"):
        ev.least_believed(combined(3, 0), torch.zeros(2, 3, dtype=torch.bool))
