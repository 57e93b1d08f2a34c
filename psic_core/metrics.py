"""What is measured: fidelity, rate, retrieval, captions, and attack success with its interval."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import bjontegaard
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from torch import Tensor

from psic_core.models.images import round_to_8_bits, to_pil

#: As Stanford's PTBTokenizer: does + n't, dog + 's, u.s., well-known, 3,000, and whatever else is no punctuation.
TOKEN = re.compile(
    r"can(?=not\b)|\w+?(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|(?:[a-z]\.)+[a-z]\.|\w+(?:[-/.,:]\w+)*|[^\w\s.,;:!?()\"'`-]"
)


class Estimate(NamedTuple):
    """A rate with its bootstrap interval; NaN where nothing was right to begin with."""

    value: float  # in [0, 1]
    ci95: tuple[float, float]
    n: int  # the denominator


class Flips(NamedTuple):
    """How many samples of each picture are right on the reference, and how many of those no longer are."""

    right: Float[Tensor, " pictures"]
    flipped: Float[Tensor, " pictures"]


def psnr(x_hat: Float[Tensor, "*batch 3 height width"], x: Float[Tensor, "*batch 3 height width"]) -> float:
    """Peak signal-to-noise ratio in dB of one picture at 8 bits a channel; infinite where they are equal.

    Args:
        x_hat: Reconstruction in [0, 1]; rounded to 8 bits as a saved file would be.
        x: Original in [0, 1].

    Raises:
        ValueError: The shapes differ.
    """
    if x_hat.shape != x.shape:
        raise ValueError(f"x_hat {tuple(x_hat.shape)} and x {tuple(x.shape)} differ; crop both to one size")
    mse = (round_to_8_bits(x_hat).double() - round_to_8_bits(x).double()).square().mean()
    return float("inf") if mse == 0 else float(-10 * torch.log10(mse))


def ssimulacra2(x_hat: Float[Tensor, "*batch 3 height width"], x: Float[Tensor, "*batch 3 height width"]) -> float:
    """SSIMULACRA2 of one picture at 8 bits a channel: 100 is equal, 90 hardly to be told apart, 70 high quality.

    Sneyers 2022, https://github.com/cloudinary/ssimulacra2, in the package ``ssimulacra2``: a second a megapixel.

    Args:
        x_hat: Reconstruction in [0, 1].
        x: Original in [0, 1].
    """
    from ssimulacra2 import compute_ssimulacra2

    files = io.BytesIO(), io.BytesIO()
    for picture, file in zip((x, x_hat), files, strict=True):
        to_pil(picture.reshape(1, *picture.shape[-3:])).save(file, "PNG")
    return float(compute_ssimulacra2(*files))


def bits_per_pixel(stream: bytes, height: int, width: int) -> float:
    """Rate of a real file, header and keyword slots included."""
    return 8 * len(stream) / (height * width)


def bd_rate(anchor: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]]) -> float | None:
    """Bjøntegaard's mean difference of rate at equal PSNR, in percent; negative where ``test`` is cheaper.

    Args:
        anchor: ``bpp`` and ``psnr`` of the reference, at least two points.
        test: Likewise.
    """
    return _bd(bjontegaard.bd_rate, anchor, test, "psnr")


def bd_psnr(anchor: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]]) -> float | None:
    """Bjøntegaard's mean difference of PSNR at equal rate, in dB; arguments as in `bd_rate`."""
    return _bd(bjontegaard.bd_psnr, anchor, test, "bpp")


def _bd(measure: Any, anchor: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]], shared: str) -> Any:
    if min(len(anchor["bpp"]), len(test["bpp"])) < 2:
        return None
    if max(min(anchor[shared]), min(test[shared])) >= min(max(anchor[shared]), max(test[shared])):
        return None  # no quality, or no rate, that both reach
    curves = [np.asarray(c[k]) for c in (anchor, test) for k in ("bpp", "psnr")]
    return float(measure(*curves, method="akima", require_matching_points=False, min_overlap=0))


def correct_at_k(
    scores: Float[Tensor, "queries items"], positives: Bool[Tensor, "queries items"], k: int = 1
) -> Bool[Tensor, " queries"]:
    """Whether each query has a positive among its k best items; ties go against the query.

    A positive counts as found when fewer than k negatives score as high or higher.

    Raises:
        ValueError: ``k`` is no rank, a query has no positive, or a score is NaN.
    """
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k={k} is no rank among {scores.shape[1]} items")
    if not positives.any(1).all():
        raise ValueError(f"query {int((~positives.any(1)).nonzero()[0])} has no positive item")
    if scores.isnan().any():
        raise ValueError(f"query {int(scores.isnan().any(1).nonzero()[0])} has scores that are no numbers (NaN)")
    best = scores.masked_fill(~positives, -torch.inf).amax(1, keepdim=True)
    ahead = ((scores >= best) & ~positives).sum(1)
    return ahead < k


def recall_at_k(scores: Float[Tensor, "queries items"], positives: Bool[Tensor, "queries items"], k: int = 1) -> float:
    """Share of queries with a positive among their k best items (R@k), in [0, 1]."""
    return float(correct_at_k(scores, positives, k).float().mean())


def balanced_accuracy(predicted: Bool[Tensor, "n a"], truth: Bool[Tensor, "n a"]) -> Float[Tensor, " a"]:
    """Mean of sensitivity and specificity of each attribute: 0.5 for a constant answer, however rare the attribute.

    Args:
        predicted: What the model says of ``n`` pictures and ``a`` attributes.
        truth: What holds.

    Returns:
        Values in [0, 1], in float64; NaN where all pictures have the attribute, or none.
    """
    sensitivity = (predicted & truth).sum(0).double() / truth.sum(0)  # 0 / 0 is NaN
    specificity = (~predicted & ~truth).sum(0).double() / (~truth).sum(0)
    return (sensitivity + specificity) / 2


