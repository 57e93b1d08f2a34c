"""Losses: rate-distortion, UAEO (Eq. 9), naive; each by hand and by what its algebra promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from psic_core.evidence import target_captions
from psic_core.objectives import authors_loss, grid_mse, naive_loss, rate_distortion_loss, uaeo_loss

# Similarities whose softmax is a ratio of whole numbers: c = s ln w, three pictures by four captions.
WEIGHTS = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 3.0], [3.0, 1.0, 1.0, 1.0]])
CAPTIONS = torch.eye(4)
TARGET = torch.tensor([0, 3, 3])

fast = settings(max_examples=40)


def unit(rows: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def with_cosines(cos: Tensor) -> tuple[Tensor, Tensor]:
    """Features whose products are just these similarities."""
    return cos, torch.eye(cos.shape[1])


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


def test_uniform_similarities_cost_log_k():
    for k in (1, 2, 7, 128):
        image, text = with_cosines(torch.full((3, k), 0.21))
        loss = uaeo_loss(image, text, torch.tensor([0, k // 2, k - 1]))
        assert loss.item() == pytest.approx(math.log(k), abs=1e-6)


def test_one_caption_leaves_nothing_to_learn():
    image = unit(1, 8, 0).requires_grad_()
    for direction in ("i2t", "both"):
        loss = uaeo_loss(image, unit(1, 8, 1), torch.tensor([0]), direction=direction)
        loss.backward()
        assert loss.item() == 0
        assert image.grad.abs().max() == 0


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


def test_the_best_caption_is_pushed_away_hardest():
    cos = torch.tensor([[0.30, 0.10, 0.25, 0.05]], requires_grad=True)
    uaeo_loss(cos, torch.eye(4), torch.tensor([3])).backward()
    push = cos.grad[0]
    assert push.argmax() == 0
    assert push[3] < 0
    assert (push[:3] > 0).all()


@fast
@given(
    k=st.integers(2, 40),
    seed=st.integers(0, 10_000),
    s=st.sampled_from([0.05, 0.07, 0.2, 1.0]),
    extreme=st.booleans(),
)
def test_uaeo_stays_within_its_bounds(k: int, seed: int, s: float, extreme: bool):
    cos = torch.rand(3, k, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    target = torch.tensor([0, 1, k - 1])
    if extreme:
        worst = functional.one_hot(target, k) * -2.0 + 1
        cos = worst if seed % 2 else -worst
    loss = uaeo_loss(*with_cosines(cos), target, s).item()
    low = math.log1p((k - 1) * math.exp(-2 / s))
    high = 2 / s + math.log(k - 1 + math.exp(-2 / s))
    assert loss >= 0
    assert low - 1e-6 <= loss <= high * (1 + 1e-5)
    if extreme:
        assert loss == pytest.approx(high if seed % 2 else low, rel=1e-5, abs=2e-7)


def test_small_and_large_temperatures_have_their_limits():
    cos = torch.tensor([[0.31, 0.12, -0.05, 0.22]])
    target = torch.tensor([2])
    cold = 1e-3 * uaeo_loss(*with_cosines(cos), target, s=1e-3)
    assert cold.item() == pytest.approx(0.31 + 0.05, abs=1e-6)  # max c - c_n
    cos, s = cos.double(), 300.0
    warm = s * (uaeo_loss(*with_cosines(cos), target, s) - math.log(4))
    assert warm.item() == pytest.approx(0.15 + 0.05, abs=5e-4)  # mean c - c_n


def test_uaeo_ignores_a_shift_of_a_row_and_the_order_of_captions():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    text, target = torch.eye(5), torch.tensor([4, 0, 0])
    expected = uaeo_loss(logits, text, target, s=1)
    shifted = uaeo_loss(logits + torch.tensor([[1.0], [-2.0], [3.0]]), text, target, s=1)
    assert shifted.item() == pytest.approx(expected.item(), rel=1e-5)
    order = torch.tensor([3, 1, 4, 0, 2])
    moved = uaeo_loss(logits, text[order], order.argsort()[target], s=1)
    assert moved.item() == pytest.approx(expected.item(), rel=1e-5)


def test_half_the_temperature_is_twice_the_similarity():
    image, text = unit(4, 8, 2), unit(6, 8, 3)
    target = torch.tensor([5, 0, 1, 1])
    for direction in ("i2t", "both"):
        one = uaeo_loss(image, text, target, 0.05, direction)
        two = uaeo_loss(image * 2, text, target, 0.1, direction)
        assert one.item() == pytest.approx(two.item(), rel=1e-5)


def test_descending_uaeo_reaches_the_targets():
    text, clean = unit(6, 16, 4), unit(6, 16, 4) + 0.5 * unit(6, 16, 5)
    image = functional.normalize(clean, dim=1)
    target = target_captions(image, text)
    assert ((image @ text.T).argmax(1) == torch.arange(6)).all()
    image = image.clone().requires_grad_()
    for _ in range(60):
        (grad,) = torch.autograd.grad(uaeo_loss(functional.normalize(image, dim=1), text, target), image)
        image = (image - 0.1 * grad).detach().requires_grad_()
    assert torch.equal((image @ text.T).argmax(1), target)


def test_uaeo_of_float16_features_is_computed_in_float32():
    image, text = unit(3, 8, 6).half(), unit(4, 8, 7).half()
    target = torch.tensor([0, 3, 2])
    loss = uaeo_loss(image, text, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, uaeo_loss(image.float(), text.float(), target))


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


def test_naive_stays_within_cosines_and_float32():
    image = unit(5, 8, 8)
    assert naive_loss(image, image).item() == pytest.approx(1)
    assert naive_loss(image, -image).item() == pytest.approx(-1)
    half = naive_loss(image.half(), image.half())
    assert half.dtype == torch.float32
    assert torch.equal(half, naive_loss(image.half().float(), image.half().float()))


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


def test_rate_is_per_pixel_of_the_whole_batch():
    x = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    rd = rate_distortion_loss(x, x, {"y": torch.full((3, 6, 2, 2), 0.125)}, lmbda=1)
    assert rd.mse.item() == 0
    assert rd.loss.item() == rd.bpp.item() == pytest.approx(3 * 72 / 48)


def test_frozen_encoder_has_no_rate():
    x = torch.zeros(1, 3, 2, 2)
    rd = rate_distortion_loss(x + 1, x, {}, lmbda=0.5)
    assert rd.bpp.item() == 0
    assert rd.loss.item() == pytest.approx(0.5 * 255**2)


def test_gradients_of_rate_and_distortion():
    x = torch.zeros(1, 3, 2, 2)
    x_hat = torch.full_like(x, 2.0).requires_grad_()  # unclamped: outside [0, 1] pulls back too
    p = torch.full((1, 1, 1, 2), 0.5, requires_grad=True)
    rate_distortion_loss(x_hat, x, {"y": p}, lmbda=0.1).loss.backward()
    assert torch.allclose(x_hat.grad, torch.full_like(x, 0.1 * 255**2 * 2 * 2 / 12))
    assert torch.allclose(p.grad, torch.full_like(p, -1 / (0.5 * math.log(2) * 4)))


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
