"""CompressAI's image models, known by their structure: sizes, factor, rates. No table of what each one looks like."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from compressai.entropy_models import EntropyBottleneckVbr
from compressai.models import CompressionModel
from compressai.registry import MODELS
from compressai.zoo.image import cfgs
from jaxtyping import Float
from torch import Tensor, nn

from psic_core.bitstream import ARCHITECTURES, CUSTOM

_SMALLEST = {"N": 128, "M": 192}  # where neither CompressAI's zoo nor the constructor says a size
_PROBE = 256  # pixels: the format allows a picture to be padded to a multiple of at most this


@contextmanager
def replaced(model: nn.Module, **parts: nn.Module) -> Iterator[None]:
    """Put other modules into a codec's places while a block runs, for example ``g_a=KnownLatents(y)``.

    CompressAI's models run from the picture to the picture; PSIC needs what lies between::

        x -> [g_a] -> y -> h_a, entropy model, range coder and back -> y_hat -> [g_s] -> x_hat
               |                                                                  |
               KnownLatents: y is computed already, window by window              LatentTap: y_hat is what is wanted
    """
    before = {name: getattr(model, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(model, name, part)
        yield
    finally:
        for name, part in before.items():
            setattr(model, name, part)


class KnownLatents(nn.Module):
    """Stands where the backbone had ``g_a`` while it codes latents that were computed before."""

    def __init__(self, y: Float[Tensor, "1 m h w"]) -> None:
        super().__init__()
        self.y = y

    def forward(self, x: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "1 m h w"]:
        """The latents, whatever the picture."""
        return self.y


class LatentTap(nn.Module):
    """Stands where the backbone had ``g_s``, in PSIC for good: hands y_hat on unchanged and keeps a copy.

    With it the backbone is just encoder + entropy model, and what it calls its reconstruction is y_hat.
    """

    y_hat: Tensor

    def forward(self, y_hat: Float[Tensor, "batch m h w"]) -> Float[Tensor, "batch m h w"]:
        """Identity. Decompressing models clamp the result in place, hence the copy."""
        self.y_hat = y_hat.detach()  # a graph would outlive its step, and forbid copying the model
        return y_hat.clone()


@dataclass(frozen=True)
class Anatomy:
    """What a backbone is made of, found by running a picture through it.

    Attributes:
        y_hat: Latents of the probe, for `split_stages`.
        factor: Height and width of a picture must be multiples of it, in pixels.
        cell: Pixels that a latent stands for, on each side.
    """

    y_hat: Float[Tensor, "1 m h w"]
    factor: int
    cell: int


def default_sizes(name: str) -> tuple[int, int]:
    """N and M as CompressAI builds the architecture at its lowest quality; where only N is asked, both are N.

    Raises:
        ValueError: CompressAI has no image model of this name.
    """
    wanted = _parameters(name)
    if name in cfgs:
        given = cfgs[name][min(cfgs[name])]
    else:
        given = [_SMALLEST[k] if p.default is p.empty else p.default for k, p in wanted.items()]
    return given[0], given[-1]


def build_backbone(name: str, n: int, m: int) -> CompressionModel:
    """One of CompressAI's image models with random weights, of ``n`` channels inside and ``m`` of the latent y.

    Raises:
        ValueError: CompressAI has no image model of this name, or refuses the sizes.
    """
    sizes = {"N": n, "M": m}
    wanted = {k: sizes[k] for k in _parameters(name)}
    try:
        return MODELS[name](**wanted)
    except (AssertionError, RuntimeError) as error:
        low, high = default_sizes(name)
        raise ValueError(f"{name} cannot be built with n={n}, m={m}; CompressAI's are n={low}, m={high}") from error


def identify(model: CompressionModel, n: int, m: int) -> str:
    """The architecture that builds a model of the same tensors with ``n`` and ``m``, else ``"custom"``.

    Without looking at ``g_s``, which PSIC has taken out.
    """
    for name in ARCHITECTURES:
        if MODELS[name] is type(model):
            with torch.random.fork_rng(devices=()):
                try:
                    twin = build_backbone(name, n, m)
                except ValueError:
                    return CUSTOM
            shapes = [{k: p.shape for k, p in m.named_parameters() if k[:4] != "g_s."} for m in (twin, model)]
            return name if shapes[0] == shapes[1] else CUSTOM
    return CUSTOM


@torch.no_grad()
def dissect(model: nn.Module) -> Anatomy:
    """Find a model's padding factor and latents by a forward pass, in eval mode; the model stays as it is.

    Raises:
        ValueError: The model is none that PSIC can take its decoder from.
    """
    what = type(model).__name__
    if not isinstance(model, CompressionModel):
        raise ValueError(f"{what} is no compressai CompressionModel; PSIC wraps those, or a name such as 'mbt2018'")
    for part in ("g_a", "g_s"):
        if not isinstance(getattr(model, part, None), nn.Module):
            raise ValueError(f"{what} has no {part}: PSIC wraps image codecs of the form g_s(Q(g_a(x)))")
    if any(isinstance(part, EntropyBottleneckVbr) for part in model.modules()):
        raise ValueError(f"{what} has tables for each gain; build it with vr_entbttlnck=False")
    factor = getattr(model, "downsampling_factor", None)
    tap, training = LatentTap(), model.training
    side, device = 2 * factor if factor else _PROBE, next(model.parameters()).device
    try:
        with replaced(model, g_s=tap):
            out = model.eval()(torch.zeros(1, 3, side, side, device=device))
        smallest = min(p.shape[-1] for p in out["likelihoods"].values())
    except (RuntimeError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{what} does not code a picture of {side}x{side} as image models do: {error}") from error
    finally:
        model.train(training)
    return Anatomy(tap.y_hat, factor or side // smallest, side // tap.y_hat.shape[-1])


def hold_rate(model: CompressionModel, quality: int) -> None:
    """Keep a codec of many rates (-vbr) at one. CompressAI counts them from 0; their lambdas are those of quality 1 on.

    Raises:
        ValueError: It has no such rate.
    """
    if not hasattr(model, "Gain"):
        return
    if not 1 <= quality <= len(model.Gain):
        raise ValueError(f"quality {quality} of a codec with the rates 1 to {len(model.Gain)}")
    for name in ("forward", "compress", "decompress"):
        setattr(model, name, partial(getattr(type(model), name), model, s=quality - 1))


def scale_latents(model: CompressionModel, x: Float[Tensor, "1 3 height width"]) -> CompressionModel:
    """Scale the last down-sampling layer of ``g_a``, so that a random model has something to code.

    Args:
        model: Random weights.
        x: A picture; its latents get a standard deviation of 6 steps of the quantiser.
    """
    *_, last = (layer for layer in model.g_a.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2))
    with torch.no_grad():
        last.weight *= 6 / model.g_a(x).std() / (model.Gain[1] if hasattr(model, "Gain") else 1)
        last.bias *= 0
    return model


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """Those of N and M that the constructor takes."""
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r} is none of {', '.join(ARCHITECTURES)}; pass a model instead of a name")
    return {k: p for k, p in inspect.signature(MODELS[name].__init__).parameters.items() if k in ("N", "M")}


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
