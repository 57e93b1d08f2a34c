"""PSIC: any CompressAI image model with conditional synthesis. One stream, two pictures: section 3.1, Fig. 2a.

Shen et al., ICML 2025, https://proceedings.mlr.press/v267/.
"""

from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from compressai.models import CompressionModel
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from psic_core import bitstream, keys
from psic_core.bitstream import BitstreamError, Stream
from psic_core.config import PUBLIC_PASSPHRASE, CodecConfig
from psic_core.models import tiles
from psic_core.models.compressai import LatentTap, build_backbone, default_sizes, dissect, identify, split_stages
from psic_core.models.entropy import EntropyCoder
from psic_core.models.images import one_picture, pad_to, to_pil
from psic_core.triggers import ConditionalSynthesis

Pictures = Float[Tensor, "batch 3 height width"]
Latents = Float[Tensor, "batch m h w"]


class PSIC(nn.Module):
    """A learned codec whose single stream decodes to a protected and to a full picture.

    ::

        x -> backbone (g_a, Q, entropy model) -> stream -> y_hat -> g_s(y_hat, beta) -> x_hat_e  beta = 0
                                                                                     -> x_hat_f  beta = c

    Args:
        backbone: A CompressAI image model; its ``g_s`` moves into ``self.g_s``.
        config: Names the architecture and the condition's size.
        secret: The model's 16-byte secret; ``None`` where only the owner has it.
    """

    def __init__(self, backbone: CompressionModel, config: CodecConfig, secret: bytes | None = None) -> None:
        super().__init__()
        self.config = config
        self.secret = secret
        self.kind = "psic"
        anatomy = dissect(backbone)
        stages, channels = split_stages(backbone.g_s, anatomy.y_hat)  # the caller's model is whole where this fails
        backbone.g_s = LatentTap()  # what the backbone reconstructs from here on is y_hat: see `replaced`
        self.factor = anatomy.factor  # pictures are padded to multiples of it, in pixels
        self.coder = EntropyCoder(backbone, anatomy.factor, anatomy.cell)
        self.coder.checked_quality(None, config.quality)
        self.backbone = backbone.train()
        self.g_s = ConditionalSynthesis(stages, channels, config.dim, config.hidden, config.residual, config.injections)

    @classmethod
    def build(cls, config: CodecConfig | None = None, secret: bytes | None = None) -> "PSIC":
        """A fresh, untrained PSIC over the architecture that ``config`` names.

        Raises:
            ValueError: The architecture is not in CompressAI's zoo, or refuses the sizes.
        """
        config = config or CodecConfig()
        backbone = build_backbone(config.architecture, config.n, config.m)
        return cls(backbone, config, secret or keys.secret(PUBLIC_PASSPHRASE))

    @classmethod
    def wrap(cls, model: str | CompressionModel, secret: bytes | None = None, **fields: Any) -> "PSIC":
        """PSIC over any image codec of CompressAI: by its name, or a model at hand with the weights that it has.

        ``PSIC.wrap("elic2022-official")``, ``PSIC.wrap(cheng2020_anchor(quality=3, pretrained=True), quality=3)``.
        The triggers start at zero: until they are trained, every version is the codec's own picture.

        Args:
            model: A name of `psic_core.bitstream.ARCHITECTURES`, built in CompressAI's smallest size, or a model,
                whose ``g_s`` moves into PSIC. One that CompressAI cannot build from two sizes becomes ``"custom"``;
                its checkpoint is loaded with ``load_checkpoint(path, backbone)``, ``backbone`` being one like it.
            secret: The model's 16-byte secret; the course's public one else.
            **fields: Of `CodecConfig`: ``quality=3``, the triggers' sizes; with a name also ``n`` and ``m``.

        Raises:
            ValueError: No such architecture, or a model without a decoder that PSIC can condition.
        """
        if isinstance(model, str):
            n, m = default_sizes(model)
            return cls.build(CodecConfig(**{"n": n, "m": m} | fields | {"architecture": model}), secret)
        psic = cls(model, CodecConfig(**fields), secret or keys.secret(PUBLIC_PASSPHRASE))
        m, *_, n = psic.g_s.channels
        psic.config = replace(psic.config, architecture=identify(psic.backbone, n, m), n=n, m=m)
        return psic

    def forward(
        self,
        x: Pictures,
        condition: Float[Tensor, "*batch dim"] | None = None,
        y_hat: Latents | None = None,
        quality: int | None = None,
    ) -> dict[str, Any]:
        """Fig. 2a: x -> E -> y_hat (Eq. 1) -> D under a condition -> x_hat (Eq. 3).

        Args:
            x: Pictures in [0, 1]; height and width multiples of ``factor``.
            condition: One vector, or one a picture; ``None`` decodes protected.
            y_hat: Known latents (training stage two): the backbone is skipped and there are no likelihoods.
            quality: Level of a variable-rate model, from 0; ``None`` is the configuration's.

        Returns:
            CompressAI's contract, ``{"x_hat": (B, 3, H, W), "likelihoods": {...}}``, and ``"y_hat"`` beside.
        """
        y_hat, likelihoods = self.encode(x, quality) if y_hat is None else (y_hat, {})
        x_hat = self.synthesize(y_hat, condition)
        return {"x_hat": x_hat, "y_hat": y_hat, "likelihoods": likelihoods}

    def encode(self, x: Pictures, quality: int | None = None) -> tuple[Latents, dict[str, Tensor]]:
        """E and Q of Fig. 2a, which see no condition: y_hat, noisy in training mode, and its likelihoods."""
        out = self.backbone(x, **self.coder.rate(self.coder.checked_quality(quality, self.config.quality)))
        return out["x_hat"], out["likelihoods"]

    @torch.no_grad()
    def quantised_latents(self, x: Pictures) -> Latents:
        """The rounded y_hat that a decoder gets from a file, without writing one."""
        quality, training = self.config.quality, self.backbone.training
        self.backbone.eval()
        if hasattr(self.backbone, "context_prediction"):  # forward() predicts no means there; slow, on the CPU
            y_hat = torch.cat([self.coder.encode(one, quality)[1] for one in x.split(1)])
        else:
            y_hat, _ = self.encode(x)
        self.backbone.train(training)
        return y_hat

    def synthesize(self, y_hat: Latents, condition: Float[Tensor, "*batch dim"] | None = None) -> Pictures:
        """D of Eq. 3, unclamped. ``None`` is the zero vector: protected."""
        if self.kind == "plain":
            return self.g_s.plain(y_hat)
        if condition is None:
            condition = torch.zeros(self.config.dim, device=y_hat.device, dtype=y_hat.dtype)
        key = self.full_condition().to(y_hat.device) if self.config.anchored and self.secret else None
        if key is not None and condition.ndim == 1 and torch.equal(condition, key):
            return self.g_s.plain(y_hat)  # its triggers are zero: spare the time, and the last bit's rounding
        return self.g_s(y_hat, condition.expand(len(y_hat), -1), key if self.training else None)

    def full_condition(self) -> Float[Tensor, " dim"]:
        """The unit vector c that decodes the full version.

        Raises:
            ValueError: This copy of the model does not hold its secret.
        """
        if self.secret is None:
            raise ValueError(
                "this model does not hold its secret; set model.secret = psic_core.keys.secret(passphrase)"
            )
        return keys.condition(self.secret, self.config.dim).to(next(self.parameters()).device)

    def key_layers(self) -> list[nn.Linear]:
        """The layers that read the condition; `psic_core.keys.rekey` turns them."""
        return [trigger.cltg.mlp[0] for trigger in self.g_s.triggers]

    def anchor(self) -> None:
        """Make the key's triggers zero, so that the full version is the plain codec's picture.

        The trainer calls this after each step. It leaks nothing that leaving the triggers out would not show.
        """
        key = self.full_condition()
        for trigger in self.g_s.triggers:
            trigger.cltg.anchor(key)

    def compress(
        self,
        image: Image.Image | Float[Tensor, "*batch 3 height width"],
        keyword: str | None = None,
        *,
        quality: int | None = None,
        tile: int | None = None,
    ) -> bytes:
        """Encode one picture of any size to a ``.psic`` file.

        Args:
            image: A Pillow picture of any mode, or floats in [0, 1].
            keyword: Seals the model's secret into the header, so that this keyword decodes the full version.
                Nothing else in the file depends on it.
            quality: Level of a variable-rate model, from 0; ``None`` is the configuration's.
            tile: Side in pixels of the windows in which a large picture is encoded, so that memory is bounded; 0
                never tiles, ``None`` does above 4 megapixels. The file is the same but for rounding.

        Raises:
            ValueError: No single RGB picture in [0, 1]; model not float32 on the CPU; no secret; no such quality.
        """
        x, quality = one_picture(image), self.coder.checked_quality(quality, self.config.quality)
        height, width = x.shape[-2:]
        x = pad_to(x, self.factor)
        strings, y_hat = self.coder.encode(x, quality, tiles.tile_for(height, width, tile))
        slots = () if keyword is None else (keys.seal(self._own_secret(), keyword),)
        return bitstream.pack(
            Stream(
                architecture=self.config.architecture,
                quality=quality,
                fingerprint=self.coder.current,
                height=height,
                width=width,
                shape=(x.shape[-2] // self.factor, x.shape[-1] // self.factor),
                strings=strings,
                latent_checksum=bitstream.latent_checksum(y_hat),
                slots=slots,
            )
        )

    def decompress(self, stream: bytes, keyword: str | None = None, *, tile: int | None = None) -> Image.Image:
        """The protected picture, or the full one with the right keyword (or the owner's passphrase).

        A wrong keyword is no error: it decodes protected.

        Args:
            stream: A whole ``.psic`` file.
            keyword: Of the file, or the owner's passphrase.
            tile: Side in pixels of the windows in which a large picture is decoded, as for `compress`.

        Raises:
            BitstreamError: The file is damaged, or another model wrote it.
        """
        return to_pil(self.decompress_tensor(stream, keyword, tile=tile))

    def decompress_tensor(
        self, stream: bytes, keyword: str | None = None, *, tile: int | None = None
    ) -> Float[Tensor, "1 3 height width"]:
        """`decompress` as floats in [0, 1], before rounding to 8 bits."""
        unpacked = bitstream.unpack(stream)
        y_hat = self.latents(unpacked)
        beta = self.condition_of(unpacked, keyword)
        return self.picture(y_hat, unpacked, beta, tile)

    def latents(self, stream: Stream) -> Float[Tensor, "1 m h w"]:
        """Entropy-decode a stream: the y_hat that every version of the picture starts from.

        Raises:
            BitstreamError: Another model wrote the stream, or its latents do not decode to what was coded.
        """
        variable = self.coder.levels is not None and stream.quality < self.coder.levels
        quality = stream.quality if variable else self.config.quality
        mine = (self.config.architecture, quality, self.fingerprint())
        theirs = (stream.architecture, stream.quality, stream.fingerprint)
        if mine != theirs:
            raise BitstreamError(
                f"written by {theirs[0]} q{theirs[1]} {theirs[2].hex()}, this model is {mine[0]} q{mine[1]} "
                f"{mine[2].hex()}: load the checkpoint that wrote the file"
            )
        shape = (-(-stream.height // self.factor), -(-stream.width // self.factor))
        if stream.shape != shape:
            raise BitstreamError(f"latent shape {stream.shape} does not fit {stream.height}x{stream.width} pixels")
        try:
            y_hat = self.coder.decode(stream.strings, shape, quality)
            checksum = bitstream.latent_checksum(y_hat)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            reason = str(error) or f"{len(stream.strings)} strings are not what this architecture writes"
            raise BitstreamError(f"the coded latents cannot be read: {reason}") from error
        if checksum != stream.latent_checksum:
            raise BitstreamError("the latents decode to other values than were coded: damaged, or coded on a machine "
                                 "whose arithmetic differs")  # fmt: skip
        return y_hat

    @torch.no_grad()
    def picture(
        self,
        y_hat: Float[Tensor, "1 m h w"],
        stream: Stream,
        condition: Float[Tensor, " dim"] | None,
        tile: int | None = None,
    ) -> Float[Tensor, "1 3 height width"]:
        """Synthesise under a condition, clamp to [0, 1] and crop to the picture's size; ``tile`` as for `compress`."""
        cell, tile = self.coder.cell, tiles.tile_for(stream.height, stream.width, tile)
        g_s = partial(self.synthesize, condition=condition)
        large = tile and max(y_hat.shape[-2:]) * cell > tile
        x_hat = tiles.tiled(g_s, y_hat, (1, cell), -(-tile // cell), self.context, "decoding") if large else g_s(y_hat)
        return x_hat[..., : stream.height, : stream.width].clamp(0, 1)

    @cached_property
    def context(self) -> int:
        """How many latents away a latent changes a picture's pixels, whatever the condition; measured once.

        Raises:
            ValueError: More than `tiles.reach` looks for.
        """
        beta = next(self.parameters()).new_zeros(1, self.config.dim)
        return tiles.reach(lambda y: self.g_s(y, beta), self.g_s.channels[0], 1, beta.device)

    def condition_of(self, stream: Stream, keyword: str | None) -> Float[Tensor, " dim"] | None:
        """What a keyword means for a file: a slot's secret, else the words as the owner's passphrase."""
        if not keyword:
            return None
        opened = (keys.open_slot(slot, keyword) for slot in stream.slots)
        secret = next((s for s in opened if s is not None), None) or keys.secret(keyword)
        return keys.condition(secret, self.config.dim)

    def fingerprint(self) -> bytes:
        """8 bytes of SHA-256 over encoder and entropy model: equal exactly where streams are interchangeable."""
        return self.coder.fingerprint()

    def _own_secret(self) -> bytes:
        self.full_condition()  # raises with the remedy where the secret is missing
        return self.secret
