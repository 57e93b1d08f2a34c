"""Entropy coding with a CompressAI backbone, made safe: tables kept fresh, bad input refused, no foreign memory."""

import hashlib
from functools import cached_property
from types import MethodType
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from compressai.layers import MaskedConv2d
from compressai.models import CompressionModel, ScaleHyperprior
from compressai.models.base import get_scale_table
from jaxtyping import Float, Int32
from torch import Tensor, nn

from psic_core.bitstream import BitstreamError
from psic_core.models import tiles
from psic_core.models.compressai import KnownLatents, levels, replaced

#: Standard deviations that the entropy coder knows. CompressAI's 64 up to 256 cost 2 to 3 % of the file at these
#: rates, because each predicted scale is rounded up to the next; these cost about 1 %.
SCALES = get_scale_table(0.11, 64, 128)
_TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")


class EntropyCoder:
    """Latents to strings and back.

    Args:
        backbone: A CompressAI image model whose ``g_s`` is a `psic_core.models.compressai.LatentTap`. Its tables leave
            the state dict: they follow from the weights, and their sizes hinder ``load_state_dict``.
        factor: Height and width of pictures are multiples of it.
        cell: Pixels that a latent stands for, on each side.
    """

    def __init__(self, backbone: CompressionModel, factor: int, cell: int) -> None:
        self.backbone = backbone
        self.factor = factor
        self.cell = cell
        self.levels = levels(backbone)
        self.current = b""  # fingerprint of the weights that the tables were made from
        self.unit: Any = None  # CompressAI's ``shape`` of a picture of factor x factor
        for module in backbone.modules():
            if isinstance(module, EntropyModel):
                module._non_persistent_buffers_set.update(module._buffers.keys() & set(_TABLES))
                module.register_load_state_dict_pre_hook(_drop_tables)
                wide = _bottleneck_forward if isinstance(module, EntropyBottleneck) else _float32_forward
                module.forward = MethodType(wide, module)
            if isinstance(module, GaussianConditional):
                module.build_indexes = MethodType(_build_indexes, module)
        for name, module in backbone.named_modules():
            if name.rpartition(".")[2] in ("g_a", "h_a"):  # h_a may lie within a latent codec
                module.register_forward_hook(_refuse_wild_latents)

    @cached_property
    def context(self) -> int:
        """How many latents away a pixel changes a latent; measured once, where a picture is tiled."""
        return tiles.reach(self.backbone.g_a.forward, 3, self.cell)

    def checked_quality(self, quality: int | None, default: int) -> int:
        """The quality that is meant: ``None`` is the default.

        Raises:
            ValueError: The model has no such rate.
        """
        if self.levels is None and quality not in (None, default):
            raise ValueError(f"quality {quality}: this model has one rate, labelled {default}")
        quality = default if quality is None else quality
        if self.levels is not None and not 0 <= quality < self.levels:
            raise ValueError(f"quality {quality} of a variable-rate model; it has 0 to {self.levels - 1}")
        return quality

    def rate(self, quality: int) -> dict[str, int]:
        """What the backbone's methods take besides: a variable-rate model's level, else nothing."""
        return {} if self.levels is None else {"s": quality}

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "1 3 height width"], quality: int, tile: int = 0
    ) -> tuple[tuple[bytes, ...], Float[Tensor, "1 m h w"]]:
        """CompressAI's strings, and the y_hat that they will decode to.

        Args:
            x: The padded picture.
            quality: A variable-rate model's level; without meaning for others.
            tile: Side in pixels of the windows that ``g_a`` sees; 0: the whole picture.

        Raises:
            ValueError: The model is not float32 on the CPU, or has diverged.
        """
        self.fingerprint()
        g_a = self.backbone.g_a
        if tile and max(x.shape[-2:]) > tile:
            y = tiles.tiled(g_a, x, (self.cell, 1), -(-tile // self.cell), self.context, "encoding")
        else:
            y = g_a(x)
        with replaced(self.backbone, g_a=KnownLatents(y)):
            coded = self.backbone.compress(x, **self.rate(quality))
        strings = tuple(string for (string,) in coded["strings"])
        if type(self.backbone) is ScaleHyperprior:  # no predicted means: y_hat is y, rounded
            return strings, y.round()
        return strings, self.decode(strings, (x.shape[-2] // self.factor, x.shape[-1] // self.factor), quality)

    @torch.no_grad()
    def decode(self, strings: tuple[bytes, ...], shape: tuple[int, int], quality: int) -> Float[Tensor, "1 m h w"]:
        """The latents of one picture. Call `fingerprint` before, which makes the tables.

        The range decoder does not check its bounds. Zeros behind each string keep a forged file from reading
        foreign memory: a symbol takes at most 2 bytes, and an escape code, which a string can announce to be 15
        times as long as the announcement, ends in zeros.

        Args:
            strings: CompressAI's.
            shape: The padded picture's height and width, as multiples of ``factor``.
            quality: As for `encode`.

        Raises:
            BitstreamError: A string is longer than the picture can need.
        """
        symbols = shape[0] * shape[1] * self.factor**2
        longest = max(map(len, strings))
        if longest > 16 * symbols + 64:
            raise BitstreamError(f"a string of {longest} bytes is too long for {symbols} pixels")
        padded = [[string + bytes(4 * symbols + 16 * len(string) + 4096)] for string in strings]
        self.backbone.decompress(padded, self._nested(shape), **self.rate(quality))
        return self.backbone.g_s.y_hat

    def _nested(self, shape: tuple[int, int]) -> Any:
        """CompressAI's ``shape`` of a picture. Models made of latent codecs nest one for each codec."""
        if not hasattr(self.backbone, "latent_codec"):
            return torch.Size(shape)
        if self.unit is None:
            self.unit = self.backbone.compress(torch.zeros(1, 3, self.factor, self.factor))["shape"]
        return _scaled(self.unit, shape)

    def fingerprint(self) -> bytes:
        """8 bytes of SHA-256 over encoder, entropy model and scales: equal where streams are interchangeable.

        Refuses what would corrupt streams, and refreshes the tables where the weights have changed: CompressAI
        leaves ``update()`` to its users, who forget it. The weights are hashed each time (3 ms a million):
        tensors count their in-place changes, but not those of fused optimisers or of ``.data``.

        Raises:
            ValueError: The model is not float32 on the CPU.
        """
        for module in self.backbone.modules():
            if isinstance(module, MaskedConv2d):  # else its first forward pass would change the fingerprint
                module.weight.data.mul_(module.mask)
        digest = hashlib.sha256(SCALES.numpy())
        for name, p in self.backbone.named_parameters():
            if p.device.type != "cpu" or p.dtype != torch.float32:
                raise ValueError(
                    f"entropy coding on {p.device} in {p.dtype} would not decode elsewhere: "
                    "call model.cpu().float() first"
                )
            digest.update(name.encode())
            digest.update(p.detach().contiguous().numpy())
        if digest.digest()[:8] != self.current:
            self._update()
            self.current = digest.digest()[:8]
        return self.current

    @torch.no_grad()
    def set_quantiles(self) -> None:
        """Put the entropy bottleneck's quantiles where its densities want them, by bisection.

        The auxiliary loss only approaches them. The streams change: not for a model with files in use.
        """
        self._update(update_quantiles=True)

    def _update(self, update_quantiles: bool = False) -> None:
        """CompressAI's ``update()``, whose arguments differ from model to model."""
        for module in self.backbone.modules():
            if isinstance(module, EntropyBottleneck):
                module.update(force=True, update_quantiles=update_quantiles)
            if isinstance(module, GaussianConditional):
                module.update_scale_table(SCALES, force=True)


def _scaled(tree: Any, units: tuple[int, int]) -> Any:
    """A nested shape of one unit, for so many units: heights and widths stand last."""
    if isinstance(tree, dict):
        return {name: _scaled(part, units) for name, part in tree.items()}
    if isinstance(tree, list):
        return [_scaled(part, units) for part in tree]
    *channels, height, width = tree
    return torch.Size((*channels, height * units[0], width * units[1]))


def _build_indexes(self: GaussianConditional, scales: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """CompressAI's numbers without its loop over the table: how many scales of the table lie below."""
    return torch.bucketize(self.lower_bound_scale(scales).contiguous(), self.scale_table[:-1]).int()


def _float32_forward(self: EntropyModel, *inputs: Any, **options: Any) -> Any:
    """Likelihoods in float32 whatever the networks compute in: bfloat16 has eight bits, a file needs sixteen."""
    wide = [t.float() if isinstance(t, Tensor) else t for t in inputs]
    with torch.autocast(wide[0].device.type, enabled=False):
        return type(self).forward(self, *wide, **options)


def _bottleneck_forward(
    self: EntropyBottleneck, z: Float[Tensor, "batch c h w"]
) -> tuple[Float[Tensor, "batch c h w"], Float[Tensor, "batch c h w"]]:
    """CompressAI's forward in float32, equal to the last bit; its own asks the GPU for the order of the axes."""
    with torch.autocast(z.device.type, enabled=False):
        swapped = z.float().transpose(0, 1).contiguous()
        mode = "noise" if self.training else "dequantize"
        z_hat = self.quantize(swapped.flatten(1).unsqueeze(1), mode, self._get_medians())
        likelihood = self.likelihood_lower_bound(self._likelihood(z_hat)[0])
        return tuple(v.view_as(swapped).transpose(0, 1).contiguous() for v in (z_hat, likelihood))


def _drop_tables(model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """State that other versions saved holds the tables of other weights."""
    for name in _TABLES:
        state.pop(prefix + name, None)


def _refuse_wild_latents(encoder: nn.Module, inputs: tuple[Tensor, ...], y: Float[Tensor, "batch m h w"]) -> None:
    """CompressAI's range encoder never returns from a symbol of 2^27 or more, and NaN becomes one."""
    if not torch.is_grad_enabled() and not bool((y.abs() < 2**24).all()):
        raise ValueError(f"latents of up to {y.abs().max():.3g}: the model has diverged and cannot code a picture")
