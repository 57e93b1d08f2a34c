"""Stream and decoder, no key: what other conditions decode to, and the key's vector read out of the weights.

An attacker here holds the weights and the latents of a file, and no secret. Nothing below calls
`PSIC.full_condition`; with its answer the caller can say how close he came.
"""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import least_squares
from torch import Tensor
from torch.nn import functional

from psic_core.codec import PSIC


class Solved(NamedTuple):
    """What the weights alone gave away: the vector, the triggers' norm there, and evaluations of all starts."""

    condition: Float[Tensor, " dim"]
    residual: float
    evaluations: int


def random_conditions(n: int, dim: int, seed: int = 0) -> Float[Tensor, "n dim"]:
    """Guessed keys: directions uniform on the sphere."""
    return functional.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def solve(model: PSIC) -> Solved:
    """The key's vector of an anchored model from its weights alone: no file, no picture, no gradient descent.

    `PSIC.anchor` sets each trigger's bias to ``-W_d MLP(c)``. So the weights hold a system of equations,
    ``T_i(c) = 0`` for all channels of all stages and ``|c| = 1``: a few hundred of them for ``dim`` unknowns, linear
    wherever no unit of the MLPs changes sign. Levenberg and Marquardt's least squares solves it.

    Args:
        model: An anchored PSIC.

    Raises:
        ValueError: The model is not anchored, so that no condition is known to be without trigger; or not trained.
    """
    if not model.config.anchored:
        raise ValueError("no condition of an unanchored model is known to be without triggers")
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
    for start in random_conditions(10, model.config.dim).double():  # the first with no residue ends the search
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
