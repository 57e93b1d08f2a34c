"""The losses of sections 3.3 and 3.4: rate-distortion (S1-1), UAEO (Eq. 9), and its rivals (Fig. 6).

Shen et al., ICML 2025, https://proceedings.mlr.press/v267/.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from psic_core import evidence
from psic_core.config import TrainConfig
from psic_core.models.delta import flatness

PERIOD = 16  # of the decoder's steps together, in pixels


class Pool(NamedTuple):
    """The K clean pairs that Eq. 5 to 8 run over, one caption each; the batch's own stand first."""

    image: Float[Tensor, "k d"]
    text: Float[Tensor, "k d"]
    ids: Int64[Tensor, " k"]  # equal for equal captions


class RateDistortion(NamedTuple):
    """A rate-distortion loss and its parts."""

    loss: Float[Tensor, ""]
    bpp: Float[Tensor, ""]  # bits per pixel by the likelihoods, y and z together
    mse: Float[Tensor, ""]  # on [0, 1] pixels


def rate_distortion_loss(
    x_hat: Float[Tensor, "batch 3 height width"],
    x: Float[Tensor, "batch 3 height width"],
    likelihoods: Mapping[str, Tensor],
    lmbda: float,
) -> RateDistortion:
    """``lmbda * 255^2 * MSE + R`` (S1-1 of paper section 3.4; CompressAI's convention for lambda).

    Args:
        x_hat: Reconstruction, unclamped.
        x: Picture in [0, 1].
        likelihoods: CompressAI's dict; R counts every entry, the hyper-latents too.
        lmbda: Trade-off; CompressAI's qualities 1 to 4 are 0.0018, 0.0035, 0.0067, 0.013.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    bits = sum(p.log().sum() for p in likelihoods.values()) / -math.log(2)
    mse = functional.mse_loss(x_hat, x)
    bpp = torch.as_tensor(bits) / pixels
    return RateDistortion(lmbda * 255**2 * mse + bpp, bpp, mse)


def masked_mse(
    x_hat: Float[Tensor, "batch 3 height width"], x: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Squared error, weighted by `flatness`: smooth places, which the codec keeps well, are touched least.

    Args:
        x_hat: Reconstruction, unclamped.
        x: Picture in [0, 1].
    """
    return (flatness(x) * (x_hat - x) ** 2).mean()


