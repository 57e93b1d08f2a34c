"""The embedded data set *scenes*: photographic cut-outs on grounds and skies, composed by the scripts beside them."""

import io
import json
from functools import cache
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from psic_core.config import data_dir
from psic_core.datasets.folders import square
from psic_core.models.images import to_tensor

NUMBER = {"train": 2560, "test": 500}  # of pictures
SIDE = 160  # of the stored pictures, in pixels


class Scene(NamedTuple):
    """One picture and all that is known of it."""

    image: Float[Tensor, "3 size size"]  # in [0, 1]
    captions: tuple[str, ...]  # five
    class_name: str
    class_index: int
    attributes: Bool[Tensor, " n_attr"]


class Scenes(Dataset):
    """The first pictures of a split; every run of as many as there are classes shows each class once.

    Args:
        split: ``train`` (2,560 pictures) or ``test`` (500).
        n: Number of pictures.
        size: Side in pixels. Above 160, which is stored, nothing more is to be seen.

    Raises:
        ValueError: Unknown split, or no such number.
    """

    def __init__(self, split: str, n: int, size: int = SIDE) -> None:
        if split not in NUMBER:
            raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(NUMBER)}")
        if not 1 <= n <= NUMBER[split]:
            raise ValueError(f"n {n!r} is not valid; give 1 to {NUMBER[split]} scenes of split {split}")
        self.archive, known = _opened(split)
        self.size, self.rows = size, known["scenes"][:n]
        self.classes: tuple[str, ...] = tuple(known["classes"])  # sorted; `Scene.class_index` counts in them
        self.attributes: tuple[str, ...] = tuple(known["attributes"])  # names, in the order of `Scene.attributes`
        #: A prompt for each attribute's presence and one for its absence.
        self.attribute_prompts: tuple[tuple[str, str], ...] = tuple(map(tuple, known["attributes"].values()))

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Scene:
        """Picture ``index``; negative indices count from the end."""
        number = range(len(self))[index]
        row = self.rows[number]
        image = Image.open(io.BytesIO(self.archive.read(f"{number:04}.webp")))
        pixels = to_tensor(image if self.size == SIDE else square(image, self.size))[0]
        flags = torch.tensor([flag == "1" for flag in row["attributes"]])
        return Scene(pixels, self.captions(number), self.classes[row["class"]], row["class"], flags)

    def captions(self, index: int) -> tuple[str, ...]:
        """The five captions of picture ``index``, without its pixels."""
        return tuple(self.rows[index]["captions"])


@cache
def _opened(split: str) -> tuple[ZipFile, dict[str, Any]]:
    """A split's archive, read whole, and what is known of its pictures."""
    archive = ZipFile(io.BytesIO((data_dir() / "scenes" / f"{split}.zip").read_bytes()))
    return archive, json.loads(archive.read("scenes.json"))
