"""Dempster-Shafer evidence between pictures and captions: section 3.3 of the paper, Eq. 5 to 8.

Shen et al., ICML 2025, https://proceedings.mlr.press/v267/. The evidence is Qin et al.'s (2022).

The chain: cosine similarities -> evidence E (Eq. 5) -> both directions B = E + E^T (Eq. 6)
-> belief mass u of a Dirichlet (Eq. 7) -> the caption that deserves the least belief (Eq. 8).
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor


class Preset(NamedTuple):
    """The two temperatures of Eq. 5 as a source uses them."""

    s: float
    tau: float


#: `paper`: Eq. 5 with the released code's s. `decl`: Qin et al. 2022. `authors`: the released code.
PRESETS = {"paper": Preset(0.07, 1.0), "decl": Preset(1.0, 0.1), "authors": Preset(0.07, 0.1)}


class UnreliableEvidence(UserWarning):
    """tanh has saturated: different similarities give equal evidence, so that the target is arbitrary."""


def evidence(cos: Float[Tensor, " *shape"], s: float = 0.07, tau: float = 1.0) -> Float32[Tensor, " *shape"]:
    """Evidence of each picture-caption pair, Eq. 5: ``exp(tanh(cos / s) / tau)``.

    Always computed in float32: float16's tanh is 1 from cos = 4.5 s on, float32's from 9 s on. On a GPU, which the
    host would have to wait for, nothing looks for ties.

    Args:
        cos: Cosine similarities in [-1, 1].
        s: Temperature of the similarity, above 0.
        tau: Temperature of the evidence, above 0.

    Returns:
        Values in (exp(-1/tau), exp(1/tau)).

    Raises:
        ValueError: ``s`` or ``tau`` is not positive.
    """
    if not (s > 0 and tau >= 1 / 80):  # exp(88) is the end of float32, and B and S add evidence up
        raise ValueError(f"s={s}, tau={tau}: s must be above 0, tau at least 1/80 (the paper's are 0.07 and 1)")
    squashed = torch.tanh(cos.float() / s)
    saturated = squashed.abs() == 1
    if not cos.is_cuda and saturated.sum() > 1 and (saturated.sum(-1) > 1).any():
        warnings.warn(
            f"tanh(cos/s) is saturated at s={s}: {int(saturated.sum())} pairs have equal evidence; use a larger s",
            UnreliableEvidence,
            stacklevel=2,
        )
    return torch.exp(squashed / tau)


def bidirectional(e: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """Evidence of both directions combined, Eq. 6: ``b_in = e_in + e_ni``, so ``B = E + E^T``.

    Args:
        e: Evidence, picture i by caption j.
    """
    return _square(e) + e.T


def strength(b: Float[Tensor, "k k"]) -> Float[Tensor, " k"]:
    """Dirichlet strength of each picture, the normaliser of Eq. 7: ``S_i = sum_j (b_ij + 1)``."""
    return (_square(b) + 1).sum(1)


def belief(b: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """Belief mass ``u_ij = b_ij / S_i``, Eq. 7. The paper calls it uncertainty; see `vacuity` for that.

    ``sum_j u_ij + vacuity_i = 1``.
    """
    return b / strength(b)[:, None]


def vacuity(b: Float[Tensor, "k k"]) -> Float[Tensor, " k"]:
    """Uncertainty of subjective logic: ``K / S_i``, the mass that no caption has earned; one a picture."""
    return len(b) / strength(b)


def least_believed(b: Float[Tensor, "k k"], mask: Bool[Tensor, "k k"] | None = None) -> Int64[Tensor, " k"]:
    """The target caption of each picture, Eq. 8: ``arg min_n u_in``.

    The arg min of the belief is the arg min of ``b``: the normaliser is the same along a row and never
    changes it. The text calls the result the highest uncertainty. Read literally, as
    the arg max of Eq. 7's "uncertainty", it would be the caption that is believed most: the picture's own.

    Args:
        b: Combined evidence of Eq. 6.
        mask: True where a caption may not become the target: the own one and its equals. ``None`` masks the
            diagonal.

    Returns:
        Index of the target caption; the first of equals. A row that is masked whole (K = 1, or all captions
        equal) gives its own index: L_UC then has nothing to pull to.
    """
    own = torch.arange(len(_square(b)), device=b.device)
    if mask is None:
        mask = torch.eye(len(b), dtype=torch.bool, device=b.device)
    if mask.shape != b.shape:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit evidence {tuple(b.shape)}")
    target = b.masked_fill(mask, torch.inf).argmin(1)
    return torch.where(mask.all(1), own, target)


def caption_ids(captions: Sequence[str]) -> Int64[Tensor, " k"]:
    """Equal numbers for captions that are equal but for case and outer space, counted as they first appear."""
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(c.strip().casefold(), len(seen)) for c in captions], dtype=torch.int64)


def same_caption(captions: Sequence[str]) -> Bool[Tensor, "k k"]:
    """The mask for `least_believed`: True where two captions are equal but for case and outer space."""
    ids = caption_ids(captions)
    return ids[:, None] == ids[None, :]


def target_captions(
    image_features: Float[Tensor, "k d"],
    text_features: Float[Tensor, "k d"],
    mask: Bool[Tensor, "k k"] | None = None,
    s: float = 0.07,
    tau: float = 1.0,
) -> Int64[Tensor, " k"]:
    """Eq. 5 to 8 in one call: the least believed caption of each of K pairs, from unit features, no gradient."""
    with torch.no_grad():
        cos = image_features.float() @ text_features.float().T
        return least_believed(bidirectional(evidence(cos, s, tau)), mask)


def _square(b: Tensor) -> Tensor:
    if b.ndim != 2 or b.shape[0] != b.shape[1] or b.shape[0] == 0:
        raise ValueError(f"evidence has shape {tuple(b.shape)}; it pairs K pictures with their K captions: (K, K)")
    return b
