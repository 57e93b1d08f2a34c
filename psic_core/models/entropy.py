"""Entropy coding with a CompressAI backbone, made safe: equal on every machine, and bad input is refused."""

import hashlib
import zlib
from functools import cached_property
from types import MethodType
from typing import Any, NamedTuple

import torch
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from compressai.layers import MaskedConv2d
from compressai.models import CompressionModel
from jaxtyping import Float, Float64, Int32
from torch import Tensor, nn

from psic_core.bitstream import BitstreamError
from psic_core.models import exact, tiles
from psic_core.models.compressai import KnownLatents, replaced
from psic_core.models.exact import SCALES as SCALES  # where users look for it
from psic_core.models.range_coder import channels, make_tables, padded, read, restore, stored, write

_TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
_LARGEST = 2**24  # symbols; CompressAI's range encoder never returns from one of 2^27 or more, and NaN becomes one


class Coded(NamedTuple):
    """One picture's latents in the file, and as a decoder gets them.

    ``checksum`` is the CRC-32 of the coded symbols; where a model is not portable, of y_hat, rounded.
    """

    strings: tuple[bytes, ...]
    y_hat: Float[Tensor, "1 m h w"]
    checksum: int


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
        self.portable = exact.is_exact(backbone)  # files decode on every machine, not only on ones like this
        self.hyperprior: exact.ExactHyperprior | None = None  # of a portable model
        self.weights = b""  # hash of those that tables and hyperprior were made from
        self.current = b""  # the fingerprint
        self.unit: Any = None  # CompressAI's ``shape`` of a picture of factor x factor
        for module in backbone.modules():
            if isinstance(module, EntropyModel):
                module._non_persistent_buffers_set.update(module._buffers.keys() & set(_TABLES))
                module.register_load_state_dict_pre_hook(_drop_tables)
                module.forward = MethodType(_float32_forward, module)
            if isinstance(module, GaussianConditional):
                module.build_indexes = MethodType(_build_indexes, module)
        for name, module in backbone.named_modules():
            if name.rpartition(".")[2] in ("g_a", "h_a"):  # h_a may lie within a latent codec
                module.register_forward_hook(_refuse_wild_latents)

    @cached_property
    def context(self) -> int:
        """How many latents away a pixel changes a latent; measured once, where a picture is tiled."""
        return tiles.reach(self.backbone.g_a.forward, 3, self.cell)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "1 3 height width"], tile: int = 0) -> Coded:
        """Code a padded picture.

        Args:
            x: The picture.
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
        if self.portable:
            return self._encode_exactly(y)
        with replaced(self.backbone, g_a=KnownLatents(y)):
            coded = self.backbone.compress(x)
        strings = tuple(string for (string,) in coded["strings"])
        return self.decode(strings, (x.shape[-2] // self.factor, x.shape[-1] // self.factor))

    def _encode_exactly(self, y: Float[Tensor, "1 m h w"]) -> Coded:
        bottleneck, conditional = self.backbone.entropy_bottleneck, self.backbone.gaussian_conditional
        z = self.backbone.h_a(y if self.hyperprior.means else y.abs())
        z_symbols = bottleneck.quantize(z, "symbols", bottleneck.quantiles[None, :, 0, 1, None, None])
        indexes, means = self.hyperprior(z_symbols)
        symbols = (y - means / 2**exact.PLACES).round().int()
        strings = (write(conditional, symbols, indexes), write(bottleneck, z_symbols, channels(z_symbols)))
        return _coded(strings, symbols, means, z_symbols)

    @torch.no_grad()
    def decode(self, strings: tuple[bytes, ...], shape: tuple[int, int]) -> Coded:
        """The latents of one picture. Call `fingerprint` before, which makes the tables.

        Args:
            strings: CompressAI's.
            shape: The padded picture's height and width, as multiples of ``factor``.

        Raises:
            BitstreamError: The strings are none that `encode` writes for such a picture.
        """
        pixels = shape[0] * shape[1] * self.factor**2
        longest = max(map(len, strings))
        if longest > 16 * pixels + 64:
            raise BitstreamError(f"a string of {longest} bytes is too long for {pixels} pixels")
        if self.portable:
            return self._decode_exactly(strings, shape)
        tailed = [[padded(string, 2 * pixels)] for string in strings]
        self.backbone.decompress(tailed, self._nested(shape))
        y_hat = self.backbone.g_s.y_hat
        if not bool((y_hat.abs() < 2**31).all()):  # NaN too
            raise BitstreamError("y_hat has values that are not finite or exceed 32 bits; check the model")
        return Coded(strings, y_hat, _crc(y_hat.double().round().int()))

    def _decode_exactly(self, strings: tuple[bytes, ...], shape: tuple[int, int]) -> Coded:
        if len(strings) != 2:
            raise BitstreamError(f"{len(strings)} strings are not what this architecture writes: it writes y and z")
        bottleneck = self.backbone.entropy_bottleneck
        which = channels(torch.empty(1, bottleneck.channels, *shape))
        z_symbols = read(bottleneck, strings[1], which)
        # z is a hundredth of the work, and an honest one is written again as it was: a forged size ends here.
        if z_symbols.abs().max() >= _LARGEST or write(bottleneck, z_symbols, which) != strings[1]:
            raise BitstreamError("the hyper-latents are none of a picture of this size: the file was tampered with")
        indexes, means = self.hyperprior(z_symbols)
        symbols = read(self.backbone.gaussian_conditional, strings[0], indexes)
        return _coded(strings, symbols, means, z_symbols)

    def _nested(self, shape: tuple[int, int]) -> Any:
        """CompressAI's ``shape`` of a picture. Models made of latent codecs nest one for each codec."""
        if not hasattr(self.backbone, "latent_codec"):
            return torch.Size(shape)
        if self.unit is None:
            self.unit = self.backbone.compress(torch.zeros(1, 3, self.factor, self.factor))["shape"]
        return _scaled(self.unit, shape)

    def fingerprint(self) -> bytes:
        """8 bytes of SHA-256 over encoder, entropy model and its tables: equal where streams are interchangeable.

        Refuses what would corrupt streams, and refreshes the tables where the weights have changed: CompressAI
        leaves ``update()`` to its users, who forget it. The weights are hashed each time (3 ms a million):
        tensors count their in-place changes, but not those of fused optimisers or of ``.data``.

        Raises:
            ValueError: The model is not float32 on the CPU, or has diverged.
        """
        weights = self._hash_weights()
        if weights != self.weights:
            for _, module in self._entropy_models():
                make_tables(module)
            self._prepare(weights)
        return self.current

    def _hash_weights(self) -> bytes:
        for module in self.backbone.modules():
            if isinstance(module, MaskedConv2d):  # else its first forward pass would change the fingerprint
                module.weight.data.mul_(module.mask)
        digest = hashlib.sha256()
        for name, p in self.backbone.named_parameters():
            if p.device.type != "cpu" or p.dtype != torch.float32:
                where = f"entropy coding on {p.device} in {p.dtype}"
                raise ValueError(f"{where} would not decode elsewhere: call model.cpu().float() first")
            digest.update(name.encode())
            digest.update(p.detach().contiguous().numpy())
        return digest.digest()

    def _prepare(self, weights: bytes) -> None:
        """What follows from weights and tables."""
        self.hyperprior = exact.ExactHyperprior(self.backbone) if self.portable else None
        digest = hashlib.sha256(weights + repr(exact.THRESHOLDS).encode())
        for _, module in self._entropy_models():
            for table in stored(module).values():
                digest.update(table.contiguous().numpy().astype("<i4"))
        self.weights, self.current = weights, digest.digest()[:8]

    def _entropy_models(self) -> list[tuple[str, EntropyModel]]:
        known = (EntropyBottleneck, GaussianConditional)
        return [(name, m) for name, m in self.backbone.named_modules() if isinstance(m, known)]

    def tables(self) -> dict[str, Int32[Tensor, " length"]]:
        """What a portable model's checkpoint stores beside its weights; of others nothing."""
        self.fingerprint()
        models = self._entropy_models() if self.portable else []
        return {f"{name}.{part}": t for name, m in models for part, t in stored(m).items()}

    def use_tables(self, tables: dict[str, Tensor]) -> None:
        """Code with the tables that `tables` gave, on whatever machine, as long as the weights are these.

        Raises:
            ValueError: They do not fit, or the model is not float32 on the CPU.
        """
        models = self._entropy_models()
        if set(tables) != {f"{name}.{part}" for name, _ in models for part in ("cdf", "length", "offset")}:
            raise ValueError(f"its tables of the range coder are incomplete: {', '.join(sorted(tables))}")
        for name, module in models:
            restore(module, {part: tables[f"{name}.{part}"] for part in ("cdf", "length", "offset")})
        self._prepare(self._hash_weights())

    @torch.no_grad()
    def set_quantiles(self) -> None:
        """Put the entropy bottleneck's quantiles where its densities want them, by bisection.

        The auxiliary loss only approaches them. The streams change: not for a model with files in use.
        """
        for module in self.backbone.modules():
            if isinstance(module, EntropyBottleneck):
                module.update(force=True, update_quantiles=True)


def _coded(
    strings: tuple[bytes, ...],
    symbols: Int32[Tensor, "1 m h w"],
    means: Float64[Tensor, "1 m h w"],
    z_symbols: Int32[Tensor, "1 n hz wz"],
) -> Coded:
    y_hat = symbols + means / 2**exact.PLACES
    return Coded(strings, y_hat.float(), _crc(symbols, _crc(z_symbols)))


def _crc(symbols: Int32[Tensor, "..."], start: int = 0) -> int:
    return zlib.crc32(symbols.contiguous().numpy().astype("<i4", copy=False), start)


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


def _drop_tables(model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """State that other versions saved holds the tables of other weights."""
    for name in _TABLES:
        state.pop(prefix + name, None)


def _refuse_wild_latents(encoder: nn.Module, inputs: tuple[Tensor, ...], y: Float[Tensor, "batch m h w"]) -> None:
    if not torch.is_grad_enabled() and not bool((y.abs() < _LARGEST).all()):
        raise ValueError(f"latents of up to {y.abs().max():.3g}: the model has diverged and cannot code a picture")
