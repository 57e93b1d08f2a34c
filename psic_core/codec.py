"""PSIC: any CompressAI image model with conditional synthesis. One stream, two pictures: section 3.1, Fig. 2a.

Shen et al., ICML 2025, https://proceedings.mlr.press/v267/.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from compressai.models import CompressionModel
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from psic_core import bitstream, keys
from psic_core.bitstream import MAX_PIXELS, BitstreamError, Stream
from psic_core.config import PUBLIC_SECRET, CodecConfig
from psic_core.models import tiles
from psic_core.models.compressai import (
    LatentTap,
    build_backbone,
    default_sizes,
    dissect,
    hold_rate,
    identify,
    split_stages,
)
from psic_core.models.delta import NOTHING, enlarged
from psic_core.models.entropy import EntropyCoder
from psic_core.models.images import one_picture, pad_to, to_pil
from psic_core.models.vlp import Target
from psic_core.shield import AnySize, Latents, Pictures, carried
from psic_core.triggers import ConditionalSynthesis


class PSIC(AnySize):
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
        self.secret_check = b""  # `keys.check` of the secret, where a checkpoint holds no more than that
        self.kind = "psic"
        self._warned = False
        anatomy = dissect(backbone)
        stages, channels = split_stages(backbone.g_s, anatomy.y_hat)  # the caller's model is whole where this fails
        hold_rate(backbone, config.quality)
        backbone.g_s = LatentTap()  # what the backbone reconstructs from here on is y_hat: see `replaced`
        self.factor = anatomy.factor  # pictures are padded to multiples of it, in pixels
        self.coder = EntropyCoder(backbone, anatomy.factor, anatomy.cell)
        self.backbone = backbone.train()
        self.g_s = ConditionalSynthesis(stages, channels, config.dim, config.hidden, config.ladder)

    @classmethod
    def build(cls, config: CodecConfig | None = None, secret: bytes | None = None) -> "PSIC":
        """A fresh, untrained PSIC over the architecture that ``config`` names.

        Raises:
            ValueError: The architecture is not in CompressAI's zoo, or refuses the sizes.
        """
        config = config or CodecConfig()
        return cls(build_backbone(config.architecture, config.n, config.m), config, secret or PUBLIC_SECRET)

    @classmethod
    def wrap(cls, model: str | CompressionModel, secret: bytes | None = None, **fields: Any) -> "PSIC":
        """PSIC over any image codec of CompressAI: by its name, or a model at hand with the weights that it has.

        ``PSIC.wrap("elic2022-official")``, ``PSIC.wrap(cheng2020_anchor(quality=3, pretrained=True), quality=3)``.
        The triggers start at zero: until they are trained, every version is the codec's own picture.

        Args:
            model: A name of `psic_core.bitstream.ARCHITECTURES`, built in CompressAI's smallest size, or a model,
                whose ``g_s`` moves into PSIC. One that CompressAI cannot build from two sizes becomes ``"custom"``:
                ``load_checkpoint(path, backbone)``, ``backbone`` being one like it.
            secret: The model's 16-byte secret; the course's public one else.
            **fields: Of `CodecConfig`: ``quality=3``, the triggers' sizes; with a name also ``n`` and ``m``.

        Raises:
            ValueError: No such architecture, or a model without a decoder that PSIC can condition.
        """
        if isinstance(model, str):
            n, m = default_sizes(model)
            return cls.build(CodecConfig(**{"n": n, "m": m} | fields | {"architecture": model}), secret)
        psic = cls(model, CodecConfig(**fields), secret or PUBLIC_SECRET)
        m, *_, n = psic.g_s.channels
        psic.config = replace(psic.config, architecture=identify(psic.backbone, n, m), n=n, m=m)
        return psic

    def forward(
        self,
        x: Pictures,
        condition: Float[Tensor, "*batch dim"] | None = None,
        y_hat: Latents | None = None,
    ) -> dict[str, Any]:
        """Fig. 2a: x -> E -> y_hat (Eq. 1) -> D under a condition -> x_hat (Eq. 3).

        Args:
            x: Pictures in [0, 1]; height and width multiples of ``factor``.
            condition: One vector, or one a picture; ``None`` decodes protected.
            y_hat: Known latents (training stage two): the backbone is skipped and there are no likelihoods.

        Returns:
            CompressAI's contract, ``{"x_hat": (B, 3, H, W), "likelihoods": {...}}``, and ``"y_hat"`` beside.
        """
        y_hat, likelihoods = self.encode(x) if y_hat is None else (y_hat, {})
        x_hat = self.synthesize(y_hat, condition)
        return {"x_hat": x_hat, "y_hat": y_hat, "likelihoods": likelihoods}

    def encode(self, x: Pictures) -> tuple[Latents, dict[str, Tensor]]:
        """E and Q of Fig. 2a, which see no condition: y_hat, noisy in training mode, and its likelihoods."""
        out = self.backbone(x)
        return out["x_hat"], out["likelihoods"]

    @torch.no_grad()
    def quantised_latents(self, x: Pictures) -> Latents:
        """The rounded y_hat that a decoder gets from a file, without writing one."""
        training = self.backbone.training
        self.backbone.eval()
        if hasattr(self.backbone, "context_prediction"):  # forward() predicts no means there; slow, on the CPU
            y_hat = torch.cat([self.coder.encode(one).y_hat for one in x.split(1)])
        else:
            y_hat, _ = self.encode(x)
        self.backbone.train(training)
        return y_hat

    @torch.no_grad()
    def analysed(self, x: Pictures) -> Latents:
        """E's latents of pictures that nobody stores, as they are: rounding would lose what a reader sees."""
        return self.backbone.g_a(x)

    def synthesize(self, y_hat: Latents, condition: Float[Tensor, "*batch dim"] | None = None) -> Pictures:
        """D of Eq. 3, unclamped. ``None`` is the zero vector: protected."""
        if self.kind == "plain":
            return self.g_s.plain(y_hat)
        if condition is None:
            condition = y_hat.new_zeros(self.config.dim)
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
            raise ValueError("this model does not hold its secret; call model.unlock(passphrase)")
        return keys.condition(self.secret, self.config.dim).to(next(self.parameters()).device)

    @torch.no_grad()
    def owns(self, secret: bytes) -> bool:
        """Whether a secret is this model's; one without secret and check is asked whether its triggers vanish there."""
        if self.secret or self.secret_check:
            return self.secret_check == keys.check(secret) if self.secret is None else self.secret == secret
        c, y = keys.condition(secret, self.config.dim), torch.ones(1, self.g_s.channels[0], 4, 4)
        return not self.config.anchored or torch.allclose(self.g_s(y, c[None]), self.g_s.plain(y), atol=1e-3)

    def unlock(self, passphrase: str) -> None:
        """Give a copy without its secret the owner's passphrase; another one raises `ValueError`."""
        if not self.owns(secret := keys.secret(passphrase)):
            raise ValueError("the passphrase does not open this model's full version; check its spelling")
        self.secret = secret

    def key_layers(self) -> list[nn.Linear]:
        """The layers that read the condition; `psic_core.keys.rekey` turns them."""
        return [trigger.cltg.mlp[0] for trigger in self.g_s.triggers]

    def anchor(self) -> None:
        """Make the key's triggers zero, after each training step; it leaks no more than dropping them would show."""
        key = self.full_condition()
        for trigger in self.g_s.triggers:
            trigger.cltg.anchor(key)

    def compress(
        self,
        image: Image.Image | Float[Tensor, "*batch 3 height width"],
        keyword: str | Sequence[str] | None = None,
        *,
        tile: int | None = None,
        max_pixels: int = MAX_PIXELS,
        adapt: Literal["carried", "sealed"] | None = None,
        target: Target | None = None,
    ) -> bytes:
        """Encode one picture of any size to a ``.psic`` file.

        Args:
            image: A Pillow picture of any mode, or floats in [0, 1].
            keyword: Seals the model's secret into the file, so that it decodes the full version; or several of them.
            tile: Side in pixels of the windows that bound memory; 0 never tiles, ``None`` above 4 megapixels.
            max_pixels: Larger pictures are refused.
            adapt: A shield searched for this photo. ``carried``: its code lies open in the file and is added to the
                protected version. ``sealed``: it is in the picture that is coded, and its code is encrypted for the
                keywords; without one, nobody has a full version. ``None``: the trained triggers.
            target: The readers to search against; `psic_core.training.search.READERS` where ``None``.

        Raises:
            ValueError: No single RGB picture in [0, 1]; model not float32 on the CPU; no secret.
        """
        x = one_picture(image, max_pixels)
        keywords = [] if keyword is None else [keyword] if isinstance(keyword, str) else list(keyword)
        sealed, size, side = adapt == "sealed", (x.shape[-2], x.shape[-1]), self.config.reading_side
        if adapt not in (None, "carried", "sealed"):
            raise ValueError(f"adapt is {adapt!r}; give carried, sealed, or None for the trained triggers")
        if keywords and not sealed:
            self.full_condition()  # raises where the secret is missing
        if adapt is not None:
            from psic_core.training import search  # above this module: its readers, and platforms in its loop
        shown = (x + enlarged(search.sealed(self, x, target), size)).clamp(0, 1) if sealed else x
        coded = self.coder.encode(pad_to(shown, self.factor), tiles.tile_for(*size, tile))
        name, portable, fingerprint = self.config.architecture, self.coder.portable, self.coder.current
        if not portable and not self._warned:
            warnings.warn(f"files of {name} are not portable: another machine may not open them", stacklevel=2)
            self._warned = True
        stream = Stream(name, self.config.quality, portable, fingerprint, *size, coded.strings, coded.checksum)
        bound, secret = bitstream.binding(stream), os.urandom(keys.SECRET_BYTES) if sealed else self.secret
        x_hat = self.picture(coded.y_hat, size, None, tile, NOTHING) if adapt else None
        if adapt == "carried":
            code = search.carried(self, x_hat, x, target)
            stream = stream._replace(chunks=((bitstream.CARRIED, carried(code, stream)),))
        elif sealed:  # without a keyword the code is lost, and the chunk says that the triggers rest
            content = keys.seal_code(secret, search.correction(x, x_hat, side, target), bound) if keywords else b""
            stream = stream._replace(chunks=((bitstream.SEALED, content),))
        return bitstream.pack(stream._replace(slots=tuple(keys.seal(secret, words, bound) for words in keywords)))

    def decompress(
        self, stream: bytes, keyword: str | None = None, *, tile: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Image.Image:
        """The protected picture, or the full one with the right keyword (or the owner's passphrase).

        A wrong keyword is no error: it decodes protected. ``info["version"]`` of the picture says which it is.

        Args:
            stream: A whole ``.psic`` file.
            keyword: Of the file, or the owner's passphrase.
            tile: As for `compress`.
            max_pixels: Larger pictures are refused before anything is allocated.

        Raises:
            BitstreamError: The file is damaged, or another model wrote it.
            ValueError: The keyword is blank.
        """
        unpacked = bitstream.unpack(stream, max_pixels)
        version, condition, adapted = self.version_of(unpacked, keyword)
        image = to_pil(self.picture(self.latents(unpacked), unpacked.size, condition, tile, adapted))
        image.info["version"] = "full" if version == "full" else "protected"
        return image

    def decompress_tensor(
        self, stream: bytes, keyword: str | None = None, *, tile: int | None = None
    ) -> Float[Tensor, "1 3 height width"]:
        """`decompress` as floats in [0, 1], before rounding to 8 bits."""
        unpacked = bitstream.unpack(stream)
        _, condition, adapted = self.version_of(unpacked, keyword)
        return self.picture(self.latents(unpacked), unpacked.size, condition, tile, adapted)

    def latents(self, stream: Stream) -> Float[Tensor, "1 m h w"]:
        """Entropy-decode a stream: the y_hat that every version of the picture starts from.

        Raises:
            BitstreamError: Another model wrote the stream, or its latents do not decode to what was coded.
        """
        mine = f"{self.config.architecture} q{self.config.quality} {self.fingerprint().hex()}"
        theirs = f"{stream.architecture} q{stream.quality} {stream.fingerprint.hex()}"
        if mine != theirs:
            raise BitstreamError(f"written by {theirs}, this model is {mine}: load the checkpoint that wrote the file")
        try:
            shape = (-(-stream.height // self.factor), -(-stream.width // self.factor))
            coded = self.coder.decode(stream.strings, shape)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise BitstreamError(f"the coded latents cannot be read: {error or 'too few strings'}") from error
        if coded.checksum != stream.checksum:
            other = "" if self.coder.portable else ", or coded on a machine whose arithmetic differs"
            raise BitstreamError(f"the latents decode to other values than were coded: the file is damaged{other}")
        return coded.y_hat

    def fingerprint(self) -> bytes:
        """8 bytes of SHA-256 over encoder and entropy model: equal exactly where streams are interchangeable."""
        return self.coder.fingerprint()
