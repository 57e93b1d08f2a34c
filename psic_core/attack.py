"""The attack on one batch: which captions to pull to (Eq. 5 to 8), how hard (Eq. 9), and under which conditions."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from psic_core import evidence
from psic_core.codec import PSIC
from psic_core.config import TrainConfig
from psic_core.objectives import authors_loss, naive_loss, questions_loss, uaeo_loss
from psic_core.pairs import Pool

NEAR = (15.0, 75.0)  # degrees between a negative and the key; a random direction stands at about 90
STRIDE = 5.0  # degrees that a searched negative moves in one step


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
        features: Unit features of the protected pictures; of the whole batch, where several processes share it.
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


def wrong_conditions(
    n: int,
    dim: int,
    rng: torch.Generator,
    near: float = 0.0,
    key: Float[Tensor, " dim"] | None = None,
    seek: Callable[[Float[Tensor, "n dim"]], Float[Tensor, "n dim"]] | None = None,
) -> Float[Tensor, "n dim"]:
    """Conditions that must decode protected: the zero vector (no keyword) or a random direction (a wrong one).

    Random directions are nearly orthogonal to the key, so that training never sees its neighbourhood, which is
    where an attacker's search ends. A share of negatives is drawn there.

    Args:
        n: How many; about half of them are zero vectors, whatever the rest is.
        dim: Length of the condition.
        rng: Draws; without negatives no more than it always drew.
        near: Share of the directions that are negatives, `NEAR` degrees from the key.
        key: The model's own, with ``near``.
        seek: Moves the negatives, for example `seeker`.

    Raises:
        ValueError: Negatives of no key.
    """
    if near and key is None:
        raise ValueError(f"near {near} asks for negatives near the key: pass key, a model's full_condition()")
    beta = functional.normalize(torch.randn(n, dim, generator=rng), dim=1)
    none = torch.rand(n, 1, generator=rng) < 0.5
    if near:
        chosen = torch.rand(n, 1, generator=rng) < near
        low, high = NEAR
        angle = torch.deg2rad(low + (high - low) * torch.rand(n, 1, generator=rng))
        negatives = at_angle(beta, key, angle)
        beta = torch.where(chosen, seek(negatives) if seek else negatives, beta)
    return torch.where(none, 0, beta)


def training_conditions(model: PSIC, config: TrainConfig, n: int, rng: torch.Generator) -> Float[Tensor, "n dim"]:
    """`wrong_conditions` as a phase wants them, on the CPU."""
    if not config.negatives:
        return wrong_conditions(n, model.config.dim, rng)
    seek = seeker(model, config.searched) if config.searched else None
    return wrong_conditions(n, model.config.dim, rng, config.negatives, model.full_condition().cpu(), seek)


def at_angle(
    beta: Float[Tensor, "n dim"], key: Float[Tensor, " dim"], angle: Float[Tensor, "n 1"]
) -> Float[Tensor, "n dim"]:
    """Turn directions, each in its plane with the key, until they stand at an angle in radians to it."""
    aside = functional.normalize(beta - (beta @ key)[:, None] * key, dim=1)
    return angle.cos() * key + angle.sin() * aside


def seeker(model: PSIC, steps: int) -> Callable[[Float[Tensor, "n dim"]], Float[Tensor, "n dim"]]:
    """An attacker's search, a few steps of it: down what the triggers add, `STRIDE` degrees a step.

    What decodes like the key is what has the key's triggers, so that no picture need be decoded for it. The search
    tends to the key itself, which must decode *full*: asked to be both, it would only be trained against itself.
    Therefore every step ends at least ``NEAR[0]`` degrees away.

    Args:
        model: As it is now; its weights get no gradient.
        steps: Gradient steps.
    """
    key, (low, _) = model.full_condition(), NEAR

    def seek(beta: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        place, beta = beta.device, beta.to(key.device)
        for _ in range(steps):
            beta = beta.detach().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(_added(model, beta, key).sum(), beta)
            along = functional.normalize(slope - (slope * beta).sum(1, keepdim=True) * beta, dim=1)
            beta = functional.normalize(beta.detach() - math.tan(math.radians(STRIDE)) * along, dim=1)
            angle = (beta @ key).clamp(-1, 1).acos()[:, None].clamp_min(math.radians(low))
            beta = at_angle(beta, key, angle)
        return beta.detach().to(place)

    return seek


def _added(model: PSIC, beta: Float[Tensor, "n dim"], key: Float[Tensor, " dim"]) -> Float[Tensor, " n"]:
    """What all triggers add, each against what it adds without a keyword."""
    sizes = []
    for trigger in model.g_s.triggers:
        none = trigger.cltg(0 * key[None], key).norm()
        sizes.append(trigger.cltg(beta, key).flatten(1).norm(dim=1) / none.detach().clamp_min(1e-6))
    return torch.stack(sizes).sum(0)


def pull(term: Float[Tensor, ""], x_hat: Float[Tensor, "batch 3 height width"]) -> float:
    """The norm of a loss term's gradient at the decoder's output (decision 6)."""
    return float(torch.autograd.grad(term, x_hat, retain_graph=True)[0].norm())
