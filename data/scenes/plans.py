"""What a scene will show, drawn at random before a pixel is made.

A plan is independent of the size of the picture: all lengths are shares of its side, x from the
left and y from the top. Captions and attributes are read off the plan, so they cannot disagree with
the picture.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from psic_core.config import data_dir
from psic_core.datasets.folders import read_rows


class Cutout(NamedTuple):
    """One row of ``data/scenes/cutouts.csv``."""

    file: str  # name of the PNG in data/scenes
    name: str  # what it shows, 1-3 words: "mountain goat"
    class_name: str  # the basic-level name that classification is measured over: "goat"
    category: str  # animal, bird, food, object, plant or vehicle
    habitat: str  # where it may be placed: ground, shore (ground or water), afloat, sea or sky


def scenes_dir() -> Path:
    """The folder with the cut-outs, their table, licence and provenance."""
    return data_dir() / "scenes"


@cache
def cutouts() -> tuple[Cutout, ...]:
    """Every cut-out, in the order of the table."""
    columns = ("file", "name", "class", "category", "habitat")
    return tuple(Cutout(*map(row.get, columns)) for row in read_rows(scenes_dir() / "cutouts.csv", *columns))


@cache
def class_names() -> tuple[str, ...]:
    """The names of the classes, sorted."""
    return tuple(sorted({cutout.class_name for cutout in cutouts()}))


@cache
def members(class_name: str) -> tuple[int, ...]:
    """The positions in `cutouts()` of one class."""
    return tuple(i for i, cutout in enumerate(cutouts()) if cutout.class_name == class_name)


@cache
def picture(index: int) -> Image.Image:
    """The RGBA picture of ``cutouts()[index]``, longest side 80-128 px; kept in memory (9 MB)."""
    with Image.open(scenes_dir() / cutouts()[index].file) as image:
        return image.convert("RGBA")


T = TypeVar("T")
SPLITS = ("train", "val", "test")
DRY = ("grass", "gravel", "brick", "sand", "snow")
SKIES = ("blue", "cloudy", "sunset")
HABITATS_ON_WATER = ("sea", "afloat", "shore")


@dataclass(frozen=True)
class Placement:
    """One object: which cut-out, and where its feet stand."""

    cutout: int
    scale: float  # longest side
    x: float  # centre
    foot: float  # y of the lowest point
    where: str  # ground, afloat, sea or sky
    flip: bool
    angle: float  # degrees
    gain: float  # brightness


@dataclass(frozen=True)
class Plan:
    """A whole picture. `objects[0]` is the main one, whose class is the picture's class."""

    ground: str  # one of DRY or "water"
    sky: str  # one of SKIES, or "" where the ground fills the picture
    horizon: float  # y; 0 without sky
    objects: tuple[Placement, ...]
    close: bool  # the main object is large
    left: bool  # the main object is left of the centre
    dark: bool
    texture: tuple[float, ...]  # eight numbers in [0, 1): crops and tints of ground and sky
    wording: tuple[int, ...]  # fifteen integers that choose the captions' phrasings


