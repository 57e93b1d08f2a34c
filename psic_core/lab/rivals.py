"""Rivals who know the method and have the codec: a reader that learns, and the codec itself.

Whoever has the codec can protect photos of his own and holds both versions of each. That is all that supervised
learning needs; no key is involved, and what was learned is then used on other people's protected pictures.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
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
    descend(torch.optim.AdamW(learning, 3e-4), loss, steps)
    result.requires_grad_(False)
    result.name = f"{target.name}, adapted"
    return result


def descend(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int) -> None:
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
