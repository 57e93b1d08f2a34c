"""A rival who trains the reader, not the picture: the target's heads fine-tuned on protected pictures."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from psic_core.pairs import Pairs
from psic_core.targets import LITE_CLIPS, Target
from psic_core.train_target import Heads, TowerFeatures, tower_features


def adapted_heads(
    target: Target,
    pictures: Float[Tensor, "n 3 height width"],
    captions: Sequence[tuple[str, ...]],
    steps: int = 300,
    seed: int = 0,
) -> Target:
    """A target that has seen protected pictures with their true captions.

    Its towers are locked, as when it was made (`psic_core.train_target`); the two linear heads go on learning from
    where they are.

    Args:
        target: ``lite-clip`` or ``lite2-clip``; stays as it is.
        pictures: Protected ones, at 8 bits in [0, 1]. The rival's own: he knows what they show.
        captions: Of each picture, equally many.
        steps: Of AdamW, batches of 256.
        seed: Of the batches.

    Returns:
        Another target, with heads of its own.

    Raises:
        ValueError: Not one of these targets, as many captions as pictures are not there, or no step.
    """
    if target.name not in LITE_CLIPS:
        raise ValueError(f"{target.name!r} is not made of two heads on locked towers; give {' or '.join(LITE_CLIPS)}")
    eight_bits = (pictures * 255).round().clamp(0, 255).to(torch.uint8)
    return tuned(target, tower_features(target, Pairs(eight_bits, captions), views=1), steps, seed)


def tuned(
    target: Target, features: TowerFeatures, steps: int, seed: int = 0, batch: int = 256, rate: float = 3e-4
) -> Target:
    """The same from what the towers said.

    Args:
        target: Its heads are where the learning starts.
        features: Of pictures and captions; of several views, each batch takes one.
        steps: Of AdamW, under a cosine rate.
        seed: Of the batches.
        batch: Pictures a step; all of them where there are fewer.
        rate: First learning rate.

    Raises:
        ValueError: No step.
    """
    if steps < 1:
        raise ValueError(f"steps {steps}: give at least 1")
    result = copy.deepcopy(target)
    visual, text = result.model.visual.head.proj, result.model.text.proj
    heads = Heads(visual.out_features, dropout=0.0)
    heads.load_state_dict(
        {"image.weight": visual.weight, "text.weight": text.weight, "logit_scale": result.model.logit_scale}
    )
    rng, n = torch.Generator().manual_seed(seed), len(features.text)
    optimiser = torch.optim.AdamW(heads.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        index = torch.randperm(n, generator=rng)[:batch]
        view = torch.randint(len(features.image), (len(index),), generator=rng)
        choice = torch.randint(features.text.shape[1], (len(index),), generator=rng)
        ids = features.ids[index, choice]
        loss = heads.contrastive(
            features.image[view, index], features.text[index, choice], ids[:, None] == ids[None, :]
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    own = {"visual.head.proj.weight": heads.image.weight, "text.proj.weight": heads.text.weight}
    result.model.load_state_dict({name: p.detach() for name, p in own.items()}, strict=False)
    with torch.no_grad():
        result.model.logit_scale.copy_(heads.logit_scale)
    result.name = f"{target.name}, adapted"
    return result
