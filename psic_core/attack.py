"""The attack on one batch: which captions to pull to (Eq. 5 to 8), how hard (Eq. 9), and under which conditions."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from psic_core import evidence
from psic_core.config import TrainConfig
from psic_core.objectives import authors_loss, naive_loss, questions_loss, uaeo_loss
from psic_core.pairs import Pool


def attack_loss(
    features: Float[Tensor, "batch d"],
    pool: Pool,
    config: TrainConfig,
    rng: torch.Generator,
    answers: Float[Tensor, "questions 2 d"] | None = None,
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
        answers: Features of yes-or-no prompts, where ``config.questions`` weighs them.
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
    if config.questions:
        asked = questions_loss(features, clean[: len(features)], answers, config.s)
        loss, row = loss + config.questions * asked, row | {"l_questions": float(asked.detach())}
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
    s, tau = evidence.PRESETS.get(config.preset, (config.s, config.tau))
    return evidence.targets(clean, text, mask.to(text.device), s, tau, row_only=config.row_only, center=config.center)


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
