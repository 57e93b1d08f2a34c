"""Stream and decoder, no key: what other conditions decode to, and how the key's vector is searched for.

An attacker here holds the weights and the latents of a file, and no secret. Nothing below calls
`PSIC.full_condition`; with its answer the caller can say how close a search came.
"""

import copy
from collections.abc import Callable, Collection
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import least_squares
from torch import Tensor
from torch.nn import functional

from psic_core.codec import PSIC
from psic_core.models.vlp import Target

Latents = Float[Tensor, "n m h w"]


class Decoded(NamedTuple):
    """What one condition makes of a batch."""

    x_hat: Float[Tensor, "n 3 height width"]  # unclamped
    added: Float[Tensor, "n triggers"]  # ||trigger(h) - h|| / ||h|| at each injection


Objective = Callable[[Decoded], Float[Tensor, ""]]  # to be minimised


class Found(NamedTuple):
    """What a search found.

    Attributes:
        condition: The best of all restarts and steps.
        value: The objective there.
        trajectory: The objective at each step of each restart.
        path: The condition at each step of each restart.
    """

    condition: Float[Tensor, " dim"]
    value: float
    trajectory: Float[Tensor, "restarts steps"]
    path: Float[Tensor, "restarts steps dim"]


class Solved(NamedTuple):
    """What the weights alone gave away: the vector, the triggers' norm there, and evaluations of all starts."""

    condition: Float[Tensor, " dim"]
    residual: float
    evaluations: int


# --- decoding ---------------------------------------------------------------------------------------


