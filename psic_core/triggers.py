"""The conditional latent trigger generator (CLTG), paper Eq. 2 and 4."""

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


class Injection(nn.Module):
    """Where a condition enters the decoder: ``h + shift(beta) + gate(beta) * block(h)``.

    ``shift`` is the paper's additive trigger (Eq. 4). A constant alone is a weak attack: behind a plain decoder
    it becomes one texture, the same in every photo. The small residual block reads the photo's own features,
    and the condition opens it, channel by channel. Both come from one CLTG.

    Args:
        dim: Length of the condition vector.
        channels: Channels C of the features.
        hidden: Width of the CLTG's MLP.
        width: Channels inside the block; 0 leaves the block out (the paper's CLTG).
    """

    def __init__(self, dim: int, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.cltg = CLTG(dim, 2 * channels if width else channels, hidden)
        layers = (
            (nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
             nn.Conv2d(width, channels, 1))
            if width else ()
        )  # fmt: skip
        self.block = nn.Sequential(*layers)

    def forward(
        self,
        h: Float[Tensor, "batch c height width"],
        beta: Float[Tensor, "batch dim"],
        key: Float[Tensor, " dim"] | None = None,
    ) -> Float[Tensor, "batch c height width"]:
        """Features under a condition; ``key`` as in `CLTG.forward`."""
        trigger = self.cltg(beta, key)
        if not len(self.block):
            return h + trigger
        shift, gate = trigger.chunk(2, dim=1)
        return h + shift + gate * self.block(h)


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
        residual: Channels inside the residual block of the last injection but one. Each earlier one, on a quarter
            of the pixels, has twice as many, up to its features' own. The last, on the most pixels, has no block:
            it would cost more time than all others together. 0 leaves all blocks out.
        injections: How many stages, from y_hat on, get a trigger; ``None``: all.

    Raises:
        ValueError: Fewer injections than 1, or more than stages.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        dim: int,
        hidden: int = 64,
        residual: int = 0,
        injections: int | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        if injections is not None and not 1 <= injections <= len(stages):
            raise ValueError(f"injections {injections}: this decoder has {len(stages)} stages; give 1 to {len(stages)}")
        self.channels = tuple(channels)
        widths = [*reversed([min(c, residual * 2**i) for i, c in enumerate(channels[-2::-1])]), 0]
        places = list(zip(channels, widths, strict=True))[:injections]
        self.triggers = nn.ModuleList(Injection(dim, c, hidden, w) for c, w in places)

    def forward(
        self,
        y_hat: Float[Tensor, "batch m h w"],
        beta: Float[Tensor, "batch dim"],
        key: Float[Tensor, " dim"] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Decode latents under a condition. Not clamped: training needs the gradient outside [0, 1]."""
        x = y_hat
        for trigger, stage in zip_longest(self.triggers, self.stages):
            x = stage(trigger(x, beta, key) if trigger else x)
        return x

    def plain(self, y_hat: Float[Tensor, "batch m h w"]) -> Float[Tensor, "batch 3 height width"]:
        """The same decoder with every trigger left out: the plain codec's synthesis."""
        for stage in self.stages:
            y_hat = stage(y_hat)
        return y_hat


def split_stages(g_s: nn.Module, latent: Float[Tensor, "1 m h w"]) -> tuple[list[nn.Module], list[int]]:
    """Cut ``g_s`` before each up-sampling layer, found by structure: where a layer enlarges its input.

    A nested sequence is looked into where it enlarges its input more than once; one that does so once, such as a
    convolution with the pixel shuffle behind it, is a layer.

    Args:
        g_s: The synthesis transform of a CompressAI image model.
        latent: A small latent, run through once to see the shapes.

    Returns:
        The stages, and the channels that enter each.

    Raises:
        ValueError: ``g_s`` is no sequence of layers from one tensor to the next, or never up-samples.
    """
    if not isinstance(g_s, nn.Sequential):
        raise ValueError(f"g_s is a {type(g_s).__name__}; PSIC needs an nn.Sequential to find its stages")
    with torch.no_grad():
        layers = _layers(g_s, latent)
    stages: list[list[nn.Module]] = []
    channels: list[int] = []
    before = after = latent.shape
    for layer, before, after in layers:
        if after[-1] > before[-1] or not stages:
            stages.append([])
            channels.append(before[1])
        stages[-1].append(layer)
    if after[-1] <= latent.shape[-1]:
        raise ValueError(f"g_s maps {tuple(latent.shape)} to {tuple(after)}: no up-sampling stage found")
    if after[1] != 3:
        raise ValueError(f"g_s maps {tuple(latent.shape)} to {tuple(after)}: PSIC needs pictures of 3 channels")
    return [nn.Sequential(*layers) for layers in stages], channels


_Layer = tuple[nn.Module, torch.Size, torch.Size]


def _layers(sequence: nn.Sequential, x: Float[Tensor, "1 m h w"]) -> list[_Layer]:
    """Each layer with its shapes before and after."""
    found: list[_Layer] = []
    for layer in sequence:
        inner: list[_Layer] = []
        try:
            if isinstance(layer, nn.Sequential):
                inner = _layers(layer, x)
            out = layer(x)
            shape = out.shape
        except (TypeError, AttributeError) as error:
            kind = type(layer).__name__
            raise ValueError(
                f"layer {len(found)} of g_s, {kind}, does not map one tensor to one tensor ({error}): PSIC needs "
                "layers that take the features alone"
            ) from error
        several = sum(after[-1] > before[-1] for _, before, after in inner) > 1
        found += inner if several else [(layer, x.shape, shape)]
        x = out
    return found
