"""Pictures in and out: any PIL mode to a float tensor in [0, 1] and back; padding for the codec."""

import io
import struct
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features
from torch import Tensor
from torch.nn import functional

from psic_core.bitstream import MAX_PIXELS, too_large

#: What is read; Pillow would try any format on any name, and hand some to other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(("AVIF",) if features.check("avif") else ()))
SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
SUFFIXES |= {".avif"} if "AVIF" in FORMATS else set()


def load_image(path: str | Path | io.BytesIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture file, by its path or by its bytes, as upright 8-bit RGB in sRGB.

    Args:
        path: The file.
        max_pixels: Larger pictures are refused before they are decoded.

    Raises:
        ValueError: The file is missing, too large, of no format of `FORMATS`, or cannot be read whole.

    Warns:
        UserWarning: It is an animation or has several pages, of which the first is taken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the stricter limit
            opened = Image.open(path, formats=FORMATS)
        with opened as image:
            if reason := too_large(image.height, image.width, max_pixels):
                raise ValueError(f"{str(path)!r}: {reason}")
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # where the others are a phone's previews
                warnings.warn(f"{str(path)!r} holds {frames} pictures; only the first is taken", stacklevel=2)
            return to_rgb(image)
    except FileNotFoundError:
        raise ValueError(f"no picture at {str(path)!r}") from None
    except UnidentifiedImageError:
        raise ValueError(f"cannot read {str(path)!r} as a picture: it is none of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {str(path)!r} as a picture: {error}") from error


def save_image(image: Image.Image, path: Path, suffix: str) -> None:
    """Write a picture to a path that need not end in its format's suffix.

    Raises:
        ValueError: The suffix names no picture format.
    """
    if suffix.lower() not in (".png", ".bmp", ".tif", ".tiff", ".webp", ".jpg", ".jpeg"):
        raise ValueError(f"cannot tell the picture format of a name that ends in {suffix!r}; end its name in .png")
    kind = {"jpg": "jpeg", "tif": "tiff"}.get(name := suffix[1:].lower(), name)
    image.save(path, format=kind, **({"quality": 95, "subsampling": 0} if kind == "jpeg" else {}))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to upright 8-bit sRGB: rotated as EXIF says, alpha laid on white, 16 bit scaled to 8.

    Raises:
        ValueError: 32-bit numbers, of which nobody knows which one is white.
    """
    image.load()  # what cannot be read is an error, what cannot be read of EXIF is not
    form, profile = image.format, image.info.get("icc_profile")
    with suppress(SyntaxError, OSError, ValueError, struct.error):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255, not scale
        depth = np.asarray(image).astype(np.float64)
        if image.mode == "I" and (form == "TIFF" or depth.min() < 0 or depth.max() > 65535):
            raise ValueError("a 32-bit integer picture has no defined white; convert it to 8 or 16 bits first")
        image = Image.fromarray(np.clip(np.round(depth / 257), 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("a 32-bit float picture has no defined white; convert it to 8 or 16 bits first")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return _in_srgb(image, profile)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """From the colours of an ICC profile; a profile that cannot be read, or is of other channels, does not count."""
    rgb = image if image.mode in ("RGB", "CMYK", "L") else image.convert("RGB")
    with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
        source = ImageCms.getOpenProfile(io.BytesIO(profile or b""))
        if "sRGB" not in ImageCms.getProfileDescription(source):
            return ImageCms.profileToProfile(rgb, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return rgb.convert("RGB")


def to_tensor(image: Image.Image) -> Float[Tensor, "1 3 height width"]:
    """A picture as floats in [0, 1] with a batch axis."""
    pixels = torch.from_numpy(np.array(to_rgb(image)))
    return pixels.permute(2, 0, 1)[None].float() / 255


def one_picture(
    image: Image.Image | Float[Tensor, "*batch 3 height width"], max_pixels: int = MAX_PIXELS
) -> Float[Tensor, "1 3 height width"]:
    """What the codec takes, as float32 on the CPU: a Pillow picture of any mode, or a tensor with or without batch.

    Raises:
        TypeError: Neither a picture nor a tensor.
        ValueError: Not one RGB picture of floats in [0, 1], or a larger one than allowed.
    """
    if not isinstance(image, (Tensor, Image.Image)):
        raise TypeError(
            f"got {type(image).__name__}; compress takes a picture (psic_core.models.images.load_image) or a tensor"
        )
    height, width = image.shape[-2:] if isinstance(image, Tensor) and image.ndim > 1 else (0, 0)
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else (height, width)
    if reason := too_large(height, width, max_pixels):
        raise ValueError(reason)
    x = image if isinstance(image, Tensor) else to_tensor(image)
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[:2] != (1, 3) or 0 in x.shape:
        raise ValueError(f"got shape {tuple(x.shape)}; compress takes one picture (1, 3, height, width)")
    if not x.is_floating_point():
        raise ValueError(f"got {x.dtype}; compress takes floats in [0, 1]")
    if not torch.isfinite(x).all() or x.min() < 0 or x.max() > 1:
        raise ValueError(f"got values in [{x.min():.3g}, {x.max():.3g}]; compress takes floats in [0, 1]")
    return x.cpu().float()


def to_pil(x: Float[Tensor, "1 3 height width"]) -> Image.Image:
    """Floats in [0, 1] as an 8-bit picture: clamped, rounded to nearest."""
    pixels = (x[0].detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def through_file(
    x: Float[Tensor, "1 3 height width"], suffix: str, **options: int
) -> Float[Tensor, "1 3 height width"]:
    """Saved and opened again by Pillow.

    Args:
        x: One picture in [0, 1].
        suffix: ``JPEG`` (4:2:0), ``WEBP`` or ``PNG``.
        options: Pillow's, such as ``quality``.
    """
    buffer = io.BytesIO()
    to_pil(x).save(buffer, suffix, **options)
    return to_tensor(Image.open(buffer))


def round_to_8_bits(x: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Clamp to [0, 1] and round to k/255 as a saved file would; the gradient of rounding passes straight through."""
    x = x.clamp(0, 1)
    return x + (torch.round(x * 255) / 255 - x).detach()


def pad_to(x: Float[Tensor, "batch 3 height width"], multiple: int) -> Float[Tensor, "batch 3 padded_h padded_w"]:
    """Repeat the last row and column until both sides are multiples of ``multiple``; crop ``[:H, :W]`` undoes it."""
    height, width = x.shape[-2:]
    return functional.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
