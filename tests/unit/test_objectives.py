"""Losses: rate-distortion, UAEO (Eq. 9), naive; each by hand and by what its algebra promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from psic_core.objectives import authors_loss, grid_mse, naive_loss, rate_distortion_loss, uaeo_loss

# Similarities whose softmax is a ratio of whole numbers: c = s ln w, three pictures by four captions.
WEIGHTS = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 3.0], [3.0, 1.0, 1.0, 1.0]])
CAPTIONS = torch.eye(4)
TARGET = torch.tensor([0, 3, 3])

fast = settings(max_examples=40)


def unit(rows: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)


# --- UAEO ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [0.07, 0.5])
def test_uaeo_by_hand(s: float):
    loss = uaeo_loss(WEIGHTS.log() * s, CAPTIONS, TARGET, s)
    # Rows sum to 10, 8, 6: (ln 10/1 + ln 8/3 + ln 6/1) / 3.
    assert loss.item() == pytest.approx(math.log(160) / 3, rel=1e-5)


@pytest.mark.parametrize("s", [0.07, 0.5])
def test_uaeo_in_both_directions_by_hand(s: float):
    loss = uaeo_loss(WEIGHTS.log() * s, CAPTIONS, TARGET, s, direction="both")
    # Caption 0 over pictures (1, 2, 3): ln 6. Caption 3 over (4, 3, 1), where the last two pictures
    # are both right: (ln 8/3 + ln 8/1) / 2, once for each of them.
    by_text = (math.log(6) + 2 * (math.log(8 / 3) + math.log(8)) / 2) / 3
    assert loss.item() == pytest.approx((math.log(160) / 3 + by_text) / 2, rel=1e-5)


@fast
@given(k=st.integers(1, 9), batch=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_gradient_of_the_logits_is_softmax_minus_one_hot(k: int, batch: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(batch, k, generator=generator)).requires_grad_()
    target = torch.randint(k, (batch,), generator=generator)
    uaeo_loss(logits, torch.eye(k), target, s=1.0).backward()
    expected = (logits.detach().softmax(1) - functional.one_hot(target, k)) / batch
    assert torch.allclose(logits.grad, expected, atol=1e-6)
    assert torch.allclose(logits.grad.sum(1), torch.zeros(batch), atol=1e-6)


@pytest.mark.parametrize("target", [[0, 1, 4], [0, -1, 2], [-100, 0, 0]])
def test_target_that_is_no_caption_is_refused(target: list[int]):
    with pytest.raises(ValueError, match=rf"{target[-1]}\] points outside the 4 captions"):
        uaeo_loss(WEIGHTS, CAPTIONS, torch.tensor(target))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"s": 0.0}, "s=0.0"), ({"s": -1.0}, "s=-1.0"), ({"direction": "t2i"}, "t2i")],
)
def test_bad_option_of_uaeo_is_refused(options: dict, says: str, unchecked_shapes: None):
    with pytest.raises(ValueError, match=says):
        uaeo_loss(WEIGHTS, CAPTIONS, TARGET, **options)


# --- naive -----------------------------------------------------------------------------------------


def test_authors_loss_of_clean_pairs_is_the_naive_one():
    text = torch.eye(4)[:3]
    x_hat = unit(3, 4, 1)
    cosine = naive_loss(x_hat, text)
    assert authors_loss(x_hat, text, text) == pytest.approx(float(cosine))
    assert authors_loss(x_hat, text, text, harmonic=False) == pytest.approx(10 * float(cosine))


def test_authors_loss_pulls_noisy_pairs_both_ways():
    text = torch.eye(3)
    clean = text[[1, 2, 0]]  # no picture fits its own caption
    x_hat, s = unit(3, 3, 1), 0.5
    logits = x_hat @ text.T / s
    sym = (clean @ text.T + (clean @ text.T).T) / 2
    target = sym.argmin(1)  # monotone in the evidence; the own caption is the least likely one, and not excluded
    assert target.tolist() == [0, 1, 2]
    both = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    assert authors_loss(x_hat, clean, text, s) == pytest.approx(float(both / 2))


@pytest.mark.parametrize("harmonic", [True, False])
def test_authors_loss_of_both_kinds(harmonic: bool):
    text = torch.eye(4)
    clean = text[[0, 1, 3, 2]]  # two fit, two do not
    x_hat, s = functional.normalize(unit(4, 4, 2).abs(), dim=1), 0.3
    logits, noisy = x_hat @ text.T / s, torch.tensor([2, 3])
    target = ((clean @ text.T + clean.T @ text) / 2).argmin(1)[noisy]
    c = float((x_hat * text).sum(1)[:2].mean())
    n = float(functional.cross_entropy(logits[noisy], target) + functional.cross_entropy(logits.T[noisy], target)) / 2
    wanted = 2 * c * n / (c + n) if harmonic else 10 * c + n
    assert float(authors_loss(x_hat, clean, text, s, harmonic=harmonic)) == pytest.approx(wanted, rel=1e-5)


def test_naive_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8]], requires_grad=True)
    text = torch.tensor([[0.6, 0.8], [0.0, -1.0]])
    loss = naive_loss(image, text)
    assert loss.item() == pytest.approx((0.6 - 0.8) / 2)
    loss.backward()
    assert torch.allclose(image.grad, text / 2)


# --- rate and distortion ---------------------------------------------------------------------------


def test_rate_distortion_by_hand_counts_z_too():
    x = torch.full((1, 3, 2, 4), 0.5)
    likelihoods = {"y": torch.full((1, 2, 1, 4), 0.5), "z": torch.full((1, 4, 1, 1), 0.25)}
    rd = rate_distortion_loss(x + 0.1, x, likelihoods, lmbda=0.01)
    # y: 8 x 1 bit, z: 4 x 2 bits, on 8 pixels; 0.01 x 65025 x 0.01.
    assert rd.bpp.item() == pytest.approx(2)
    assert rd.mse.item() == pytest.approx(0.01, rel=1e-5)
    assert rd.loss.item() == pytest.approx(6.5025 + 2, rel=1e-5)
    y_alone = rate_distortion_loss(x + 0.1, x, {"y": likelihoods["y"]}, lmbda=0.01)
    assert y_alone.bpp.item() == pytest.approx(1)


# --- grids ------------------------------------------------------------------------------------------


def test_a_grid_counts_where_the_picture_is_flat_and_noise_does_not():
    rng = torch.Generator().manual_seed(0)
    flat, busy = torch.full((2, 3, 70, 96), 0.5), torch.rand(2, 3, 70, 96, generator=rng)
    pattern = torch.randn(1, 3, 8, 8, generator=rng).repeat(2, 1, 9, 12)[..., :70, :]
    noise = torch.randn(2, 3, 70, 96, generator=rng)
    whole = pattern[..., :64, :].square().mean()
    assert grid_mse(pattern, flat) == pytest.approx(float(whole), rel=1e-4)
    assert grid_mse(noise, flat) < 0.1 * grid_mse(pattern, flat)
    half = torch.cat([flat[..., :48], busy[..., 48:]], -1)
    assert grid_mse(torch.cat([0 * pattern[..., :48], pattern[..., 48:]], -1), half) < 0.02 * whole
