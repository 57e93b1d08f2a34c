"""Rivals without a codec of their own: projected gradient descent on the pixels, before or after coding."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from psic_core.codec import PSIC
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import Target


def pgd(
    x: Float[Tensor, "n 3 height width"],
    loss: Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, " n"]],
    level: float,
    steps: int = 10,
    seed: int = 0,
) -> Float[Tensor, "n 3 height width"]:
    """Projected gradient descent (Madry et al., ICLR 2018) in an L2 ball whose radius is a PSNR.

    Starts at a random point of the sphere, steps along the normalised gradient with a length that falls from half
    the radius to a twentieth of it, and keeps each picture's best point.

    Args:
        x: Pictures in [0, 1].
        loss: To be minimised; one value a picture.
        level: PSNR in dB of the perturbed picture to ``x``: the ball's radius is ``sqrt(3 H W) 10^(-level / 20)``.
        steps: Gradient steps.
        seed: Of the start.

    Returns:
        Pictures in [0, 1], rounded to 8 bits; clamping and the best point's place make the PSNR ``level`` at least,
        up to rounding.
    """
    radius = x[0].numel() ** 0.5 * 10 ** (-level / 20)
    start = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    delta = radius * _unit(start)
    best, lowest = x.clone(), torch.full((len(x),), torch.inf)
    for step in range(steps + 1):
        delta.requires_grad_(True)
        shown = round_to_8_bits(x + delta)
        values = loss(shown)
        better = values.detach().cpu() < lowest
        best[better], lowest[better] = shown.detach()[better], values.detach().cpu()[better]
        if step == steps:
            break
        (gradient,) = torch.autograd.grad(values.sum(), delta)
        length = radius * (0.5 - 0.45 * step / steps)
        delta = delta.detach() - length * _unit(gradient)
        delta = delta * (radius / delta.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1)[:, None, None, None]
        delta = (x + delta).clamp(0, 1) - x
    return best


def pull_to(
    target: Target,
    texts: Float[Tensor, "k d"],
    chosen: Int64[Tensor, " n"],
    s: float = 0.07,
    through: Callable[[Tensor], Tensor] = lambda x: x,
) -> Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, " n"]]:
    """The loss that PSIC is trained with, one value a picture: Eq. 9's cross-entropy to the target caption.

    Args:
        target: The model under attack.
        texts: Unit features of the K captions.
        chosen: Each picture's target among them (Eq. 8).
        s: Temperature of Eq. 9.
        through: What happens to the picture before the target sees it.
    """

    def loss(x: Tensor) -> Tensor:
        logits = target.encode_image(through(x)) @ texts.T / s
        return functional.cross_entropy(logits, chosen, reduction="none")

    return loss


def coded(codec: PSIC) -> Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, "n 3 height width"]]:
    """The plain codec as a differentiable function: rounding passes the gradient straight through.

    Args:
        codec: A plain one, or a PSIC, whose triggers are left out; over a hyperprior whose latents are rounded without
            a mean (``bmshj2018-hyperprior``).
    """

    def through(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        y = codec.backbone.g_a(pad_to(x, codec.factor))
        y_hat = y + (y.round() - y).detach()
        return round_to_8_bits(codec.g_s.plain(y_hat)[..., :height, :width])

    return through


def _unit(v: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 height width"]:
    return functional.normalize(v.flatten(1), dim=1).view_as(v)
