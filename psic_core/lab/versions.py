"""Every version of a picture that is compared: decoded from real files, rounded to 8 bits, with its nulls."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psic_core import bitstream, keys
from psic_core.codec import PSIC
from psic_core.metrics import psnr
from psic_core.models.images import round_to_8_bits, through_file

#: `original` apart, all are what a person could have saved. `jpeg` and `noise` are nulls at the protected
#: version's PSNR: what any change of that size does. `wrong keyword` is decoded with a fresh random secret.
VERSIONS = ("original", "plain", "full", "protected", "wrong keyword", "jpeg", "noise")


class Coded(NamedTuple):
    """One picture in all versions, with the sizes of the two files."""

    pictures: dict[str, Float[Tensor, "1 3 height width"]]
    psic_bytes: int
    plain_bytes: int


def code_versions(
    model: PSIC,
    plain: PSIC,
    x: Float[Tensor, "1 3 height width"],
    secret: bytes,
    seed: int = 0,
    versions: Sequence[str] = VERSIONS,
) -> Coded:
    """Write the picture to a file with each codec and decode its versions, the latents and x_hat_f once.

    Args:
        model: PSIC.
        plain: The plain codec with the same decoder: the reference of every ASR.
        x: A picture in [0, 1].
        secret: Decodes the full version; the model's own.
        seed: Of the wrong keyword and the noise; vary it from picture to picture.
        versions: Those that are wanted; the plain codec's, full and protected are always there.
    """
    file = model.compress(x)
    # One encoder and entropy model write one file; the fingerprints are of the models' last files, or checkpoints.
    same = plain.coder.current == model.coder.current and plain.config.quality == model.config.quality
    plain_file = file if same else plain.compress(x)
    stream = bitstream.unpack(file)
    y_hat = model.latents(stream)
    rng = np.random.default_rng(seed)
    conditions = {
        "full": keys.condition(secret, model.config.dim),
        "protected": None,
        "wrong keyword": keys.condition(rng.bytes(keys.SECRET_BYTES), model.config.dim),
    }
    x_hat_f = model.full(y_hat, stream.size)
    pictures = {
        name: round_to_8_bits(model.picture(y_hat, stream.size, c, x_hat_f=x_hat_f))
        for name, c in conditions.items()
        if name != "wrong keyword" or name in versions
    }
    x_hat = plain.picture(y_hat, stream.size) if same else plain.decompress_tensor(plain_file)
    pictures |= {"original": x, "plain": round_to_8_bits(x_hat)}
    level = psnr(pictures["protected"], x)
    nulls = {"jpeg": jpeg_at, "noise": lambda x, level: noise_at(x, level, rng)}
    pictures |= {name: null(x, level) for name, null in nulls.items() if name in versions}
    return Coded(pictures, len(file), len(plain_file))


def jpeg_at(x: Float[Tensor, "1 3 height width"], level: float) -> Float[Tensor, "1 3 height width"]:
    """JPEG at the lowest quality whose PSNR reaches ``level`` dB; at the best quality if none does."""
    low, high = 1, 95
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if psnr(jpeg(x, middle), x) >= level else (middle + 1, high)
    return jpeg(x, low)


def jpeg(x: Float[Tensor, "1 3 height width"], quality: int) -> Float[Tensor, "1 3 height width"]:
    """Through a real JPEG file (Pillow, 4:2:0)."""
    return through_file(x, "JPEG", quality=quality)


def noise_at(
    x: Float[Tensor, "1 3 height width"], level: float, rng: np.random.Generator
) -> Float[Tensor, "1 3 height width"]:
    """Gaussian noise at ``level`` dB after clamping and rounding to 8 bits."""
    if not np.isfinite(level):
        return round_to_8_bits(x)
    noise = torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32))
    sigma = 10 ** (-level / 20)
    for _ in range(20):  # clamping takes some of the noise away: enlarge it until the level is met
        noisy = round_to_8_bits(x + sigma * noise)
        excess = psnr(noisy, x) - level
        if abs(excess) < 0.02 or not np.isfinite(excess):
            break
        sigma *= 10 ** (excess / 20)
    return noisy
