"""A shield made for one photo: what its readers see is turned round by a few cosines, found at their scale.

Not in the paper. UAEO trains one generator against all photos' readings; here the change of one photo is searched for,
by gradient descent on the places and signs of its cosines, in the time that R pixels take, whatever the photo's size.
"""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.models.delta import MAX_SIGNS, Coefficients, band, cosines, reduced, to_code
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import Target, load_target
from psic_core.training.platforms import random_platform_transform

READERS = "lite-clip+lite1-clip"
DENSITY = 0.047  # cosines for each pixel at the reader's scale: 1,800 of a photo of 3 to 2, in 1.4 KB
CARRIED, SEALED = 43.0, 46.0  # dB of the change
TRIGGERS = 0.0  # share of the triggers' change under a carried shield
PLATFORMS = 0.5  # of the steps look at the picture as a platform hands it on
MEMORY = 0.9  # of the gradients, from step to step

Picture = Float[Tensor, "1 3 height width"]


@cache
def readers(name: str = READERS) -> Target:
    """The models that photos are protected from, loaded once."""
    return load_target(name)


def carried(model: PSIC, x_hat_f: Picture, x: Picture, target: Target | None = None) -> bytes:
    """The code of a change that, added to the full version, hides the photo x."""
    side, share = model.config.reading_side, TRIGGERS if model.kind == "psic" else 0.0
    shown = reduced(x_hat_f, side)
    if share:
        shown = (shown + share * model.delta(x_hat_f)).clamp(0, 1)
    return to_code(*search(shown, reduced(x, side), CARRIED, target), share)


def sealed(x: Picture, side: int, target: Target | None = None) -> bytes:
    """The code of a change that, added to the photo x before it is coded, hides it; ``side`` is R."""
    small = reduced(x, side)
    return to_code(*search(small, small, SEALED, target))


def search(
    shown: Picture, truth: Picture, level: float, target: Target | None = None, steps: int = 24, seed: int = 0
) -> tuple[Coefficients, float]:
    """Signed cosines that make readers see in a picture the opposite of what they see in the photo.

    The sum of gradients, older ones faded, ranks the coefficients; the K largest are set, all to one amplitude.
    The loss is the cosine between the features of both pictures: no text is needed.

    Args:
        shown: What the change is added to, at the reader's scale, in [0, 1].
        truth: What must not be read, likewise.
        level: PSNR in dB of the change.
        target: The readers; `READERS` where ``None``.
        steps: Gradient steps.
        seed: Of what platforms do.

    Returns:
        Signs and amplitude for `psic_core.models.delta.to_code`: the last step's, since all have one strength.
    """
    target, size = target or readers(), tuple(shown.shape[-2:])
    count = max(1, min(MAX_SIGNS, round(DENSITY * size[0] * size[1])))
    amplitude = 255 * math.sqrt(shown.numel() / count) * 10 ** (-level / 20)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        was = target.encode_image(truth)
    total = 1e-3 * torch.randn(1, 3, *band(size), generator=rng)  # the cosine is flat where both pictures are one
    for _ in tqdm(range(steps), "shield", leave=False, disable=None):
        signs = largest(total, count).requires_grad_()
        x = round_to_8_bits(shown + cosines(signs * amplitude / 255, size))
        share = float(torch.rand((), generator=rng) < PLATFORMS)
        seen = target.encode_image(random_platform_transform(x, share, rng))
        (gradient,) = torch.autograd.grad((seen * was).sum(), signs)
        total = MEMORY * total - gradient / gradient.norm().clamp_min(1e-12)
    return largest(total, count), amplitude


def largest(c: Coefficients, count: int) -> Coefficients:
    """The signs of the ``count`` largest coefficients; the others, and zeros, are 0."""
    signs = torch.zeros_like(c).flatten()
    top = c.abs().flatten().topk(min(count, c.numel())).indices
    signs[top] = c.flatten()[top].sign()
    return signs.view_as(c)
