"""Parts of one model for another: triggers, transforms, and triggers made weaker."""

import torch

from psic_core.codec import PSIC


def copy_triggers(donor: PSIC, model: PSIC) -> None:
    """Copy trained triggers, and the secret that they answer to, from one model into another of the same shape.

    Raises:
        ValueError: The donor is a plain codec, or its triggers have other shapes.
    """
    if donor.kind != "psic":
        raise ValueError("a plain codec has no triggers to give; name a PSIC checkpoint")
    given, own = donor.g_s.triggers.state_dict(), model.g_s.triggers.state_dict()
    wrong = [n for n in own if n not in given or given[n].shape != own[n].shape]
    if wrong or len(given) != len(own) or donor.config.anchored != model.config.anchored:
        raise ValueError(f"triggers of {donor.config} do not fit {model.config}")
    model.g_s.triggers.load_state_dict(given)
    model.secret = donor.secret


@torch.no_grad()
def copy_transforms(donor: PSIC, model: PSIC) -> None:
    """Copy encoder and decoder of one architecture into another that has the same; triggers are left as they are.

    CompressAI's hyperprior models differ in their entropy models alone (``bmshj2018-hyperprior``, ``mbt2018-mean``,
    ``mbt2018``), so that a trained pair of transforms saves most of another's training. What fits of the rest
    (``h_a``, the entropy bottleneck) comes along.

    Args:
        donor: Trained.
        model: Of equal ``g_a`` and ``g_s``; changed in place.

    Raises:
        ValueError: Its ``g_a`` or ``g_s`` differs.
    """
    given, own = donor.state_dict(), model.state_dict()
    transforms = [n for n in own if n.startswith(("backbone.g_a.", "g_s.stages."))]
    wrong = [n for n in transforms if n not in given or given[n].shape != own[n].shape]
    if wrong:
        raise ValueError(f"the transforms of {donor.config} do not fit {model.config}: {wrong[0]}")
    fits = {n: t for n, t in given.items() if n in own and t.shape == own[n].shape and "triggers" not in n}
    model.load_state_dict(fits, strict=False)


@torch.no_grad()
def scale_triggers(model: PSIC, strength: float) -> None:
    """Multiply all triggers, in place; an anchored model's key keeps its zero."""
    for trigger in model.g_s.triggers:
        trigger.cltg.w_d.weight *= strength
        trigger.cltg.w_d.bias *= strength