def decode_watching(
    model: PSIC, y_hat: Latents, condition: Float[Tensor, " dim"] | None = None, without: Collection[int] = ()
) -> Decoded:
    """Decode latents and watch the triggers; differentiable in the condition.

    Args:
        model: Its secret is not used.
        y_hat: Latents as a file holds them.
        condition: ``None``: the zero vector.
        without: Injections to leave out, counted from 0 at y_hat.

    Raises:
        ValueError: The decoder has no such injection.
    """
    triggers = list(model.g_s.triggers)
    if wrong := sorted(set(without) - set(range(len(triggers)))):
        raise ValueError(f"no trigger {wrong[0]}: this decoder has {len(triggers)}; count from 0")
    beta = y_hat.new_zeros(model.config.dim) if condition is None else condition
    x, added = y_hat, []
    for i, (trigger, stage) in enumerate(zip_longest(triggers, model.g_s.stages)):
        h = x
        if trigger is not None and i not in without:
            h = trigger(x, beta.expand(len(x), -1))
        if trigger is not None:
            added.append((h - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp_min(1e-12))
        x = stage(h)
    return Decoded(x, torch.stack(added, dim=1))


@torch.no_grad()
def without_triggers(model: PSIC, y_hat: Latents, stages: Collection[int]) -> Float[Tensor, "n 3 height width"]:
    """Decode without a keyword and with some triggers cut out of the program; unclamped.

    With all of them cut out an anchored model gives its full version: no key is needed for that.
    """
    return decode_watching(model, y_hat, without=stages).x_hat


def random_conditions(n: int, dim: int, seed: int = 0) -> Float[Tensor, "n dim"]:
    """Guessed keys: directions uniform on the sphere."""
    return functional.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def between(a: Float[Tensor, " dim"], b: Float[Tensor, " dim"], t: float) -> Float[Tensor, " dim"]:
    """The condition at ``t`` on the way from ``a`` (0) to ``b`` (1), and beyond either end outside [0, 1].

    On the great circle, with the norm interpolated; along the line where a vector is zero or they are parallel.
    """
    norms = a.norm(), b.norm()
    cosine = float((a @ b / (norms[0] * norms[1]).clamp_min(1e-12)).clamp(-1, 1))
    if min(norms) == 0 or abs(cosine) > 1 - 1e-6:
        return a + t * (b - a)
    angle = np.arccos(cosine)
    direction = (np.sin((1 - t) * angle) * a / norms[0] + np.sin(t * angle) * b / norms[1]) / np.sin(angle)
    return (norms[0] + t * (norms[1] - norms[0])) * direction


# --- searching --------------------------------------------------------------------------------------


def sharpness(seen: Decoded) -> Float[Tensor, ""]:
    """A sharp picture: minus the Laplacian's mean square."""
    x = seen.x_hat
    inner = x[..., 1:-1, 1:-1]
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return -(around - 4 * inner).square().mean()


def smoothness(seen: Decoded) -> Float[Tensor, ""]:
    """A clean picture: its total variation, a pixel."""
    x = seen.x_hat
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def agreement(seen: Decoded) -> Float[Tensor, ""]:
    """All stages agree that nothing is to be added: what the triggers add, relative to the features, summed."""
    return seen.added.sum(1).mean()


def confidence(target: Target, texts: Float[Tensor, "k d"]) -> Objective:
    """A picture that the target is sure of: the surprise at its likeliest text, in nats.

    Args:
        target: The model that PSIC attacks.
        texts: Its unit features of class prompts or captions.
    """

    def objective(seen: Decoded) -> Float[Tensor, ""]:
        return -target.probabilities(target.encode_image(seen.x_hat), texts).amax(1).log().mean()

    return objective


def search(
    model: PSIC,
    y_hat: Latents,
    objective: Objective,
    steps: int = 100,
    restarts: int = 3,
    rate: float = 0.05,
    seed: int = 0,
    sphere: bool = True,
) -> Found:
    """Gradient search (Adam, cosine rate) over one condition for a few files together.

    Args:
        model: The decoder.
        y_hat: Latents of the files; a few are enough, as the key is common to all.
        objective: To be minimised: `sharpness`, `smoothness`, `agreement`, or what `confidence` returns.
        steps: For each restart.
        restarts: Random directions to start from.
        rate: Learning rate, on a vector of norm 1.
        seed: Of the starts.
        sphere: Stay on the unit sphere, where all keys are; else the norm is free.

    Raises:
        ValueError: No step, or no restart.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps {steps}, restarts {restarts}: give at least 1 of each")
    trajectory, path = torch.zeros(restarts, steps), torch.zeros(restarts, steps, model.config.dim)
    for r, start in enumerate(random_conditions(restarts, model.config.dim, seed)):
        beta = start.to(y_hat).requires_grad_()
        optimiser = torch.optim.Adam([beta], rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for step in range(steps):
            tried = functional.normalize(beta, dim=0) if sphere else beta
            value = objective(decode_watching(model, y_hat, tried))
            trajectory[r, step], path[r, step] = float(value.detach()), tried.detach().cpu()
            (beta.grad,) = torch.autograd.grad(value, beta)  # of the condition alone: the weights are not ours
            optimiser.step()
            schedule.step()
    r, step = divmod(int(trajectory.argmin()), steps)
    return Found(path[r, step], float(trajectory[r, step]), trajectory, path)


def solve(model: PSIC, starts: int = 10, seed: int = 0) -> Solved:
    """The key's vector of an anchored model from its weights alone: no file, no picture, no gradient descent.

    `PSIC.anchor` sets each trigger's bias to ``-W_d MLP(c)``. So the weights hold a system of equations,
    ``T_i(c) = 0`` for all channels of all stages and ``|c| = 1``: a few hundred of them for ``dim`` unknowns, linear
    wherever no unit of the MLPs changes sign. Levenberg and Marquardt's least squares solves it.

    Args:
        model: An anchored PSIC.
        starts: Random directions to start from; the first with no residue to speak of ends the search.
        seed: Of the starts.

    Raises:
        ValueError: The model is not anchored, so that no condition is known to be without trigger; or not trained.
    """
    if not model.config.anchored:
        raise ValueError("no condition of an unanchored model is known to be without triggers; try search()")
    triggers = [copy.deepcopy(t.cltg).cpu().double() for t in model.g_s.triggers]
    none = torch.zeros(1, model.config.dim, dtype=torch.float64)
    sizes = [float(t(none).detach().norm()) for t in triggers]
    triggers = [(t, size) for t, size in zip(triggers, sizes, strict=True) if size > 0]
    if not triggers:
        raise ValueError("all triggers are zero without a keyword: an untrained model decodes full under any condition")

    def residues(beta: Tensor) -> Tensor:
        return torch.cat([*(t(beta[None]).flatten() / size for t, size in triggers), beta.square().sum()[None] - 1])

    jacobian = torch.func.jacfwd(residues)
    best, evaluations = None, 0
    for start in random_conditions(starts, model.config.dim, seed).double():
        found = least_squares(
            lambda b: residues(torch.from_numpy(b)).detach().numpy(),
            start.numpy(),
            lambda b: jacobian(torch.from_numpy(b)).detach().numpy(),
            method="lm" if sum(t.w_d.out_features for t, _ in triggers) >= model.config.dim else "trf",
            max_nfev=300,
        )
        evaluations += found.nfev
        if best is None or found.cost < best.cost:
            best = found
        if best.cost < 1e-10:
            break
    return Solved(torch.from_numpy(best.x).float(), float((2 * best.cost) ** 0.5), evaluations)
