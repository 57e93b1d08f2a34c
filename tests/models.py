"""Models that tests share: small ones whose triggers answer as after training."""

import torch

from psic_core.codec import PSIC
from psic_core.triggers import CLTG


def awaken(model: PSIC, scale: float = 0.3, seed: int = 1) -> PSIC:
    """Give every trigger random weights; those of the model's own key stay zero, as training keeps them."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for cltg in (m for m in model.modules() if isinstance(m, CLTG)):
            cltg.w_d.weight.copy_(scale * torch.randn(cltg.w_d.weight.shape, generator=rng))
    if model.config.anchored and model.secret:
        model.anchor()
    return model