def grid_mse(
    delta: Float[Tensor, "batch 3 height width"], x: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Squared error of the part of a change that repeats every `PERIOD` pixels where x is flat: a grid in a sky.

    The change is averaged over the tiles of each picture, by `flatness`. A pattern that repeats survives whole; one
    that follows the picture averages out. A stand-in for what eyes see; not in the paper.

    Args:
        delta: Protected minus what it should look like.
        x: Picture in [0, 1].
    """
    rows, columns = (side // PERIOD * PERIOD for side in x.shape[-2:])
    weight = flatness(x)
    tiles = (functional.pixel_unshuffle(v[..., :rows, :columns], PERIOD) for v in (weight * delta, weight))
    change, total = (t.sum((2, 3)) for t in tiles)
    return (change / total.repeat(1, 3).clamp_min(1e-6)).square().mean()


def uaeo_loss(
    image_features: Float[Tensor, "batch d"],
    text_features: Float[Tensor, "k d"],
    target: Int64[Tensor, " batch"],
    s: float = 0.07,
    direction: Literal["i2t", "both"] = "i2t",
) -> Float[Tensor, ""]:
    """UAEO, Eq. 9: cross-entropy that pulls each protected picture to its target caption.

    ``L_UC = -mean_i log( exp(c_in / s) / sum_j exp(c_ij / s) )`` with ``n = target[i]``. Its gradient with
    respect to the logits is softmax minus one-hot: the caption that fits best is pushed away hardest.

    Args:
        image_features: Unit features of x_hat_e.
        text_features: Unit features of the K captions; K may exceed the batch.
        target: Index of each picture's least believed caption (Eq. 8).
        s: The temperature of Eq. 5.
        direction: ``i2t`` as printed. ``both`` adds, for each target caption, the cross-entropy over the
            batch's pictures; pictures that share a target are all right answers.

    Returns:
        At least 0; ``log K`` where all similarities are equal.

    Raises:
        ValueError: A target that is no index of a caption; on a GPU CUDA says so.
    """
    if not target.is_cuda and len(target) and (target.min() < 0 or target.max() >= len(text_features)):
        raise ValueError(f"target {target.tolist()} points outside the {len(text_features)} captions")
    if not s > 0 or direction not in ("i2t", "both"):
        raise ValueError(f"s={s}, direction={direction!r}: s must be above 0, direction 'i2t' or 'both'")
    logits = image_features.float() @ text_features.float().T / s
    i2t = functional.cross_entropy(logits, target)
    if direction == "i2t":
        return i2t
    by_text = functional.log_softmax(logits[:, target].T, dim=1)  # row i: caption target[i] over pictures
    right = (target[:, None] == target[None, :]).float()
    t2i = -(by_text * right / right.sum(1, keepdim=True)).sum(1).mean()
    return (i2t + t2i) / 2


def naive_loss(image_features: Float[Tensor, "batch d"], text_features: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """The naive attack of Fig. 6: the mean cosine between each picture and its own caption, to be minimised."""
    return (image_features.float() * text_features.float()).sum(1).mean()


def authors_loss(
    image_features: Float[Tensor, "batch d"],
    clean_features: Float[Tensor, "batch d"],
    text_features: Float[Tensor, "batch d"],
    s: float = 0.07,
    harmonic: bool = True,
) -> Float[Tensor, ""]:
    """What the authors' released code minimises in the place of Eq. 9; written anew from its published source.

    It sorts the batch: a pair is *clean* where its own caption has the largest share of its evidence. Clean pairs get
    the cosine to their own caption (the naive attack); *noisy* ones alone get a target, the caption of least evidence,
    own one not excluded, and the mean of both directions' cross-entropies. With a good target nearly all pairs are
    clean, so that this is the naive attack. Evidence is of symmetrised similarities, ``exp(tanh((S + S^T) / 2s) /
    tau)``. Two faults of the source are not repeated: targets there count within the sub-batch and are looked up in
    the whole one, and an empty kind gives NaN; here it counts nothing.

    Args:
        image_features: Unit features of x_hat_e.
        clean_features: Unit features of x.
        text_features: Unit features of the own captions.
        s: Of the similarities, in the evidence and the cross-entropies.
        harmonic: Stage two: both kinds weighted by the other's share, ``2 c n / (c + n)``, gradients through the
            weights included. Else stage one: ``10 c + n``.
    """
    own = torch.arange(len(image_features), device=image_features.device)
    similarity = clean_features.float() @ text_features.float().T
    e = torch.exp(torch.tanh((similarity + similarity.T) / (2 * s)) / 0.1)
    clean = ((e + e.T) / (e + e.T).sum(1, keepdim=True)).argmax(1) == own
    noisy, target = ~clean, e.argmin(1)
    cosine = (image_features.float() * text_features.float()).sum(1)[clean]
    logits = image_features.float() @ text_features.float().T / s
    if not noisy.any():
        return cosine.mean() * (1 if harmonic else 10)
    n = sum(functional.cross_entropy(way[noisy], target[noisy]) for way in (logits, logits.T)) / 2
    if not clean.any():
        return n
    c = cosine.mean()
    if not harmonic:
        return 10 * c + n
    w_c, w_n = 1 / (c + 1e-8), 1 / (n + 1e-8)
    return (w_c * c + w_n * n) / (w_c + w_n)


def attack_loss(
    features: Float[Tensor, "batch d"], pool: Pool, config: TrainConfig, rng: torch.Generator
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The attack term on features of x_hat_e, and what the log keeps of it.

    ``config.objective``: ``uaeo`` is Eq. 9 with equal captions masked; ``literal`` masks nothing, as printed, so that
    the own caption may be the target; ``random_target`` draws the target among the captions of others; ``naive`` has
    no target, it minimises the cosine to the own caption; ``authors`` is what the released code computes.

    Args:
        features: Unit features of the protected pictures.
        pool: The clean pairs of Eq. 5 to 8, the batch's own first.
        config: Temperatures, direction, objective.
        rng: Draws random targets.
    """
    clean, text = pool.image.to(features.device), pool.text.to(features.device)
    own = text[: len(features)]
    row = {"cos_own": float((features.detach() * own).sum(1).mean())}
    if config.objective == "naive":
        return naive_loss(features, own), row
    if config.objective == "authors":
        return authors_loss(features, clean[: len(own)], own, harmonic=config.stage == "two"), row
    target = _targets(clean, text, pool.ids, config, rng)[: len(features)]
    loss = uaeo_loss(features, text, target, config.s, config.direction)
    row |= {"l_uc": float(loss.detach()), "distinct_targets": len(target.unique()) / len(target)}
    return loss, row


def _targets(
    clean: Float[Tensor, "k d"],
    text: Float[Tensor, "k d"],
    ids: Int64[Tensor, " k"],
    config: TrainConfig,
    rng: torch.Generator,
) -> Int64[Tensor, " k"]:
    """The caption that each picture of the pool is pulled to; its own where all captions are equal."""
    same = ids[:, None] == ids[None, :]
    if config.objective == "random_target":
        free = torch.where(same.all(1, keepdim=True), same, ~same).float()
        return torch.multinomial(free, 1, generator=rng)[:, 0].to(text.device)
    mask = torch.zeros_like(same) if config.objective == "literal" else same
    return evidence.target_captions(clean, text, mask.to(text.device), config.s, config.tau)


def wrong_conditions(n: int, dim: int, rng: torch.Generator) -> Float[Tensor, "n dim"]:
    """Conditions that must decode protected: the zero vector (no keyword) or a random direction (a wrong one).

    Args:
        n: How many; about half of them are zero vectors.
        dim: Length of the condition.
        rng: Draws.
    """
    beta = functional.normalize(torch.randn(n, dim, generator=rng), dim=1)
    return torch.where(torch.rand(n, 1, generator=rng) < 0.5, 0, beta)


def gradient_norm(term: Float[Tensor, ""], x_hat: Float[Tensor, "batch 3 height width"]) -> float:
    """The norm of a loss term's gradient at the decoder's output."""
    return float(torch.autograd.grad(term, x_hat, retain_graph=True)[0].norm())
