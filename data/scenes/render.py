"""From a plan to pixels: background, shadows, objects, light."""

from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageFilter
from plans import Placement, Plan, make_plan, picture

TILE = 512  # pixels; the size of scikit-image's textures
NEAR_TO_FAR = 3.2  # how much larger a stone is at the lower edge than at the horizon

# Dark, middle and light colour of each ground.
RAMPS = {
    "grass": ((14, 34, 8), (72, 122, 36), (176, 204, 108)),
    "gravel": ((28, 27, 26), (126, 121, 114), (226, 222, 214)),
    "brick": ((66, 26, 20), (166, 82, 60), (226, 172, 146)),
    "sand": ((176, 144, 98), (222, 194, 146), (246, 228, 190)),
    "snow": ((188, 204, 224), (234, 240, 247), (255, 255, 255)),
    "water": ((10, 52, 92), (34, 104, 150), (150, 206, 224)),
}
# Colours of each sky from the zenith to the horizon, its clouds' colour, and how they cover it:
# noise (0-255) above the threshold is cloud, full after 1 / gain more.
SKIES = {
    "blue": (((58, 118, 202), (116, 172, 232), (196, 222, 244)), (252, 252, 255), 150.0, 0.014),
    "cloudy": (((116, 124, 136), (150, 156, 164), (190, 194, 198)), (222, 224, 228), 96.0, 0.010),
    "sunset": (((58, 48, 104), (208, 96, 84), (255, 194, 96)), (246, 138, 104), 132.0, 0.012),
}


def _noise(seed: int, cells: tuple[tuple[int, int], ...]) -> UInt8[np.ndarray, "512 512"]:
    """Sum of smooth noises, each of (rows, columns) random cells and half the weight of the last."""
    rng = np.random.default_rng(seed)
    total = np.zeros((TILE, TILE), np.float32)
    weight = np.float32(1.0)
    for rows, columns in cells:
        grid = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
        layer = np.asarray(grid.resize((TILE, TILE), Image.Resampling.BICUBIC), np.float32)
        weight *= np.float32(0.5)
        total += (layer - 128) * weight
    return np.clip(total * np.float32(1.6) + 128, 0, 255).astype(np.uint8)


def _ramp(grey: UInt8[np.ndarray, "h w"], colours: tuple) -> Image.Image:
    """Colour a grey picture: black, middle and white become the three colours."""
    table = np.stack([np.interp(np.arange(256), (0, 128, 255), c) for c in zip(*colours, strict=True)], axis=-1)
    return Image.fromarray(table.round().astype(np.uint8)[grey])


