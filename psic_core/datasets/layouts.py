"""From what others publish to the layouts that `psic_core.datasets.folders` reads: one function for each data set.

Each takes the folder of the downloads and an empty one, and fills that; errors are those of `unpack`.
"""

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from psic_core.datasets.disk import unpack


def flickr8k(files: Path, out: Path) -> None:
    """The pictures lie in ``Flicker8k_Dataset/`` (their spelling), the captions as ``NAME.jpg#0<tab>caption``."""
    unpack(files / "Flickr8k_Dataset.zip", out, _into("Images", r"[^/]+/(\w+\.jpg)"))
    unpack(files / "Flickr8k_text.zip", out, _into("splits", r"(Flickr_8k\.(?:train|dev|test)Images\.txt)"))
    unpack(files / "Flickr8k_text.zip", out, _into("", r"(Flickr8k\.token\.txt)"))
    token = out / "Flickr8k.token.txt"
    if not token.is_file():
        raise ValueError(f"Flickr8k_text.zip holds no {token.name}; delete it in {str(files)!r} and run it again")
    rows = [re.split(r"#\d+\t", line, maxsplit=1) for line in token.read_text(encoding="utf-8").split("\n") if line]
    with (out / "captions.txt").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", "caption"))
        # five captions are of 2258277193_586949ec62.jpg.1, which is no picture
        writer.writerows((name, text.strip()) for name, text in rows if (out / "Images" / name).is_file())
    token.unlink()


def kodak(files: Path, out: Path) -> None:
    """The pictures come one by one, as they are read."""
    for path in sorted(files.glob("kodim??.png")):
        shutil.copyfile(path, out / path.name)


def celeba(files: Path, out: Path) -> None:
    """The aligned and cropped faces, 178x218 pixels; the list of attributes is not in the archive."""
    unpack(files / "img_align_celeba.zip", out, _into("img_align_celeba", r"img_align_celeba/(\d+\.jpg)"))
    shutil.copyfile(files / "list_attr_celeba.txt", out / "list_attr_celeba.txt")


def imagenet_sample(files: Path, out: Path) -> None:
    """A picture for each class, ``n01440764_tench.JPEG``; ImageNet numbers its classes in the order of the synsets."""
    unpack(files / "imagenet-sample-images.zip", out, _into("", r"[^/]+/(n\d{8}_[^/]+\.JPEG)"))
    names = sorted(path.name for path in out.glob("n*.JPEG"))
    with (out / "classes.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("index", "synset", "class_name", "file"))
        for index, name in enumerate(names):
            synset, words = name.removesuffix(".JPEG").split("_", maxsplit=1)
            writer.writerow((index, synset, words.replace("_", " "), name))


def _into(folder: str, pattern: str) -> Callable[[str], str | None]:
    """For `unpack`: members whose whole name matches, to what the pattern's group says, below a folder."""

    def place(member: str) -> str | None:
        match = re.fullmatch(pattern, member)
        return str(PurePosixPath(folder) / match[1]) if match else None

    return place
