"""Real data sets in their own standard layouts, read from a data root; nothing here ships."""

import csv
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from psic_core.models.images import SUFFIXES, load_image, to_tensor

Split = Literal["train", "dev", "test"]


class Folder(Dataset):
    """Plain pictures: every file with a picture's suffix under a folder, sorted by name.

    Args:
        root: The folder, searched recursively.
        size: Side in pixels that pictures are scaled (shorter side) and centre-cropped to; ``None`` keeps them.

    Raises:
        FileNotFoundError: No such folder, or no pictures in it.
    """

    def __init__(self, root: str | Path, size: int | None = None) -> None:
        self.root, self.size = Path(root), size
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {str(root)!r}; give a folder of pictures")
        self.files = sorted(p for p in self.root.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise FileNotFoundError(f"no pictures ({', '.join(sorted(SUFFIXES))}) under {str(root)!r}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Float[Tensor, "3 height width"]:
        """Picture ``index`` in [0, 1]."""
        image = load_image(self.files[index])
        return to_tensor(square(image, self.size) if self.size else image)[0]


class CaptionedFolder(Folder):
    """Any pictures with captions: a folder with a ``captions.csv`` or ``captions.txt``, the first that is there.

    Its lines are ``image,caption`` below a header of these words, one or several for each picture. A name counts
    from the folder, or from ``Images/`` in it. Pictures come in the order of the list; no others.

    Args:
        root: The folder.
        size: As in `Folder`.

    Raises:
        FileNotFoundError: No folder, no list, or a picture of the list is not there.
        ValueError: The list has another form.
    """

    def __init__(self, root: str | Path, size: int | None = None) -> None:
        super().__init__(root, size)
        path = next((p for n in ("captions.csv", "captions.txt") if (p := self.root / n).is_file()), None)
        if path is None:
            raise FileNotFoundError(f"no captions.csv or captions.txt in {str(root)!r}, with the columns image,caption")
        captions = read_captions(path)
        base = next((b for n in ("Images", "images") if (b := self.root / n).is_dir()), self.root)
        self.files = _on_disk([base / name for name in captions], path.name)
        self.captions: tuple[tuple[str, ...], ...] = tuple(captions.values())


class Flickr8k(CaptionedFolder):
    """Flickr8k (Hodosh et al. 2013): five captions a picture, official splits.

    Layout: ``Images/``, ``captions.txt`` (``image,caption`` with a header line),
    ``splits/Flickr_8k.{train,dev,test}Images.txt``.

    Args:
        root: The folder that holds them.
        split: ``train`` (6,000), ``dev`` (1,000) or ``test`` (1,000).
        size: As in `Folder`.
    """

    def __init__(self, root: str | Path, split: Split = "train", size: int | None = None) -> None:
        super().__init__(root, size)
        known = {path.name: (path, captions) for path, captions in zip(self.files, self.captions, strict=True)}
        path = self.root / "splits" / f"Flickr_8k.{split}Images.txt"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}; splits are train, dev, test (asked for {split!r})")
        names = path.read_text().split()
        if missing := [n for n in names if n not in known]:
            raise ValueError(f"{missing[0]!r} is in the {split} split but has no line in captions.txt")
        self.files = [known[n][0] for n in names]
        self.captions = tuple(known[n][1] for n in names)


@lru_cache(maxsize=4)
def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """``image,caption`` lines to the captions of each picture, in the order of the file; errors as `read_rows`."""
    captions: dict[str, list[str]] = {}
    for row in read_rows(path, "image", "caption"):
        captions.setdefault(row["image"].strip(), []).append(row["caption"].strip())
    return {name: tuple(texts) for name, texts in captions.items()}


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line, in UTF-8; quoted commas belong to their field.

    Args:
        path: The file.
        columns: What every row must have; other columns may stand beside them.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is no such file, or a row has a field too few, too many or empty; names it.
    """
    wanted = ",".join(columns)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            rows = list(csv.DictReader(file, strict=True))  # else an open quote swallows the rest of the file
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no CSV in UTF-8 with the columns {wanted}: {error}") from error
    wrong = [row for row in rows if None in row or not all((row.get(c) or "").strip() for c in columns)]
    if wrong or not rows:
        found = f"not {list(wrong[0].values())}; a field with commas needs quotes" if wrong else "and there are none"
        raise ValueError(f"{path}: its rows have the columns {wanted} below a line that names these, {found}")
    return rows


def _on_disk(files: list[Path], listing: str) -> list[Path]:
    """The files, if all are there."""
    if missing := [path for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{len(missing)} of the {len(files)} pictures in {listing} are not there, the first is "
                                f"{str(missing[0])!r}; add them or take their lines out")  # fmt: skip
    return files


class CelebA(Folder):
    """CelebA faces (Liu et al. 2015) with their 40 binary attributes.

    Layout: ``img_align_celeba/`` and ``list_attr_celeba.txt`` (count, names, then ``file ±1 ...``).
    """

    def __init__(self, root: str | Path, size: int | None = None) -> None:
        super().__init__(Path(root) / "img_align_celeba", size)
        path = Path(root) / "list_attr_celeba.txt"
        _, names, *lines = [*path.read_text().splitlines(), "", ""]
        self.attributes: tuple[str, ...] = tuple(names.split())
        rows = {file: values for file, *values in map(str.split, filter(None, lines))}
        self.files = [p for p in self.files if len(rows.get(p.name, ())) == len(self.attributes)]
        if not self.files or not self.attributes:
            raise ValueError(f"{path}: want a count, a line of names, then a line 'file 1 -1 ...' for each picture")
        self.labels = torch.tensor([[v == "1" for v in rows[p.name]] for p in self.files])


class ImageNetFolder(Folder):
    """ImageNet-style pictures with a ``classes.csv`` (``index,class_name,file``; more columns may be there).

    Classes stand in the order of their index (``numbers``); those of one name are one class to every prompt.
    """

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        path = self.root / "classes.csv"
        rows = read_rows(path, "index", "class_name", "file")
        rows.sort(key=lambda row: int(row["index"]))
        self.classes = tuple(dict.fromkeys(row["class_name"] for row in rows))
        self.files = _on_disk([self.root / row["file"] for row in rows], path.name)
        self.labels = torch.tensor([self.classes.index(row["class_name"]) for row in rows])
        self.numbers = [int(row["index"]) for row in rows]


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` (bicubic, antialiased) and crop the middle square."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def in_memory(dataset: Dataset) -> torch.ByteTensor:
    """Decode every picture once to one uint8 tensor ``(N, 3, H, W)``: training then reads no files."""
    found = (dataset[i] for i in range(len(dataset)))
    pictures = (getattr(p, "image", p) for p in found)  # scenes are named tuples, folders plain tensors
    return torch.stack([(p * 255).round().to(torch.uint8) for p in pictures])
