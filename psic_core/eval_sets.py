"""What is measured on: pictures by name, with whatever is known of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from psic_core.config import data_root
from psic_core.datasets.folders import CelebA, Flickr8k, Folder, ImageNetFolder
from psic_core.datasets.scenes import Scenes

DATASETS = ("scenes", "flickr8k", "flickr8k-dev", "celeba", "imagenet", "kodak", "photos")
PHOTO_CLASSES = (
    "person",
    "child",
    "dog",
    "cat",
    "bird",
    "horse",
    "car",
    "boat",
    "airplane",
    "food",
    "cup of coffee",
    "flower",
    "tree",
    "building",
    "street",
    "beach",
    "mountain",
    "rocket",
    "astronaut",
    "motorcycle",
)


@dataclass
class EvalSet:
    """Pictures and whatever is known of them; a task runs where its part is there."""

    name: str
    size: int
    picture: Callable[[int], Float[Tensor, "3 height width"]]
    captions: list[tuple[str, ...]] | None = None
    classes: tuple[str, ...] | None = None
    labels: Int64[Tensor, " n"] | None = None
    templates: list[Callable[[str], str]] = field(default_factory=lambda: [lambda c: f"a photo of a {c}"])
    attribute_prompts: tuple[tuple[str, str], ...] | None = None
    attributes: Bool[Tensor, "n a"] | None = None


def eval_set(
    name: str,
    root: str | Path | None = None,
    limit: int | None = None,
    size: int = 160,
    classes: Sequence[str] | None = None,
) -> EvalSet:
    """A data set by name.

    Args:
        name: One of `DATASETS`. ``scenes`` is embedded (500 held-out pictures); the others live in the data
            root, and ``photos`` is any folder of pictures given as ``root``. ``flickr8k`` is its test split.
        root: The data root, or the folder of ``photos``.
        limit: At most so many pictures, the first ones.
        size: Side in pixels of the squares that pictures are made into; ``kodak`` and ``photos`` stay as they are.
        classes: What the model may call one of ``photos``; default `PHOTO_CLASSES`. The other sets have their own.

    Raises:
        ValueError: Unknown name, a limit below 1, classes that do not fit.
        FileNotFoundError: The data is not there.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} leaves no picture; give at least 1")
    if classes is not None and (name != "photos" or len(set(classes)) < 2):
        raise ValueError(f"{len(set(classes))} classes for {name!r}: give at least two, and only for photos")
    if name == "scenes":
        return _scenes(limit or 500, size)
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}")
    if name == "photos":
        photos = Folder(data_root(root))
        return EvalSet(name, _least(limit, len(photos)), photos.__getitem__, classes=tuple(classes or PHOTO_CLASSES))
    base = data_root(root)
    if name == "kodak":  # fidelity alone: nothing is known of its pictures
        kodak = Folder(base / name)
        return EvalSet(name, _least(limit, len(kodak)), kodak.__getitem__)
    if name.startswith("flickr8k"):
        flickr = Flickr8k(base / "flickr8k", "dev" if name.endswith("dev") else "test", size)
        n = _least(limit, len(flickr))
        return EvalSet(name, n, flickr.__getitem__, captions=list(flickr.captions[:n]))
    if name == "celeba":
        return _celeba(CelebA(base / name, size), limit)
    imagenet = ImageNetFolder(base / "imagenet_sample", size)
    n = _least(limit, len(imagenet))
    return EvalSet(name, n, imagenet.__getitem__, classes=imagenet.classes, labels=imagenet.labels[:n],
                   templates=list(OPENAI_IMAGENET_TEMPLATES))  # fmt: skip


def _scenes(n: int, size: int) -> EvalSet:
    scenes = Scenes("test", n, size)
    drawn = [scenes[i] for i in range(n)]
    return EvalSet(
        "scenes", n, lambda i: drawn[i].image, [s.captions for s in drawn], scenes.classes,
        torch.tensor([s.class_index for s in drawn]), attribute_prompts=scenes.attribute_prompts,
        attributes=torch.stack([s.attributes for s in drawn]),
    )  # fmt: skip


def _celeba(faces: CelebA, limit: int | None) -> EvalSet:
    n = _least(limit, len(faces))
    names = [a.replace("_", " ").lower() for a in faces.attributes]
    prompts = tuple((f"a photo of a face, {a}", f"a photo of a face, not {a}") for a in names)
    return EvalSet("celeba", n, faces.__getitem__, attribute_prompts=prompts, attributes=faces.labels[:n])


def _least(limit: int | None, n: int) -> int:
    return n if limit is None else min(limit, n)
