"""A rival who knows the method: a small network, trained on its own pairs, that maps x_hat_e back to x_hat_f.

Whoever has the codec can protect photos of his own and holds both versions of each. That is all that supervised
learning needs; no key is involved, and the network is then run on other people's protected pictures.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from psic_core.images import pad_to
from psic_core.targets import Target

Pictures = Float[Tensor, "n 3 height width"]


class Purifier(nn.Module):
    """A residual denoiser: DnCNN (Zhang et al., TIP 2017) on pixels folded two by two, as in FFDNet (ibid., 2018).

    Folding quarters the time and doubles what a pixel of the answer sees. The last layer starts at zero: a fresh
    purifier is the identity.

    Args:
        width: Channels inside.
        depth: Convolutions of 3 x 3.
    """

    FOLD = 2

    def __init__(self, width: int = 48, depth: int = 6) -> None:
        super().__init__()
        ends = 3 * self.FOLD**2
        sizes = [ends, *[width] * (depth - 1), ends]
        convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)]
        nn.init.zeros_(convolutions[-1].weight)
        nn.init.zeros_(convolutions[-1].bias)
        self.layers = nn.Sequential(*[layer for c in convolutions for layer in (c, nn.ReLU())][:-1])

    def forward(self, x: Pictures) -> Pictures:
        """Purified pictures in [0, 1], of any size."""
        return self.cleaned(x).clamp(0, 1)

    def cleaned(self, x: Pictures) -> Pictures:
        """The same before clamping, which has no gradient outside [0, 1]."""
        height, width = x.shape[-2:]
        folded = functional.pixel_unshuffle(pad_to(x, self.FOLD), self.FOLD)
        return x + functional.pixel_shuffle(self.layers(folded), self.FOLD)[..., :height, :width]


def train_purifier(
    protected: Pictures,
    full: Pictures,
    steps: int = 500,
    batch: int = 8,
    crop: int = 96,
    seed: int = 0,
    target: Target | None = None,
    weight: float = 300.0,
    rate: float = 2e-3,
    progress: Callable[[int, float], None] | None = None,
) -> Purifier:
    """Learn the way back from pairs of versions.

    The loss is ``255^2 MSE(p, x_hat_f)``; with a target, ``+ weight (1 - cos(f(p), f(x_hat_f)))``: a picture need not
    be restored for its reading to be.

    Args:
        protected: The rival's own x_hat_e, at 8 bits, as published.
        full: The x_hat_f of the same files, in the same order.
        steps: Of Adam, under a cosine rate.
        batch: Crops a step.
        crop: Their side in pixels, at most the pictures'.
        seed: Of the network, the crops and their order.
        target: The model whose reading is to be restored; ``None``: pixels alone.
        weight: Of the reading against the mean squared error.
        rate: Adam's first learning rate.
        progress: Told the step, from 0, and its loss.

    Returns:
        In eval mode, without gradients.

    Raises:
        ValueError: The versions differ in shape, there are fewer pictures than a batch, or the crop is too large.
    """
    if protected.shape != full.shape:
        raise ValueError(f"protected {tuple(protected.shape)}, full {tuple(full.shape)}: give two of each file")
    if len(full) < batch:
        raise ValueError(f"{len(full)} pairs do not fill a batch of {batch}; give more, or a smaller batch")
    if crop > min(full.shape[-2:]):
        raise ValueError(f"crop {crop} exceeds the pictures' {tuple(full.shape[-2:])}")
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        purifier = Purifier().to(full)
    optimiser = torch.optim.Adam(purifier.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        index = torch.randperm(len(full), generator=rng)[:batch]
        top, left = (int(torch.randint(side - crop + 1, (), generator=rng)) for side in full.shape[-2:])
        given, wanted = (v[index, :, top : top + crop, left : left + crop] for v in (protected, full))
        cleaned = purifier.cleaned(given)
        loss = 255**2 * functional.mse_loss(cleaned, wanted)
        if target is not None:
            with torch.no_grad():
                meaning = target.encode_image(wanted)
            loss = loss + weight * (1 - (target.encode_image(cleaned) * meaning).sum(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    return purifier.eval().requires_grad_(False)
