"""A shield made for one photo: what its readers see is turned round by a few cosines, found at their scale.

Not in the paper. UAEO trains one generator against all photos' readings; here the change of one photo is searched for,
by gradient descent on the places and signs of its cosines, in the time that R pixels take, whatever the photo's size.
Its strength is found on the way, as in DDN (Rony et al., CVPR 2019): less where readers are misled, more where not.
"""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.models.delta import (
    MAX_SIGNS,
    NOTHING,
    Coefficients,
    band,
    coefficients,
    cosines,
    energy,
    enlarged,
    hiding,
    reduced,
    to_code,
)
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import Target, load_target
from psic_core.training.platforms import random_platform_transform

READERS = "lite-clip+lite1-clip"
STEPS = 60  # of gradient for a carried shield; a sealed one takes three tenths of them, its correction a third
DENSITY = 0.047  # cosines for each pixel at the reader's scale: 1,800 of a photo of 3 to 2, in 1.4 KB
MISLED = 0.25  # cosine of what readers see before and after, below which they are taken for misled
STEP = 1.06  # factor of the energy after a step that did not mislead; a third of it back after one that did
CARRIED, SEALED = (0.3, 4.0), (2.0, 8.0)  # least and most `energy`; the codec keeps a part of a sealed change
COPIES = (1.5, 2.0, 2.5)  # shorter sides, in units of R, at which a sealed shield goes through the codec
DENSITY_SEALED, SEALED_BAND = 0.06, 0.3  # of its correction; of the change
PLATFORMS = 0.5  # of the steps look at the picture as a platform hands it on
MEMORY = 0.9  # of the gradients, from step to step

Picture = Float[Tensor, "1 3 height width"]


@cache
def readers() -> Target:
    """The models that photos are protected from, loaded once."""
    return load_target(READERS)


def carried(model: PSIC, x_hat_f: Picture, x: Picture, target: Target | None = None) -> bytes:
    """The code of a change that, added to the full version, hides the photo x; the triggers rest."""
    side = model.config.reading_side
    return to_code(*search(reduced(x_hat_f, side), reduced(x, side), target, STEPS))


