"""The conditional latent trigger generator (CLTG): section 3.2 of the paper, Fig. 2b, Eq. 2 to 4.

Shen et al., ICML 2025, https://proceedings.mlr.press/v267/.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class CLTG(nn.Module):
    """The trigger of one decoder stage: condition vector -> a few numbers for each of the stage's channels.

    ``T(beta) = W_d . MLP_2(beta)`` (paper Eq. 2), broadcast over height and width. ``W_d`` starts at zero: a
    fresh trigger is exactly nothing, and a fresh PSIC *is* its backbone.

    Args:
        dim: Length of the condition vector.
        channels: Numbers to generate.
        hidden: Width of the two-layer MLP.
    """

    def __init__(self, dim: int, channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.w_d = nn.Linear(hidden, channels)
        nn.init.zeros_(self.w_d.weight)
        nn.init.zeros_(self.w_d.bias)

    def forward(
        self, beta: Float[Tensor, "batch dim"], key: Float[Tensor, " dim"] | None = None
    ) -> Float[Tensor, "batch channels 1 1"]:
        """The trigger of each condition; with ``key``, measured from the trigger of that condition.

        ``T(beta) - T(key)`` does not depend on the bias, which `anchor` can therefore set to give the same
        without ``key``; here the gradient sees that the key's trigger stays zero.
        """
        if key is None:
            return self.w_d(self.mlp(beta))[:, :, None, None]
        return functional.linear(self.mlp(beta) - self.mlp(key), self.w_d.weight)[:, :, None, None]

    @torch.no_grad()
    def anchor(self, key: Float[Tensor, " dim"]) -> None:
        """Set the bias so that the trigger of ``key`` is zero."""
        self.w_d.bias.copy_(-functional.linear(self.mlp(key), self.w_d.weight))


State = Float[Tensor, "batch w height width"]


class Additive(nn.Module):
    """The paper's trigger: ``h + T(beta)``, one constant a channel (Eq. 4)."""

    def __init__(self, dim: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.cltg = CLTG(dim, channels, hidden)

    def forward(
        self,
        h: Float[Tensor, "batch c height width"],
        beta: Float[Tensor, "batch dim"],
        key: Float[Tensor, " dim"] | None = None,
        state: State | None = None,
    ) -> tuple[Float[Tensor, "batch c height width"], None]:
        """Features under a condition; ``key`` as in `CLTG.forward`. There is no state."""
        return h + self.cltg(beta, key), None


class Rung(nn.Module):
    """One stage of the ladder: what the decoder has there and what the rung below found -> the stage's trigger.

    ``h + gate(beta) * write(u)``, with ``u`` a small network's reading of ``h``, of the state of the rung below and of
    the mean over the whole picture. The condition opens the gates, channel by channel; ``u`` does not depend on it.
    A ladder sees the picture, and its rungs agree. Nothing is added that is the same everywhere: behind a decoder
    that enlarges step by step a constant becomes a grid.

    Args:
        dim: Length of the condition vector.
        channels: Channels C of the stage's features.
        hidden: Width of the CLTG's MLP.
        width: Channels of the state.
        below: Channels of the state of the rung below; 0: there is none.
        depth: Residual blocks.
    """

    def __init__(self, dim: int, channels: int, hidden: int, width: int, below: int, depth: int) -> None:
        super().__init__()
        self.cltg = CLTG(dim, channels, hidden)
        self.read = nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(1, width))
        self.rise = nn.Conv2d(below, width, 1) if below else None
        self.everywhere = nn.Linear(width, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(depth)
        )
        self.write = nn.Conv2d(width, channels, 1)

    def forward(
        self,
        h: Float[Tensor, "batch c height width"],
        beta: Float[Tensor, "batch dim"],
        key: Float[Tensor, " dim"] | None,
        state: Float[Tensor, "batch below rows columns"] | None,
    ) -> tuple[Float[Tensor, "batch c height width"], Float[Tensor, "batch w height width"]]:
        """Features under a condition, and the state for the rung above; ``key`` as in `CLTG.forward`."""
        u = self.read(h)
        if self.rise is not None:
            u = u + functional.interpolate(self.rise(state), u.shape[-2:])
        u = u + self.everywhere(u.mean((2, 3)))[:, :, None, None]
        for block in self.blocks:
            u = u + block(u)
        return h + self.cltg(beta, key) * self.write(functional.relu(u)), u


class ConditionalSynthesis(nn.Module):
    """CompressAI's synthesis transform ``g_s`` with a trigger after y_hat and after each up-sampling stage.

    ::

        y_hat -(+)- stage 1 -(+)- stage 2 -(+)- stage 3 -(+)- last stage -> x_hat
                |             |             |             |
            trigger 0     trigger 1     trigger 2     trigger 3   <- beta

    Args:
        stages: The pieces of ``g_s`` (see `split_stages`); their composition is ``g_s``.
        channels: Channels before each stage; the first is that of y_hat.
        dim: Length of the condition vector.
        hidden: Width of the triggers' MLPs.
        ladder: Channels of the state beside the picture, doubled at each earlier stage up to its features' own: a
            `Rung` before each stage and one behind the last. 0: the paper's `Additive` triggers.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        dim: int,
        hidden: int = 64,
        ladder: int = 0,
    ) -> None:
        super().__init__()
        self.stages, self.channels = nn.ModuleList(stages), tuple(channels)
        if ladder:
            self.triggers = _ladder((*channels, 3), dim, hidden, ladder)
        else:
            self.triggers = nn.ModuleList(Additive(dim, c, hidden) for c in channels)

    def forward(
        self,
        y_hat: Float[Tensor, "batch m h w"],
        beta: Float[Tensor, "batch dim"],
        key: Float[Tensor, " dim"] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Decode latents under a condition. Not clamped: training needs the gradient outside [0, 1]."""
        x, state = y_hat, None
        for trigger, stage in zip_longest(self.triggers, self.stages):
            x, state = trigger(x, beta, key, state)
            x = stage(x) if stage is not None else x
        return x

    def plain(self, y_hat: Float[Tensor, "batch m h w"]) -> Float[Tensor, "batch 3 height width"]:
        """The same decoder with every trigger left out: the plain codec's synthesis."""
        for stage in self.stages:
            y_hat = stage(y_hat)
        return y_hat


def _ladder(channels: Sequence[int], dim: int, hidden: int, ladder: int) -> nn.ModuleList:
    """A rung for each of the features; the two on the most pixels have one block, as the first, the others two."""
    widths = [min(max(c, ladder), ladder * 2 ** (len(channels) - 1 - i)) for i, c in enumerate(channels)]
    depths = [1 if i == 0 or i >= len(channels) - 2 else 2 for i in range(len(channels))]
    parts = zip(channels, widths, [0, *widths], depths, strict=False)
    return nn.ModuleList(Rung(dim, c, hidden, width, below, depth) for c, width, below, depth in parts)
