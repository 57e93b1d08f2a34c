"""From a plan to pixels: background, shadows, objects, light."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageFilter

from psic_core.datasets.backgrounds import background, scale_channels
from psic_core.datasets.cutouts import picture
from psic_core.datasets.plans import Placement, Plan, make_plan

SMALLEST, LARGEST = 32, 1024  # pixels
SHADOW = (16, 18, 26)


def render(split: str, seed: int, index: int, size: int = 160) -> UInt8[np.ndarray, "size size 3"]:
    """Scene `index` of a split as RGB bytes; the same arguments give the same pixels.

    Raises:
        ValueError: Unknown split, negative seed or index, or a size outside 32-1024.
    """
    return draw(make_plan(split, seed, index), size)


def draw(plan: Plan, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Draw a plan at any size from 32 to 1024 pixels."""
    if isinstance(size, bool) or not isinstance(size, int) or not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size {size!r} is not valid; give an integer from {SMALLEST} to {LARGEST}")
    canvas = background(plan.ground, plan.sky, plan.horizon, size, plan.texture)
    for item in sorted(plan.objects, key=_depth):
        _put(canvas, item, size)
    return np.asarray(_light(canvas, plan))


def _depth(item: Placement) -> tuple[bool, float]:
    """What is in the sky comes first, then what stands farther away."""
    return item.where != "sky", item.foot


def _put(canvas: Image.Image, item: Placement, size: int) -> None:
    """Draw one object with its shadow or its reflection."""
    image = _object(item, size)
    left = round(item.x * size - image.width / 2)
    top = round(item.foot * size) - image.height
    if item.where == "ground":
        _shadow(canvas, image.getchannel("A"), left, top + image.height, size)
    elif item.where == "afloat":
        image = _afloat(canvas, image, left, top)
    elif item.where == "sea":
        image.putalpha(image.getchannel("A").point([value * 7 // 8 for value in range(256)]))
    canvas.paste(image, (left, top), image)


def _object(item: Placement, size: int) -> Image.Image:
    """The cut-out, mirrored, scaled, turned, brightened and cropped to what is visible."""
    image = picture(item.cutout)
    if item.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factor = item.scale * size / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    image = image.rotate(item.angle, Image.Resampling.BICUBIC, expand=True)
    image = image.crop(image.getchannel("A").point([0] * 24 + [255] * 232).getbbox())
    return scale_channels(image, (item.gain,) * 3)


def _shadow(canvas: Image.Image, alpha: Image.Image, left: int, foot: int, size: int) -> None:
    """A soft shadow on the ground, and a darker one where the object touches it."""
    width, height = alpha.size
    flat = alpha.resize((width, max(2, min(width, height) // 5)))
    sole = alpha.crop((0, height - max(1, height // 8), width, height))
    sole = sole.resize((width, max(2, size // 40)))
    margin = size // 12 + 2
    rise = flat.height * 2 // 3 + margin
    area = (width + 2 * margin, flat.height + sole.height + 2 * margin)
    wide, touch = Image.new("L", area), Image.new("L", area)
    wide.paste(flat.point([value * 4 // 10 for value in range(256)]), (margin, margin))
    low = (margin, rise - sole.height // 2)
    touch.paste(sole.point([value * 7 // 10 for value in range(256)]), low)
    blurred = wide.filter(ImageFilter.GaussianBlur(size / 50))
    mask = ImageChops.lighter(blurred, touch.filter(ImageFilter.BoxBlur(size / 110)))
    corner = (left - margin, foot - rise)
    canvas.paste(SHADOW, (*corner, corner[0] + area[0], corner[1] + area[1]), mask)


def _afloat(canvas: Image.Image, image: Image.Image, left: int, top: int) -> Image.Image:
    """Mirror the object in the water below it, and let its lowest part sink in."""
    width, height = image.size
    mirrored = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((width, max(1, height // 3)))
    _fade(mirrored, 110, 0)
    canvas.paste(mirrored, (left, top + height - max(1, height // 12)), mirrored)
    sunk = image.copy()
    low = sunk.crop((0, height - max(1, height // 8), width, height))
    _fade(low, 255, 40)
    sunk.paste(low, (0, height - low.height))
    return sunk


def _fade(image: Image.Image, top: int, bottom: int) -> None:
    """Multiply the alpha channel by a ramp from `top` to `bottom` (of 255)."""
    ramp = np.linspace(top, bottom, image.height, dtype=np.float32).astype(np.uint8)[:, None]
    mask = Image.fromarray(np.ascontiguousarray(np.broadcast_to(ramp, image.size[::-1])))
    image.putalpha(ImageChops.multiply(image.getchannel("A"), mask))


def _light(canvas: Image.Image, plan: Plan) -> Image.Image:
    """The light of the hour: dusk is dark and bluish, sunset warm."""
    red, green, blue = (1.05, 0.95, 0.86) if plan.sky == "sunset" else (1.0, 1.0, 1.0)
    gain = 0.44 + 0.1 * plan.texture[0] if plan.dark else 0.94 + 0.12 * plan.texture[0]
    dusk = (0.92, 0.98, 1.12) if plan.dark else (1.0, 1.0, 1.0)
    gains = (red * gain * dusk[0], green * gain * dusk[1], blue * gain * dusk[2])
    return scale_channels(canvas, gains)
