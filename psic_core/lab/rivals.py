"""Rivals who know the method and have the codec: a reader that learns, the codec itself, the key's equations.

Whoever has the codec can protect photos of his own and holds both versions of each. That is all that supervised
learning needs; no key is involved, and what was learned is then used on other people's protected pictures.
Nothing here calls `PSIC.full_condition`; with its answer the caller can say how close a rival came to the key.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import least_squares
from torch import Tensor
from torch.nn import functional

from psic_core.codec import PSIC
from psic_core.evidence import caption_ids
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.lite_clip import LITE_CLIPS, contrastive, image_features, text_features
from psic_core.models.vlp import Target

Pictures = Float[Tensor, "n 3 height width"]


def finetune_reader(
    target: Target,
    pictures: Float[Tensor, "n 3 height width"],
    captions: Sequence[tuple[str, ...]],
    steps: int = 300,
) -> Target:
    """A target that has seen protected pictures with their true captions.

    Its towers are locked, as when it was made (``data/checkpoints/make_lite_clip.py``); the two linear heads go on
    learning from where they are.

    Args:
        target: ``lite-clip`` or ``lite2-clip``; stays as it is.
        pictures: Protected ones, at 8 bits in [0, 1]. The rival's own: he knows what they show.
        captions: Of each picture, equally many.
        steps: Of AdamW at 3e-4 (`descend`), with 256 pictures each or all where there are fewer.

    Returns:
        Another target, with heads of its own.

    Raises:
        ValueError: Not one of these targets.
    """
    if target.name not in LITE_CLIPS:
        raise ValueError(f"{target.name!r} is not made of two heads on locked towers; give {' or '.join(LITE_CLIPS)}")
    flat = [caption for row in captions for caption in row]
    ids = caption_ids(flat).reshape(len(captions), -1)
    image = image_features(target, (pictures * 255).round().clamp(0, 255).to(torch.uint8))
    words = text_features(target, flat).unflatten(0, ids.shape)
    result, rng = copy.deepcopy(target), torch.Generator().manual_seed(0)
    visual, text, scale = result.model.visual.head.proj, result.model.text.proj, result.model.logit_scale

    def loss() -> Tensor:
        index = torch.randperm(len(ids), generator=rng)[:256]
        choice = torch.randint(ids.shape[1], (len(index),), generator=rng)
        own = ids[index, choice]
        seen = functional.normalize(visual(image[index]), dim=1)
        read = functional.normalize(text(words[index, choice]), dim=1)
        return contrastive(seen, read, own[:, None] == own[None, :], scale)

    learning = [p.requires_grad_() for p in (*visual.parameters(), *text.parameters(), scale)]
    descend(torch.optim.AdamW(learning, 3e-4), loss, steps)
    result.name = f"{target.name}, adapted"
    return result.requires_grad_(False)


def descend(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int) -> None:
    """So many steps down a loss that draws its batch: a tenth to warm up, a cosine, gradients of at most norm 1."""
    rate, (group,) = optimiser.defaults["lr"], optimiser.param_groups
    for k in range(steps):
        group["lr"] = rate * min(1, 10 * (k + 1) / steps) * (1 + math.cos(math.pi * k / steps)) / 2
        optimiser.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimiser.step()


@torch.no_grad()
def stripped(model: PSIC, published: Pictures) -> Pictures:
    """The full version of protected pictures, without a key: coded again, then decoded with all triggers left out.

    Triggers change the picture and never the latents; and a picture has many times as many samples as its latents. So
    a protected picture still says what its latents were, to whoever knows the codec that made it.

    Args:
        model: An anchored one; else its plain decoder is not quite its full version.
        published: Protected pictures of any one size, in [0, 1].

    Returns:
        At 8 bits.
    """
    height, width = published.shape[-2:]
    latents = (model.eval().quantised_latents(pad_to(x, model.factor)) for x in published.split(10))
    return torch.cat([round_to_8_bits(model.g_s.plain(y)[..., :height, :width]) for y in latents])


class Solved(NamedTuple):
    """What the weights alone gave away, and how many evaluations all starts took."""

    condition: Float[Tensor, " dim"]
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
    return Solved(torch.from_numpy(best.x).float(), evaluations)
