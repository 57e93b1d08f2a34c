"""Real data sets in their own standard layouts, read from a data root; nothing here ships."""

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from psic_core.images import SUFFIXES, load_image, to_tensor

Split = Literal["train", "dev", "test", "all"]


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


class Flickr8k(Folder):
    """Flickr8k (Hodosh et al. 2013): five captions a picture, official splits.

    Layout: ``Images/``, ``captions.txt`` (``image,caption`` with a header line),
    ``splits/Flickr_8k.{train,dev,test}Images.txt``.

    Args:
        root: The folder that holds them.
        split: ``train`` (6,000), ``dev`` (1,000), ``test`` (1,000) or ``all`` (8,091).
        size: As in `Folder`.
    """

    def __init__(self, root: str | Path, split: Split = "train", size: int | None = None) -> None:
        super().__init__(Path(root) / "Images", size)
        captions = read_captions(Path(root) / "captions.txt")
        names = sorted(captions) if split == "all" else self._split(Path(root), split)
        missing = [n for n in names if n not in captions]
        if missing:
            raise ValueError(f"{missing[0]!r} is in the {split} split but has no line in captions.txt")
        self.files = [self.root / n for n in names]
        self.captions: tuple[tuple[str, ...], ...] = tuple(captions[n] for n in names)

    @staticmethod
    def _split(root: Path, split: str) -> list[str]:
        path = root / "splits" / f"Flickr_8k.{split}Images.txt"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}; splits are train, dev, test, all (asked for {split!r})")
        return path.read_text().split()


@lru_cache(maxsize=4)
def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """``image,caption`` lines to the captions of each picture; quoted commas belong to the caption."""
    captions: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"image", "caption"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path}: its first line must be image,caption, not {reader.fieldnames}")
        for row in reader:
            if row["caption"] is None:
                raise ValueError(f"{path}: line {reader.line_num} is no image,caption: {row['image']!r}")
            captions.setdefault(row["image"], []).append(row["caption"].strip())
    return {name: tuple(texts) for name, texts in captions.items()}


class CelebA(Folder):
    """CelebA faces (Liu et al. 2015) with their 40 binary attributes.

    Layout: ``img_align_celeba/`` and ``list_attr_celeba.txt`` (count, names, then ``file ±1 ...``).
    """

    def __init__(self, root: str | Path, size: int | None = None) -> None:
        super().__init__(Path(root) / "img_align_celeba", size)
        path = Path(root) / "list_attr_celeba.txt"
        lines = path.read_text().splitlines()
        if len(lines) < 2:
            raise ValueError(f"{path}: want a count, a line of names, then a line 'file 1 -1 ...' a picture")
        self.attributes: tuple[str, ...] = tuple(lines[1].split())
        rows = {f: values for f, *values in (line.split() for line in lines[2:] if line)}
        wrong = [f for f, values in rows.items() if len(values) != len(self.attributes)]
        if wrong:
            raise ValueError(f"{path}: {wrong[0]!r} has {len(rows[wrong[0]])} values, not {len(self.attributes)}")
        self.files = [p for p in self.files if p.name in rows]
        if not self.files:
            raise ValueError(f"{path} names none of the pictures in {self.root}")
        self.labels = torch.tensor([[v == "1" for v in rows[p.name]] for p in self.files])


class ImageNetFolder(Folder):
    """ImageNet-style pictures with a ``classes.csv`` (``index,synset,class_name,file``)."""

    def __init__(self, root: str | Path, size: int | None = None) -> None:
        super().__init__(root, size)
        with (self.root / "classes.csv").open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"index", "class_name", "file"} <= set(reader.fieldnames or ()):
                raise ValueError(f"{file.name}: want the columns index,synset,class_name,file, got {reader.fieldnames}")
            rows = sorted(reader, key=lambda row: int(row["index"]))
        self.classes: tuple[str, ...] = tuple(dict.fromkeys(row["class_name"] for row in rows))
        self.files = [self.root / row["file"] for row in rows]
        self.labels = torch.tensor([self.classes.index(row["class_name"]) for row in rows])


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` (bicubic, antialiased) and crop the middle square."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def in_memory(dataset: Dataset, indices: Sequence[int] | None = None) -> torch.ByteTensor:
    """Decode every picture once to one uint8 tensor ``(N, 3, H, W)``: training then reads no files."""
    chosen = range(len(dataset)) if indices is None else indices
    pictures = [dataset[i] for i in chosen]
    pictures = [getattr(p, "image", p) for p in pictures]  # scenes are named tuples, folders plain tensors
    return torch.stack([(p * 255).round().to(torch.uint8) for p in pictures])
