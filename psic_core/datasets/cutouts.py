"""The photographic cut-outs that scenes are made of: a table and pictures with transparency."""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from psic_core.config import data_dir


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
    """Every cut-out, in the order of the table.

    Raises:
        FileNotFoundError: The folder is missing, as in a wheel without the repository's ``data``.
    """
    table = scenes_dir() / "cutouts.csv"
    if not table.is_file():
        raise FileNotFoundError(
            f"{table} is missing: install the project from its clone with `pip install -e .`, or "
            "remake the folder with data/scenes/make_cutouts.py"
        )
    with table.open(newline="", encoding="utf-8") as rows:
        return tuple(
            Cutout(row["file"], row["name"], row["class"], row["category"], row["habitat"])
            for row in csv.DictReader(rows)
        )


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


def aspect(index: int) -> float:
    """Width over height of ``cutouts()[index]``."""
    width, height = picture(index).size
    return width / height
