"""The shield at every size, which is not in the paper: triggers made at the reader's scale, and enlarged.

A reader scales a photo down before it looks, and what is finer than its pixels is gone: triggers decoded at the photo's
own size (Eq. 3) are a texture of a few pixels, which protects thumbnails and nothing else.
"""

import hashlib
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psic_core import bitstream, keys
from psic_core.bitstream import BitstreamError, Stream
from psic_core.config import CodecConfig
from psic_core.models import tiles
from psic_core.models.delta import NOTHING, Adapted, enlarged, from_code, hiding, reading_size, reduced, within_budget
from psic_core.models.entropy import EntropyCoder
from psic_core.models.images import pad_to
from psic_core.triggers import ConditionalSynthesis

Pictures = Float[Tensor, "batch 3 height width"]
Latents = Float[Tensor, "batch m h w"]


class Version(NamedTuple):
    """What a keyword makes of a file."""

    name: str  # full, protected, or wrong keyword, which is protected too
    condition: Float[Tensor, " dim"] | None
    adapted: Adapted | None  # of a shield that was made for the photo


class AnySize(nn.Module):
    """What a `psic_core.PSIC` makes of latents, for pictures of every size.

    ::

        y_hat -> D(y_hat, c) = x_hat_f --------------------(+)-> x_hat_e
                                 |                          |
                          scaled down to R               enlarged
                                 |                          |
                                x_r -> g_a -> D(., beta) - D(., c) = delta
    """

    config: CodecConfig
    coder: EntropyCoder
    g_s: ConditionalSynthesis
    kind: str
    secret: bytes | None

    @torch.no_grad()
    def picture(
        self,
        y_hat: Latents,
        size: tuple[int, int],
        condition: Float[Tensor, " dim"] | None = None,
        tile: int | None = None,
        adapted: Adapted | None = None,
        x_hat_f: Pictures | None = None,
    ) -> Pictures:
        """Pictures under a condition, in [0, 1].

        Up to a shorter side of R = ``config.reading_side`` this is Eq. 3, ``D(y_hat, beta)``. Above, it is
        ``x_hat_f`` and the enlarged `delta`, at a cost that does not grow with the photo. A change that exceeds
        ``config.budget`` is scaled down.

        Args:
            y_hat: Latents of padded pictures.
            size: Height and width of the pictures in pixels.
            condition: ``None`` and the zero vector decode protected.
            tile: Side in pixels of the windows in which a large picture is decoded, as for `PSIC.compress`.
            adapted: A change found for this picture, beside the share of the triggers' that it stands on.
            x_hat_f: What `full` gives for the latents, where it is known already.
        """
        full = self._is_full(condition) or (adapted is not None and adapted.triggers == 0)
        small = min(size) <= self.config.reading_side
        if small and not full and adapted is None and not self.config.budget:
            return self.synthesize(y_hat, condition)[..., : size[0], : size[1]].clamp(0, 1)
        x_hat = self.full(y_hat, size, tile) if x_hat_f is None else x_hat_f
        share, found = adapted or (1.0, None)
        found = None if found is None else found * hiding(reduced(x_hat, self.config.reading_side))
        if not full:
            x_hat_e = self.synthesize(y_hat, condition)[..., : size[0], : size[1]] if small else None
            delta = self.delta(x_hat, condition) if x_hat_e is None else self._bounded(x_hat_e - x_hat, x_hat)
            x_hat = x_hat + share * enlarged(delta, size)
        if found is not None:
            x_hat = x_hat + enlarged(found, size)
        return x_hat.clamp(0, 1)

    @torch.no_grad()
    def full(self, y_hat: Latents, size: tuple[int, int], tile: int | None = None) -> Pictures:
        """The full version x_hat_f, not clamped; arguments as for `picture`."""
        cell, tile, g_s = self.coder.cell, tiles.tile_for(*size, tile), self._full
        large = tile and max(y_hat.shape[-2:]) * cell > tile
        x_hat = tiles.tiled(g_s, y_hat, (1, cell), -(-tile // cell), self.context, "decoding") if large else g_s(y_hat)
        return x_hat[..., : size[0], : size[1]]

    def delta(
        self, x_hat_f: Pictures, condition: Float[Tensor, " dim"] | None = None
    ) -> Float[Tensor, "batch 3 small_height small_width"]:
        """What the triggers of a condition change in full pictures scaled to a shorter side of R, at most.

        Args:
            x_hat_f: Pictures in [0, 1].
            condition: As for `picture`.
        """
        x_r = reduced(x_hat_f, self.config.reading_side)
        y = self.analysed(pad_to(x_r, self.coder.cell))
        delta = (self.synthesize(y, condition) - self._full(y))[..., : x_r.shape[-2], : x_r.shape[-1]]
        return self._bounded(delta, x_r)

    def _bounded(self, delta: Pictures, x_hat_f: Pictures) -> Pictures:
        return within_budget(delta, x_hat_f, self.config.budget) if self.config.budget else delta

    def version_of(self, stream: Stream, keyword: str | None) -> Version:
        """Which version a keyword decodes, and how; the owner's passphrase does too, unless the file is sealed.

        Raises:
            BitstreamError: The code of a shield that was made for the photo is damaged, or another file's.
        """
        kind, content = stream.shield
        size = reading_size(stream.size, self.config.reading_side)
        if kind == bitstream.SEALED:
            key = _from_slot(stream, keyword) if keyword is not None else None
            if key is None:
                return Version("protected" if keyword is None else "wrong keyword", None, NOTHING)
            code = keys.open_code(key, content, bitstream.binding(stream))
            if code is None:
                raise BitstreamError("the sealed code of the shield is damaged, or another file's; use another copy")
            return Version("full", None, Adapted(0.0, from_code(code, size).delta))
        adapted = None
        if kind == bitstream.CARRIED:
            code = content[4:]
            if content[:4] != carried(code, stream)[:4]:
                raise BitstreamError("the code of the shield is another file's; use another copy")
            adapted = from_code(code, size)
        secret = None if keyword is None else _from_slot(stream, keyword) or keys.secret(keyword)
        condition = None if secret is None else keys.condition(secret, self.config.dim)
        if secret is not None and self.owns(secret):
            return Version("full", condition, None)
        return Version("protected" if secret is None else "wrong keyword", condition, adapted)

    @cached_property
    def context(self) -> int:
        """How many latents away a latent changes the full picture's pixels; measured once."""
        return tiles.reach(self._full, self.g_s.channels[0], 1, next(self.parameters()).device)

    def _full(self, y_hat: Latents) -> Pictures:
        """D(y_hat, c). An anchored model needs no secret for it: c's triggers are zero."""
        return self.g_s.plain(y_hat) if self.config.anchored else self.synthesize(y_hat, self.full_condition())

    def _is_full(self, condition: Float[Tensor, " dim"] | None) -> bool:
        if condition is None or self.secret is None:
            return self.kind == "plain"
        return self.kind == "plain" or torch.equal(condition, self.full_condition().to(condition.device))


def carried(code: bytes, stream: Stream) -> bytes:
    """The content of a chunk that carries a code, bound to its file by a hash of both.

    Not by a CRC: the header ends in its own, and the CRC of anything that does is the same.
    """
    return hashlib.sha256(bitstream.binding(stream) + code).digest()[:4] + code


def _from_slot(stream: Stream, keyword: str) -> bytes | None:
    if unknown := [slot[0] for slot in stream.slots if slot[0] not in keys.COSTS]:
        raise BitstreamError(f"a keyword slot names key derivation {unknown[0]}, which this code lacks")
    found = (keys.open_slot(slot, keyword, bitstream.binding(stream)) for slot in stream.slots)
    return next((secret for secret in found if secret is not None), None)