@torch.enable_grad()
def sealed(model: PSIC, x: Picture, target: Target | None = None) -> Float[Tensor, "1 3 small_height small_width"]:
    """A change at the reader's scale that, added to the photo x before it is coded, hides it.

    Each step codes a copy of the photo, at one of `COPIES`, reads what is decoded, and takes the gradient there
    for that of the change (backward pass differentiable approximation, Athalye et al., ICML 2018): what the codec would
    not keep is outvoted. Nobody has to code this change, so that it is not sparse.
    """
    target, side = target or readers(), model.config.reading_side
    small, copies = reduced(x, side), [reduced(x, round(side * scale)) for scale in COPIES]
    kept, rng = tuple(math.ceil(SEALED_BAND * n) for n in small.shape[-2:]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        was = target.encode_image(small)
    total, strength = 1e-3 * torch.randn(1, 3, *kept, generator=rng), SEALED[0]
    for step in tqdm(range(3 * STEPS // 10), "shield", leave=False, disable=None):
        copy = copies[step % len(copies)]
        size = tuple(copy.shape[-2:])
        changed = (copy + enlarged(_at(total, strength, small), size)).clamp(0, 1)
        y_hat = model.quantised_latents(pad_to(changed, model.factor))
        shown = reduced(round_to_8_bits(model.picture(y_hat, size, adapted=NOTHING)), side).requires_grad_()
        likeness = (target.encode_image(random_platform_transform(shown, float(step % 2), rng)) * was).sum()
        (gradient,) = torch.autograd.grad(likeness, shown)
        gradient = enlarged(gradient, tuple(small.shape[-2:]))  # a copy's reading size may be a pixel off
        gradient = coefficients(hiding(small) * gradient, kept)
        total = MEMORY * total - gradient / gradient.norm().clamp_min(1e-12)
        strength = _adjusted(strength, float(likeness.detach()), SEALED, STEP**2)
    return _at(total, strength, small)


@torch.enable_grad()
def correction(x: Picture, x_hat: Picture, side: int, target: Target | None = None) -> bytes:
    """The code of what takes a sealed shield out again, at the reader's scale.

    The largest cosines of what was decoded, to the photo; then those are preferred that let readers see it again.
    """
    target, shown, truth = target or readers(), reduced(x_hat, side), reduced(x, side)
    size, weight, error = tuple(shown.shape[-2:]), hiding(shown), truth - shown
    count = _count(size, DENSITY_SEALED)
    with torch.no_grad():
        was = target.encode_image(truth)
    total = coefficients(weight * error, band(size))
    total = total / total.norm().clamp_min(1e-12)

    def fitted(change: Picture) -> float:
        return float((error * change.detach()).sum() / change.detach().square().sum().clamp_min(1e-12))

    for _ in range(STEPS // 3):
        signs = largest(total, count).requires_grad_()
        change = weight * cosines(signs, size)
        likeness = (target.encode_image((shown + fitted(change) * change).clamp(0, 1)) * was).sum()
        (gradient,) = torch.autograd.grad(likeness, signs)
        total = total + 0.1 * gradient / gradient.norm().clamp_min(1e-12)
    signs = largest(total, count)
    return to_code(signs, 255 * max(fitted(weight * cosines(signs, size)), 0.0))


def _at(total: Coefficients, strength: float, x: Picture) -> Picture:
    """Coefficients as a change of a picture, of so much energy; gradients pass through their places, not their size."""
    return _amplitude(total, strength, x) * hiding(x) * cosines(total, tuple(x.shape[-2:]))


def _amplitude(signs: Coefficients, strength: float, x: Picture) -> float:
    """Of each cosine, so that the change has so much energy."""
    return float((strength / energy(hiding(x) * cosines(signs.detach(), tuple(x.shape[-2:])), x)).sqrt())


def _adjusted(strength: float, likeness: float, bounds: tuple[float, float], step: float = STEP) -> float:
    """Less strength where readers are misled, more where they are not."""
    return min(max(strength * (step ** (-1 / 3) if likeness < MISLED else step), bounds[0]), bounds[1])


def _count(size: tuple[int, int], density: float) -> int:
    return max(1, min(MAX_SIGNS, round(density * size[0] * size[1])))


@torch.enable_grad()
def search(shown: Picture, truth: Picture, target: Target | None, steps: int) -> tuple[Coefficients, float]:
    """Signed cosines that make readers see in a picture the opposite of what they see in the photo.

    The sum of gradients, older ones faded, ranks the coefficients; the K largest are set, all to one amplitude.
    The loss is the cosine between the features of both pictures: no text is needed.

    Args:
        shown: What the change is added to, at the reader's scale, in [0, 1].
        truth: What must not be read, likewise.
        target: The readers; `READERS` where ``None``.
        steps: Gradient steps.

    Returns:
        Signs and amplitude for `psic_core.models.delta.to_code`, of an `energy` between the bounds of `CARRIED`.
    """
    target, size = target or readers(), tuple(shown.shape[-2:])
    count, strength, rng = _count(size, DENSITY), 1.0, torch.Generator().manual_seed(0)
    with torch.no_grad():
        was = target.encode_image(truth)
    total = 1e-3 * torch.randn(1, 3, *band(size), generator=rng)  # the cosine is flat where both pictures are one
    for _ in tqdm(range(steps), "shield", leave=False, disable=None):
        signs = largest(total, count).requires_grad_()
        share = float(torch.rand((), generator=rng) < PLATFORMS)
        x = random_platform_transform(shown + _at(signs, strength, shown), share, rng)
        likeness = (target.encode_image(x) * was).sum()
        (gradient,) = torch.autograd.grad(likeness, signs)
        total = MEMORY * total - gradient / gradient.norm().clamp_min(1e-12)
        strength = _adjusted(strength, float(likeness.detach()), CARRIED)
    signs = largest(total, count)
    return signs, 255 * _amplitude(signs, strength, shown)


def largest(c: Coefficients, count: int) -> Coefficients:
    """The signs of the ``count`` largest coefficients; the others, and zeros, are 0."""
    signs = torch.zeros_like(c).flatten()
    top = c.abs().flatten().topk(min(count, c.numel())).indices
    signs[top] = c.flatten()[top].sign()
    return signs.view_as(c)
