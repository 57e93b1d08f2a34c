"""A rival with the public decoder and published pixels alone: which latents give this picture without a keyword?

Triggers change the picture and never the latents; and a picture has many times as many samples as its latents. So
a protected picture still says what its latents were, to whoever knows the decoder that made it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from psic_core.codec import PSIC
from psic_core.images import pad_to, round_to_8_bits

Pictures = Float[Tensor, "n 3 height width"]


def invert(model: PSIC, published: Pictures, steps: int = 40, rate: float = 0.1) -> Float[Tensor, "n m h w"]:
    """Analysis by synthesis: latents whose protected version is the published picture.

    Starts from the latents of the published picture coded again, and follows the gradient of
    ``||g_s(y, 0) - published||^2`` (Adam, cosine rate). No secret is used.

    Args:
        model: The public codec that made the pictures.
        published: Protected pictures of any one size, in [0, 1].
        steps: 0 only codes the picture again.
        rate: Learning rate, in steps of the quantiser.

    Returns:
        Latents, not rounded: what is a little off the integers decodes better than what is rounded wrongly.

    Raises:
        ValueError: A negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"steps {steps}: give 0 or more")
    height, width = published.shape[-2:]
    y = model.eval().quantised_latents(pad_to(published, model.factor)).requires_grad_()
    optimiser = torch.optim.Adam([y], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    for _ in range(steps):
        off = model.synthesize(y)[..., :height, :width] - published
        (y.grad,) = torch.autograd.grad(255**2 * off.square().mean(), y)  # of the latents alone
        optimiser.step()
        schedule.step()
    return y.detach()


@torch.no_grad()
def stripped(model: PSIC, published: Pictures, steps: int = 40, rate: float = 0.1, batch: int = 10) -> Pictures:
    """The full version of protected pictures, without a key: inverted, then decoded with all triggers left out.

    Args:
        model: An anchored one; else its plain decoder is not quite its full version.
        published: As for `invert`.
        steps: Likewise.
        rate: Likewise.
        batch: Pictures inverted together.

    Returns:
        At 8 bits.
    """
    height, width = published.shape[-2:]
    found = []
    for x in published.split(batch):
        with torch.enable_grad():
            y = invert(model, x, steps, rate)
        found.append(round_to_8_bits(model.g_s.plain(y)[..., :height, :width]))
    return torch.cat(found)