def check(split: str, seed: int, index: int) -> None:
    """Raise a ValueError that names what is wrong with a scene's address."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if min(seed, index) < 0:
        raise ValueError(f"seed {seed!r} and index {index!r} are not valid; give integers of at least 0")


def class_of(split: str, seed: int, index: int) -> int:
    """The class of a scene: every run of len(classes) scenes shows each class once."""
    n = len(class_names())
    block, position = divmod(int(index), n)
    entropy = (int(seed), SPLITS.index(split), block, n)  # four numbers: never a scene's own three
    return int(np.random.default_rng(np.random.SeedSequence(entropy)).permutation(n)[position])


def make_plan(split: str, seed: int, index: int) -> Plan:
    """Draw scene `index` of a split; the three arguments decide everything.

    Raises:
        ValueError: Unknown split, or a negative seed or index.
    """
    check(split, seed, index)
    entropy = (int(seed), SPLITS.index(split), int(index))
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    main = _pick(rng, members(class_names()[class_of(split, seed, index)]))
    ground, sky = _place(rng, cutouts()[main].habitat)
    aloft = cutouts()[main].habitat == "sky"
    horizon = (_between(rng, 0.68, 0.76) if aloft else _between(rng, 0.3, 0.52)) if sky else 0.0
    close, left = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    objects = [_main(rng, main, ground, horizon, close, left)]
    for number in range(_pick(rng, (0, 0, 0, 0, 1, 1, 1, 1, 2, 2))):
        objects.append(_extra(rng, objects, ground, horizon, left == (number == 1)))
    return Plan(
        ground,
        sky,
        horizon,
        tuple(objects),
        close,
        left,
        dark=bool(rng.random() < 0.25),
        texture=tuple(float(v) for v in rng.random(8)),
        wording=tuple(int(v) for v in rng.integers(0, 6, 15)),
    )


def _pick(rng: np.random.Generator, choices: tuple[T, ...]) -> T:
    return choices[int(rng.random() * len(choices))]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _place(rng: np.random.Generator, habitat: str) -> tuple[str, str]:
    """Ground and sky that suit the main object."""
    wet = {"ground": 0.0, "shore": 0.85, "afloat": 1.0, "sea": 1.0, "sky": 0.5}[habitat]
    ground = "water" if rng.random() < wet else _pick(rng, DRY)
    has_sky = {"sky": 1.0, "sea": 0.0}.get(habitat, 0.72)
    sky = _pick(rng, SKIES) if rng.random() < has_sky else ""
    return ground, sky


def _where(cutout: int, ground: str) -> str:
    habitat = cutouts()[cutout].habitat
    if habitat == "shore":
        return "afloat" if ground == "water" else "ground"
    return habitat


def _shape(cutout: int, scale: float) -> tuple[float, float]:
    """Width and height, as shares of the picture's side."""
    width, height = picture(cutout).size
    ratio = width / height
    return (scale, scale / ratio) if ratio >= 1 else (scale * ratio, scale)


def _placement(rng: np.random.Generator, cutout: int, where: str, scale: float, x: float, foot: float) -> Placement:
    width, _ = _shape(cutout, scale)
    x = min(max(x, width / 2 - 0.02), 1.02 - width / 2)
    flip, angle = bool(rng.random() < 0.5), _between(rng, -4.0, 4.0)
    return Placement(cutout, scale, x, foot, where, flip, angle, _between(rng, 0.85, 1.12))


def _main(rng: np.random.Generator, cutout: int, ground: str, horizon: float, close: bool, left: bool) -> Placement:
    where = _where(cutout, ground)
    scale = _between(rng, 0.66, 0.82) if close else _between(rng, 0.44, 0.56)
    offset = _between(rng, 0.07, 0.13) if close else _between(rng, 0.14, 0.22)
    height = _shape(cutout, scale)[1]
    if where == "sky":
        foot = max(height + 0.02, _between(rng, height, horizon - 0.02))
    elif where == "sea" or not horizon:
        foot = min(0.95, 0.5 + height / 2 + _between(rng, -0.02, 0.1))
    else:
        foot = max(_between(rng, 0.76, 0.93), height + 0.03)
    return _placement(rng, cutout, where, scale, 0.5 - offset if left else 0.5 + offset, foot)


def _extra(rng: np.random.Generator, others: list[Placement], ground: str, horizon: float, left: bool) -> Placement:
    """A smaller object of a class that is not there yet, beside the main one."""
    taken = {cutouts()[other.cutout].class_name for other in others}
    fits = {"sky"} if horizon else set()
    fits |= set(HABITATS_ON_WATER) if ground == "water" else {"ground", "shore"}
    rows = cutouts()
    pool = [i for i, r in enumerate(rows) if r.habitat in fits and r.class_name not in taken]
    # The category first, so that every kind of thing is common.
    kind = _pick(rng, tuple(sorted({rows[i].category for i in pool})))
    cutout = _pick(rng, tuple(i for i in pool if rows[i].category == kind))
    where = _where(cutout, ground)
    scale = _between(rng, 0.26, 0.36)
    x = _between(rng, 0.08, 0.24)
    if where == "sky":
        height = _shape(cutout, scale)[1]
        foot = max(height + 0.01, _between(rng, 0.1, horizon - 0.03))
    elif others[0].where == "sky":
        foot = _between(rng, 0.88, 0.97)
    else:
        behind = max(horizon + 0.2, 0.62)  # an object behind a large one could not be seen
        front = min(0.98, others[0].foot + 0.03)
        foot = _between(rng, front if others[0].scale > 0.6 else behind, 0.98)
    return _placement(rng, cutout, where, scale, x if left else 1 - x, foot)