@cache
def ground_tile(name: str) -> Image.Image:
    """The 512 x 512 texture of a ground, RGB."""
    if name == "sand":
        grey = _noise(1, ((10, 6), (60, 40), (256, 256), (512, 512)))
    elif name == "snow":
        grey = _noise(2, ((6, 4), (24, 16), (120, 100), (512, 512)))
    elif name == "water":
        grey = _noise(3, ((48, 8), (110, 22), (200, 60), (400, 120)))
    else:
        from skimage import data  # slow to import, and needed here alone

        grey = np.asarray(getattr(data, name)(), np.uint8)
        low, high = {"grass": (20, 225), "gravel": (10, 235), "brick": (70, 165)}[name]
        grey = np.clip((grey.astype(np.int32) - low) * 255 // (high - low), 0, 255).astype(np.uint8)
    return _ramp(grey, RAMPS[name])


@cache
def _clouds() -> Image.Image:
    return Image.fromarray(_noise(4, ((5, 4), (12, 9), (30, 20), (70, 50), (160, 120))))


def flat_ground(name: str, size: int, u: float, v: float, zoom: float) -> Image.Image:
    """The ground seen from above; `u`, `v`, `zoom` in [0, 1) choose the part of the texture."""
    side = int(280 + 200 * zoom)
    x, y = int(u * (TILE - side)), int(v * (TILE - side))
    box = (x, y, x + side, y + side)
    return ground_tile(name).resize((size, size), Image.Resampling.BICUBIC, box)


def receding_ground(name: str, size: int, height: int, u: float, zoom: float) -> Image.Image:
    """The ground from the lower edge of the picture up to the horizon, in perspective."""
    width, depth = 2 * size, 2 * height  # twice as fine, then halved: far stones would flicker
    across = (380 + 130 * zoom) / width  # texture pixels per picture pixel at the horizon
    centre = TILE / 2 + (u - 0.5) * (TILE - across * width)
    fall = (NEAR_TO_FAR - 1) / depth
    reach = TILE * 0.98 / (1 - 1 / NEAR_TO_FAR) * (0.5 + 0.5 * zoom)
    coefficients = (
        *(across, centre * fall, centre - across * width / 2),
        *(0.0, reach * fall, 0.0),
        *(0.0, fall),
    )
    tile = ground_tile(name)
    wide = tile.transform((width, depth), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return wide.reduce(2)


def sky(name: str, size: int, height: int, u: float, v: float, amount: float) -> Image.Image:
    """A sky of `size` x `height` pixels; `u`, `v` choose the clouds and `amount` their cover."""
    colours, cloud, threshold, gain = SKIES[name]
    rows = np.linspace(0, 1, height, dtype=np.float32)
    bands = [np.interp(rows, (0, 0.6, 1), c) for c in zip(*colours, strict=True)]
    clear = np.stack(bands, axis=-1).astype(np.float32)[:, None]
    x, y = int(u * 200), int(v * 260)
    box = (x, y, x + 300, y + 250)
    grey = np.asarray(_clouds().resize((size, height), Image.Resampling.BICUBIC, box), np.float32)
    cover = np.clip((grey - np.float32(threshold + 30 * amount - 15)) * np.float32(gain), 0, 1)
    cover = cover[..., None] * np.float32(0.85)
    mixed = clear + (np.array(cloud, np.float32) - clear) * cover
    return Image.fromarray(mixed.round().astype(np.uint8))


def background(ground: str, sky_name: str, horizon: float, size: int, texture: tuple[float, ...]) -> Image.Image:
    """Ground and sky as one RGB picture of `size` x `size`.

    Args:
        ground: A key of `RAMPS`.
        sky_name: A key of `SKIES`, or "" for a picture that the ground fills.
        horizon: y of the horizon as a share of the size; not used without a sky.
        size: Side in pixels.
        texture: Eight numbers in [0, 1): crop of the ground (3), of the sky (3), mirroring, tint.
    """
    a, b, c, d, e, f, mirror, tint = texture
    if not sky_name:
        picture = flat_ground(ground, size, a, b, c)
    else:
        line = max(1, min(size - 1, round(horizon * size)))
        picture = Image.new("RGB", (size, size))
        earth = receding_ground(ground, size, size - line, a, c)
        picture.paste(_haze(earth, SKIES[sky_name][0][2]), (0, line))
        picture.paste(sky(sky_name, size, line, d, e, f), (0, 0))
    if mirror < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return scale_channels(picture, (0.94 + 0.12 * tint, 1.0, 1.06 - 0.12 * tint))


def _haze(earth: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Let the far ground fade a little towards the sky's lowest colour."""
    height = earth.height
    fade = np.clip(1 - np.arange(height, dtype=np.float32) * np.float32(3.0 / height), 0, 1) * 150
    mask = Image.fromarray(fade.astype(np.uint8)[:, None]).resize(earth.size)
    return Image.composite(Image.new("RGB", earth.size, colour), earth, mask)


def scale_channels(picture: Image.Image, gains: tuple[float, float, float]) -> Image.Image:
    """Multiply red, green and blue; any alpha channel stays."""
    factors = [round(256 * gain) for gain in gains] + [256] * (len(picture.getbands()) - 3)
    scaled = np.asarray(picture).astype(np.uint32) * np.array(factors, np.uint32) >> 8
    return Image.fromarray(np.minimum(scaled, 255).astype(np.uint8))


SMALLEST, LARGEST = 32, 1024  # pixels
SHADOW = (16, 18, 26)


def render(split: str, seed: int, index: int, size: int = 160) -> UInt8[np.ndarray, "size size 3"]:
    """Scene `index` of a split as RGB bytes; the same arguments give the same pixels."""
    return draw(make_plan(split, seed, index), size)


def draw(plan: Plan, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Draw a plan at any size from 32 to 1024 pixels."""
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
