"""The conditional latent trigger generator (CLTG), paper Eq. 2 and 4."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class CLTG(nn.Module):
    """One trigger: condition vector -> one constant for each channel of one decoder stage.

    ``T(beta) = W_d . MLP_2(beta)`` (paper Eq. 2), broadcast over height and width and added to the stage's
    features (Eq. 4). ``W_d`` starts at zero, so that a fresh trigger adds exactly nothing and a fresh PSIC
    *is* its backbone.

    Args:
        dim: Length of the condition vector.
        channels: Channels C of the stage that the trigger feeds.
        hidden: Width of the two-layer MLP.
    """

    def __init__(self, dim: int, channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.w_d = nn.Linear(hidden, channels)
        nn.init.zeros_(self.w_d.weight)
        nn.init.zeros_(self.w_d.bias)

    def forward(self, beta: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch channels 1 1"]:
        """The trigger of each condition, ready to be added to features ``(B, C, H, W)``."""
        return self.w_d(self.mlp(beta))[:, :, None, None]


class ConditionalSynthesis(nn.Module):
    """CompressAI's synthesis transform ``g_s`` with a trigger after y_hat and after each up-sampling stage.

    ::

        y_hat -(+)- stage 1 -(+)- stage 2 -(+)- stage 3 -(+)- last stage -> x_hat
                |             |             |             |
              CLTG 0        CLTG 1        CLTG 2        CLTG 3   <- beta

    Args:
        stages: The pieces of ``g_s`` (see `split_stages`); their composition is ``g_s``.
        channels: Channels before each stage; the first is that of y_hat.
        dim: Length of the condition vector.
        hidden: Width of the triggers' MLPs.
    """

    def __init__(self, stages: Sequence[nn.Module], channels: Sequence[int], dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.triggers = nn.ModuleList(CLTG(dim, c, hidden) for c in channels)

    def forward(
        self, y_hat: Float[Tensor, "batch m h w"], beta: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Decode latents under a condition. Not clamped: training needs the gradient outside [0, 1]."""
        x = y_hat
        for trigger, stage in zip(self.triggers, self.stages, strict=True):
            x = stage(x + trigger(beta))
        return x

    def plain(self, y_hat: Float[Tensor, "batch m h w"]) -> Float[Tensor, "batch 3 height width"]:
        """The same decoder with every trigger left out: the plain codec's synthesis."""
        for stage in self.stages:
            y_hat = stage(y_hat)
        return y_hat


def split_stages(g_s: nn.Sequential, latent: Float[Tensor, "1 m h w"]) -> tuple[list[nn.Module], list[int]]:
    """Cut ``g_s`` before each up-sampling layer, found by structure: where a layer enlarges its input.

    Args:
        g_s: The synthesis transform of a CompressAI image model.
        latent: A small latent, run through once to see the shapes.

    Returns:
        The stages, and the channels that enter each.

    Raises:
        ValueError: ``g_s`` is not an ``nn.Sequential`` or never up-samples.
    """
    if not isinstance(g_s, nn.Sequential):
        raise ValueError(f"g_s is a {type(g_s).__name__}; PSIC needs an nn.Sequential to find its stages")
    stages: list[list[nn.Module]] = []
    channels: list[int] = []
    x = latent
    with torch.no_grad():
        for layer in g_s:
            out = layer(x)
            if out.shape[-1] > x.shape[-1] or not stages:
                stages.append([])
                channels.append(x.shape[1])
            stages[-1].append(layer)
            x = out
    if x.shape[-1] <= latent.shape[-1]:
        raise ValueError(f"g_s maps {tuple(latent.shape)} to {tuple(x.shape)}: no up-sampling stage found")
    return [nn.Sequential(*layers) for layers in stages], channels
