"""Models that tests share: small ones, of every architecture, whose triggers answer as after training."""

import functools

import torch
from compressai.models import CompressionModel
from torch import Tensor, nn

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.models.compressai import build_backbone, scale_latents
from psic_core.triggers import CLTG

OWNER = "the owner's words"
SMALL = {"dim": 16, "hidden": 8, "ladder": 4}  # triggers


def awaken(model: PSIC, scale: float = 0.3, seed: int = 1) -> PSIC:
    """Give every trigger random weights; those of the model's own key stay zero, as training keeps them."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for cltg in (m for m in model.modules() if isinstance(m, CLTG)):
            cltg.w_d.weight.copy_(scale * torch.randn(cltg.w_d.weight.shape, generator=rng))
    if model.config.anchored and model.secret:
        model.anchor()
    return model


def picture(height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Smooth noise, of any size."""
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def sizes(name: str) -> dict[str, int]:
    """A few channels."""
    return {"n": 8, "m": 136 if name.startswith("elic") else 12}  # ELIC's groups take 128 channels and some


def backbone(name: str) -> CompressionModel:
    """CompressAI's own model, small, random, with latents that are not all zero."""
    torch.manual_seed(3)
    return scale_latents(build_backbone(name, **sizes(name)).eval(), picture(128, 128))


@functools.cache
def fresh(name: str) -> PSIC:
    """The same wrapped, as it comes. Not to be changed by a test."""
    return PSIC.wrap(backbone(name), keys.secret(OWNER), **SMALL).eval()
