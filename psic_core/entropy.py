"""Entropy coding with a CompressAI backbone, made safe: tables kept fresh, bad input refused, no foreign memory."""

import hashlib
from types import MethodType
from typing import Any

import torch
from compressai.entropy_models import EntropyModel, GaussianConditional
from compressai.models import CompressionModel, ScaleHyperprior
from compressai.models.base import get_scale_table
from jaxtyping import Float, Int32
from torch import Tensor, nn

from psic_core.bitstream import BitstreamError

#: Standard deviations that the entropy coder knows. CompressAI's 64 up to 256 cost 2 to 3 % of the file at these
#: rates, because each predicted scale is rounded up to the next; these cost about 1 %.
SCALES = get_scale_table(0.11, 64, 128)
_TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")


class LatentTap(nn.Module):
    """Stands where the backbone had ``g_s``: hands y_hat on unchanged and keeps a copy.

    With it the backbone is just encoder + entropy model, and what it calls its reconstruction is y_hat.
    """

    y_hat: Tensor

    def forward(self, y_hat: Float[Tensor, "batch m h w"]) -> Float[Tensor, "batch m h w"]:
        """Identity. Decompressing models clamp the result in place, hence the copy."""
        self.y_hat = y_hat.detach()  # a graph would outlive its step, and forbid copying the model
        return y_hat.clone()


class EntropyCoder:
    """Latents to strings and back.

    Args:
        backbone: A CompressAI image model whose ``g_s`` is a `LatentTap`. Its tables leave the state dict: they
            follow from the weights, and their sizes hinder ``load_state_dict``.
    """

    def __init__(self, backbone: CompressionModel) -> None:
        self.backbone = backbone
        self.current = b""  # fingerprint of the weights that the tables were made from
        for module in backbone.modules():
            if isinstance(module, EntropyModel):
                module._non_persistent_buffers_set.update(module._buffers.keys() & set(_TABLES))
                module.register_load_state_dict_pre_hook(_drop_tables)
            if isinstance(module, GaussianConditional):
                module.build_indexes = MethodType(_build_indexes, module)
        for name, module in backbone.named_children():
            if name in ("g_a", "h_a"):
                module.register_forward_hook(_refuse_wild_latents)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "1 3 height width"]) -> tuple[dict[str, Any], Float[Tensor, "1 m h w"]]:
        """CompressAI's ``strings`` and ``shape``, and the y_hat that they will decode to.

        Raises:
            ValueError: The model is not float32 on the CPU, or has diverged.
        """
        self.fingerprint()
        kept: list[Tensor] = []
        hook = self.backbone.g_a.register_forward_hook(lambda _, __, y: kept.append(y))
        try:
            coded = self.backbone.compress(x)
        finally:
            hook.remove()
        if type(self.backbone) is ScaleHyperprior:  # no predicted means: y_hat is y, rounded
            return coded, kept[0].round()
        return coded, self.decode(tuple(string for (string,) in coded["strings"]), tuple(coded["shape"]))

    @torch.no_grad()
    def decode(self, strings: tuple[bytes, ...], shape: tuple[int, int]) -> Float[Tensor, "1 m h w"]:
        """The latents of one picture. Call `fingerprint` before, which makes the tables.

        The range decoder does not check its bounds. Zeros behind each string keep a forged file from reading
        foreign memory: a symbol takes at most 2 bytes, and an escape code, which a string can announce to be 15
        times as long as the announcement, ends in zeros.

        Raises:
            BitstreamError: A string is longer than the picture can need.
        """
        symbols = shape[0] * shape[1] * self.backbone.downsampling_factor**2
        longest = max(map(len, strings))
        if longest > 16 * symbols + 64:
            raise BitstreamError(f"a string of {longest} bytes is too long for {symbols} pixels")
        padded = [[string + bytes(4 * symbols + 16 * len(string) + 4096)] for string in strings]
        self.backbone.decompress(padded, torch.Size(shape))
        return self.backbone.g_s.y_hat

    def fingerprint(self) -> bytes:
        """8 bytes of SHA-256 over encoder, entropy model and scales: equal where streams are interchangeable.

        Refuses what would corrupt streams, and refreshes the tables where the weights have changed: CompressAI
        leaves ``update()`` to its users, who forget it. The weights are hashed each time (3 ms a million):
        tensors count their in-place changes, but not those of fused optimisers or of ``.data``.

        Raises:
            ValueError: The model is not float32 on the CPU.
        """
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
            self.backbone.update(scale_table=SCALES, force=True)
            self.current = digest.digest()[:8]
        return self.current

    @torch.no_grad()
    def settle(self) -> None:
        """Put the entropy bottleneck's quantiles where its densities want them, by bisection.

        The auxiliary loss only approaches them. The streams change: not for a model with files in use.
        """
        self.backbone.update(scale_table=SCALES, force=True, update_quantiles=True)


def _build_indexes(self: GaussianConditional, scales: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """CompressAI's numbers without its loop over the table: how many scales of the table lie below."""
    return torch.bucketize(self.lower_bound_scale(scales).contiguous(), self.scale_table[:-1]).int()


def _drop_tables(model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """State that other versions saved holds the tables of other weights."""
    for name in _TABLES:
        state.pop(prefix + name, None)


def _refuse_wild_latents(encoder: nn.Module, inputs: tuple[Tensor, ...], y: Float[Tensor, "batch m h w"]) -> None:
    """CompressAI's range encoder never returns from a symbol of 2^27 or more, and NaN becomes one."""
    if not torch.is_grad_enabled() and not bool((y.abs() < 2**24).all()):
        raise ValueError(f"latents of up to {y.abs().max():.3g}: the model has diverged and cannot code a picture")
