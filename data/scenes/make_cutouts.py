"""Remake the cut-outs of ``scenes`` from Debian's package ``tuxpaint-stamps-default``.

Unpack the package without installing it, then run this script on the folder:

    dpkg-deb -x tuxpaint-stamps-default_2022.06.04-1_all.deb unpacked
    python data/scenes/make_cutouts.py unpacked

``cutouts.csv`` is the selection, made by eye; this script only cuts, shrinks and saves what it lists.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.measure import label

HERE = Path(__file__).resolve().parent
STAMPS = Path("usr/share/tuxpaint/stamps")
LONGEST = 128  # pixels; scenes are rendered at 128-256 px, where the object fills about half
SMALLEST = 80  # pixels; anything smaller would look blurred beside its background
OPAQUE = 16  # alpha above which a pixel belongs to the object
ISLAND = 0.004  # share of the object below which a loose patch of pixels is dirt


def clean(image: Image.Image) -> Image.Image:
    """Erase loose specks that the original cutting left, and crop to what remains."""
    pixels = np.array(image.convert("RGBA"))
    islands = label(pixels[..., 3] > OPAQUE)
    areas = np.bincount(islands.ravel())
    areas[0] = 0
    keep = areas >= ISLAND * areas.sum()
    keep[0] = True  # soft edges below the threshold stay
    pixels[~keep[islands]] = 0
    solid = np.argwhere(keep[islands] & (islands > 0))
    (top, left), (bottom, right) = solid.min(axis=0), solid.max(axis=0)
    return Image.fromarray(pixels[top : bottom + 1, left : right + 1])


def shrink(image: Image.Image) -> Image.Image:
    """Reduce the longest side to `LONGEST` pixels; never enlarge."""
    if max(image.size) < SMALLEST:
        raise ValueError(f"cut-out of {image.size} px: choose one of at least {SMALLEST} px")
    factor = min(1.0, LONGEST / max(image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def save(image: Image.Image, path: Path) -> None:
    """Write a small PNG: invisible pixels carry no colour."""
    pixels = np.array(image)
    pixels[pixels[..., 3] == 0] = 0
    Image.fromarray(pixels).save(path, optimize=True)


def main() -> None:
    """Remake every file that ``cutouts.csv`` lists."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("unpacked", type=Path, help="folder that holds the package's usr/")
    stamps = parser.parse_args().unpacked / STAMPS
    if not stamps.is_dir():
        parser.error(f"{stamps} is not a folder; unpack the package with dpkg-deb -x first")
    with (HERE / "cutouts.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        with Image.open(stamps / row["source"]) as original:
            save(shrink(clean(original)), HERE / row["file"])
    print(f"{len(rows)} cut-outs written to {HERE}")


if __name__ == "__main__":
    main()
