"""Entropy parameters in whole numbers, so that every machine computes the same ones.

A range decoder needs the encoder's scales and means to the last bit, and floating-point sums differ with the
instruction set, the number of threads and the library. So the hyperprior's ``h_s`` runs on integers here: weights with
16 binary places, activations with 12, rescaled by powers of two. float64 carries them, because every library multiplies
it fast: as long as no sum of products reaches 2^53, each addition is exact, and their order cannot matter.
`ExactHyperprior` proves this bound for the weights at hand.
"""

import math

import torch
from compressai.models import MeanScaleHyperprior, ScaleHyperprior
from jaxtyping import Float32, Float64, Int32
from torch import Tensor, nn
from torch.nn import functional

from psic_core.models import tiles

PLACES = 12  # binary places of activations, means and scales
WEIGHT_PLACES = 16
LARGEST = 2.0**20  # of an activation: 256, with its places
_TILE = 32  # hyper-latents on each side of a window, above which memory would grow

#: Standard deviations that the entropy coder knows, in units of 2^-12. CompressAI's 64 up to 256 cost 2 to 3 % of the
#: file at these rates, because each predicted scale is rounded up to the next; these cost about 1 %.
THRESHOLDS = [round(2**PLACES * 0.11 * math.exp(math.log(64 / 0.11) * i / 127)) for i in range(128)]
#: The same as float32, which holds them exactly.
SCALES = torch.tensor(THRESHOLDS) / 2**PLACES


def is_exact(backbone: nn.Module) -> bool:
    """Whether a model's entropy parameters can be computed in integers: the hyperprior, with means or without."""
    known = (nn.Conv2d, nn.ConvTranspose2d, nn.ReLU, nn.LeakyReLU)
    return type(backbone) in (ScaleHyperprior, MeanScaleHyperprior) and all(type(m) in known for m in backbone.h_s)


class ExactHyperprior:
    """``h_s`` in integers, with its weights of now.

    Args:
        backbone: A model of which `is_exact` is true.

    Raises:
        ValueError: A sum could reach 2^53, or a weight is not finite: the model has diverged.
    """

    def __init__(self, backbone: ScaleHyperprior) -> None:
        self.means = type(backbone) is MeanScaleHyperprior
        medians = backbone.entropy_bottleneck.quantiles.detach()[:, 0, 1]
        self.medians = _whole(medians, PLACES)[:, None, None]
        self.layers: list[tuple[nn.Module, Tensor | None, Tensor | None]] = []
        for layer in backbone.h_s:
            if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
                self.layers.append((layer, None, None))
                continue
            weight, bias = _whole(layer.weight, WEIGHT_PLACES), _whole(layer.bias, PLACES + WEIGHT_PLACES)
            inputs = (0, 2, 3) if isinstance(layer, nn.ConvTranspose2d) else (1, 2, 3)
            largest = float((weight.abs().sum(inputs) * LARGEST + bias.abs()).max()) + 2**WEIGHT_PLACES
            if not largest < 2**53:  # NaN too
                raise ValueError(f"sums in h_s could reach {largest:.3g}, beyond 2^53: the model has diverged")
            self.layers.append((layer, weight, bias))

    def __call__(self, z: Int32[Tensor, "1 n h w"]) -> tuple[Int32[Tensor, "1 m hy wy"], Float64[Tensor, "1 m hy wy"]]:
        """Which of `THRESHOLDS` each latent's scale is rounded up to, and its mean in units of 2^-12.

        Args:
            z: Symbols of the hyper-latents: what the medians are added to.
        """
        x = (z.double() * 2**PLACES + self.medians).clamp(-LARGEST, LARGEST)
        if z.shape[-2] * z.shape[-1] > _TILE**2:
            reach = tiles.reach(lambda x: self._h_s(x.double()), len(self.medians), 1)
            out = tiles.tiled(self._h_s, x, (1, 4), _TILE, reach, "entropy parameters")
        else:
            out = self._h_s(x)
        scales, means = out.chunk(2, 1) if self.means else (out, torch.zeros(()).double().expand_as(out))
        return torch.bucketize(scales.contiguous(), torch.tensor(THRESHOLDS[:-1]).double()).int(), means

    def _h_s(self, x: Float64[Tensor, "1 n h w"]) -> Float64[Tensor, "1 c hy wy"]:
        for layer, weight, bias in self.layers:
            if isinstance(layer, nn.ReLU):
                x = x.clamp(min=0)
            elif isinstance(layer, nn.LeakyReLU):
                x = torch.where(x < 0, _rescaled(x * round(layer.negative_slope * 2**WEIGHT_PLACES)), x)
            elif isinstance(layer, nn.ConvTranspose2d):
                x = functional.conv_transpose2d(x, weight, bias, layer.stride, layer.padding, layer.output_padding)
                x = _rescaled(x)
            else:
                x = _rescaled(functional.conv2d(x, weight, bias, layer.stride, layer.padding))
        return x


def _whole(values: Float32[Tensor, "*shape"], places: int) -> Float64[Tensor, "*shape"]:
    return (values.detach().double() * 2**places).round()


def _rescaled(x: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Back to the places of an activation: rounded half up, clamped."""
    return ((x + 2 ** (WEIGHT_PLACES - 1)) / 2**WEIGHT_PLACES).floor().clamp(-LARGEST, LARGEST)