def tokenise(text: str) -> str:
    """A caption's words in lower case with a space between them, without punctuation.

    On Flickr8k's 40,455 captions it differs from PTBTokenizer in 17: brackets, ``Mr.``, ``o'clock``.
    """
    return " ".join(TOKEN.findall(text.lower()))


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Scores of one caption a picture against that picture's references.

    Args:
        candidates: As a captioner says them; tokenised here.
        references: At least one for each picture; likewise.

    Returns:
        ``bleu1`` to ``bleu4`` in [0, 1]: corpus BLEU (Papineni et al. 2002) of up to so many words; ``cider``: CIDEr-D
        (Vedantam et al. 2015), at least 0, in pycocoevalcap's scale of at most 10, its document frequencies counted in
        these references (one picture alone has 0); ``cider_each``: its value for each picture, whose mean it is.

    Raises:
        ValueError: No candidates, another number of references, or a picture without references.
    """
    if not candidates:
        raise ValueError("no captions to score; give one for each picture")
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions but references of {len(references)} pictures; give one of each")
    bare = [i for i, row in enumerate(references) if isinstance(row, str) or not row]
    if bare:
        raise ValueError(f"picture {bare[0]} has references {references[bare[0]]!r}; give a list of at least one text")
    said = {i: [tokenise(text)] for i, text in enumerate(candidates)}
    true = {i: [tokenise(text) for text in row] for i, row in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(true, said, verbose=0)
    cider, each = Cider().compute_score(true, said)
    scores: dict[str, Any] = {f"bleu{n}": float(b) for n, b in enumerate(bleu, 1)}
    return scores | {"cider": float(cider), "cider_each": [float(c) for c in each]}


def attack_success_rate(
    correct_before: Bool[Tensor, " n"],
    correct_after: Bool[Tensor, " n"],
    groups: Int64[Tensor, " n"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """ASR: of what the task gets right before, the share that it gets wrong after (section 4).

    "Before" is the plain codec's reconstruction at the same rate. The same figure for the full version, for
    JPEG or for noise is its null: what any change of the pictures does.

    Three denominators are in use, each by another ``correct_before``:
        right on the plain codec's picture: the paper's; the codec's own errors do not count.
        right on the original: errors of codec and attack together.
        all samples (``torch.ones_like(correct_after)``): 1 - accuracy after, guesses included; never NaN.

    Args:
        correct_before: Right on the reference, or what else is to be counted.
        correct_after: Right on the version under test.
        groups: The picture that each sample belongs to (five captions, forty attributes); the bootstrap then
            draws pictures, because samples of one picture are not independent. ``None``: each its own.
        resamples: Bootstrap resamples, for a 95 % percentile interval.
        seed: Of the bootstrap.

    Returns:
        The rate; NaN with a NaN interval where nothing was right before.

    Raises:
        ValueError: Not one flag a sample.
    """
    if correct_before.shape != correct_after.shape or correct_before.ndim != 1:
        shapes = tuple(correct_before.shape), tuple(correct_after.shape)
        raise ValueError(f"both need one flag a sample, got shapes {shapes[0]} and {shapes[1]}")
    return flip_rate([count_flips(correct_before, correct_after, groups)], resamples, seed)


def count_flips(
    correct_before: Bool[Tensor, " n"], correct_after: Bool[Tensor, " n"], groups: Int64[Tensor, " n"] | None = None
) -> Flips:
    """What `attack_success_rate` counts, picture by picture; arguments as there."""
    right = correct_before.double()
    flipped = (correct_before & ~correct_after).double()
    groups = torch.arange(len(right)) if groups is None else torch.unique(groups, return_inverse=True)[1]
    zeros = torch.zeros(int(groups.max()) + 1 if len(groups) else 0, dtype=torch.float64)
    return Flips(zeros.index_add(0, groups, right), zeros.index_add(0, groups, flipped))


def flip_rate(parts: Sequence[Flips], resamples: int = 1000, seed: int = 0) -> Estimate:
    """The mean ASR of several measurements of the *same* pictures (four rates), with one bootstrap for all.

    Args:
        parts: One `Flips` a measurement.
        resamples: Bootstrap resamples; each draws the same pictures for every measurement.
        seed: Of the bootstrap.

    Returns:
        The mean of the rates; NaN where in one of them nothing was right. ``n`` sums the denominators.

    Raises:
        ValueError: No measurement, or they count different pictures.
    """
    if len({len(p.right) for p in parts}) != 1:
        raise ValueError(f"measurements of {[len(p.right) for p in parts]} pictures: give one or more, of the same")
    n = sum(int(p.right.sum()) for p in parts)
    if any(p.right.sum() == 0 for p in parts):
        return Estimate(float("nan"), (float("nan"), float("nan")), n if len(parts) > 1 else 0)
    count = len(parts[0].right)
    drawn = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed))
    # 0 / 0 where a resample drew nothing right
    rates = torch.stack([p.flipped[drawn].sum(1) / p.right[drawn].sum(1) for p in parts]).mean(0)
    low, high = torch.nanquantile(rates, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = sum(float(p.flipped.sum() / p.right.sum()) for p in parts) / len(parts)
    return Estimate(value, (low, high), n)
