"""Rivals who know the method and have the codec: a purifier, a reader that learns, and the codec itself.

Whoever has the codec can protect photos of his own and holds both versions of each. That is all that supervised
learning needs; no key is involved, and what was learned is then used on other people's protected pictures.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from psic_core.codec import PSIC
from psic_core.evidence import caption_ids
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.lite_clip import LITE_CLIPS, contrastive, image_features, text_features
from psic_core.models.vlp import Target

Pictures = Float[Tensor, "n 3 height width"]


class Purifier(nn.Module):
    """A residual denoiser: DnCNN (Zhang et al., TIP 2017) on pixels folded two by two, as in FFDNet (ibid., 2018).

    Folding quarters the time and doubles what a pixel of the answer sees. The last layer starts at zero: a fresh
    purifier is the identity.
    """

    FOLD, WIDTH, DEPTH = 2, 48, 6

    def __init__(self) -> None:
        super().__init__()
        ends = 3 * self.FOLD**2
        sizes = [ends, *[self.WIDTH] * (self.DEPTH - 1), ends]
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


def train_purifier(protected: Pictures, full: Pictures, steps: int = 500) -> Purifier:
    """Learn the way back from pairs of versions.

    The loss is ``255^2 MSE(p, x_hat_f)``.

    Args:
        protected: The rival's own x_hat_e, at 8 bits, as published.
        full: The x_hat_f of the same files, in the same order.
        steps: Of Adam, under a cosine rate, with 8 crops of at most 96 pixels a side.

    Returns:
        In eval mode, without gradients.
    """
    rng, crop = torch.Generator().manual_seed(0), min(96, *full.shape[-2:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        purifier = Purifier().to(full)

    def loss() -> Tensor:
        index = torch.randperm(len(full), generator=rng)[:8]
        top, left = (int(torch.randint(side - crop + 1, (), generator=rng)) for side in full.shape[-2:])
        given, wanted = (v[index, :, top : top + crop, left : left + crop] for v in (protected, full))
        return 255**2 * functional.mse_loss(purifier.cleaned(given), wanted)

    _descend(torch.optim.Adam(purifier.parameters(), 2e-3), loss, steps)
    return purifier.eval().requires_grad_(False)


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
        steps: Of AdamW, under a cosine rate from 3e-4, with 256 pictures each or all where there are fewer.

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
    _descend(torch.optim.AdamW(learning, 3e-4), loss, steps)
    result.requires_grad_(False)
    result.name = f"{target.name}, adapted"
    return result


def _descend(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int) -> None:
    """So many steps down a loss that draws its batch, under a cosine rate."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()


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
