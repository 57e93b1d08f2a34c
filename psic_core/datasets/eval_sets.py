"""What is measured on: pictures by name, with whatever is known of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, resize

from psic_core.config import data_dir, data_root
from psic_core.datasets import DATASETS
from psic_core.datasets.folders import CaptionedFolder, CelebA, Flickr8k, Folder, ImageNetFolder, read_rows
from psic_core.datasets.photos import held_out
from psic_core.datasets.scenes import NUMBER, SIDE, Scenes

#: What a model may call a photo of which nothing is known.
PHOTO_CLASSES = (
    "person", "child", "dog", "cat", "bird", "horse", "otter", "car", "boat", "airplane", "rocket", "motorcycle",
    "guitar", "cup of coffee", "flower", "tree", "building", "street", "beach", "mountain",
)  # fmt: skip


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


def eval_set(name: str, root: str | Path | None = None, limit: int | None = None, side: int | None = None) -> EvalSet:
    """A data set by name.

    Args:
        name: One of `DATASETS`. ``scenes`` is embedded (500 held-out pictures). In the data root live ``flickr8k``
            (its test split; ``-dev``: 1,000 pictures), ``celeba`` (the figures that are
            reported take the first 1,000), ``imagenet``, ``coco`` (380 captioned photos), ``kodak``, ``camera`` (photos
            as cameras wrote them) and ``held-out`` (those of its ``photos`` that no model was trained on). The last two
            are any folder, given as ``root``: ``photos``, which a model may call `PHOTO_CLASSES`, and ``captioned``.
        root: The data root, or that folder.
        limit: At most so many pictures, the first ones.
        side: Shorter side in pixels that whole pictures are scaled to; 0 leaves them as they are. ``None`` is each
            set's own way: ``flickr8k``, ``celeba`` and ``captioned`` become squares of 160, others stay.

    Raises:
        ValueError: Unknown name, a limit below 1, a negative side, a list in another form.
        FileNotFoundError: The data is not there.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} leaves no picture; give at least 1")
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}")
    if side is not None and side < 0:
        raise ValueError(f"side {side}: give a number of pixels, or 0 for pictures as they are")
    if name == "scenes":
        return _scenes(min(limit or NUMBER["test"], NUMBER["test"]), side or SIDE)
    found = _real(name, data_root(root), limit, 160 if side is None else None)
    if side:
        whole = found.picture
        found.picture = lambda i: scaled(whole(i), side)
    return found


def scaled(x: Float[Tensor, "3 height width"], side: int) -> Float[Tensor, "3 rows columns"]:
    """A whole picture with a shorter side of so many pixels, bicubic and antialiased."""
    return resize(x, [side], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)


def _real(name: str, base: Path, limit: int | None, size: int | None) -> EvalSet:
    """One of the sets on disk, as squares of ``size`` pixels or, ``None``, as they are."""
    if name == "photos":
        return _of(name, Folder(base), limit, classes=PHOTO_CLASSES)
    if name in ("kodak", "camera", "held-out"):  # nothing is known of their pictures
        folder = Folder(base / (name if name != "held-out" else "photos"))
        folder.files = [f for f in folder.files if name != "held-out" or held_out(f)]
        return _of(name, folder, limit)
    if name == "celeba":
        faces = CelebA(base / name, size)
        prompts = face_prompts(faces.attributes)
        return _of(name, faces, limit, attribute_prompts=prompts, attributes=faces.labels[:limit])
    if name == "imagenet":
        objects = ImageNetFolder(base / "imagenet_sample")
        known = {"classes": objects.classes, "labels": objects.labels[:limit]}
        return _of(name, objects, limit, templates=list(OPENAI_IMAGENET_TEMPLATES), **known)
    if name.startswith("flickr8k"):
        pictures = Flickr8k(base / "flickr8k", name.partition("-")[2] or "test", size)
    else:
        pictures = CaptionedFolder(base / "coco_pairs") if name == "coco" else CaptionedFolder(base, size)
    return _of(name, pictures, limit, captions=list(pictures.captions[:limit]))


def face_prompts(attributes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """For each of CelebA's attributes, by its name, a prompt that says yes and one that says no.

    They stand in ``data/celeba_prompts.csv``. The second names the opposite where the language has a word for exactly
    that, and says "without" or "not" elsewhere.

    Raises:
        ValueError: A name that CelebA does not have.
    """
    rows = read_rows(data_dir() / "celeba_prompts.csv", "attribute", "yes", "no")
    known = {row["attribute"]: (row["yes"], row["no"]) for row in rows}
    if unknown := [name for name in attributes if name not in known]:
        raise ValueError(f"no prompts for the attribute {unknown[0]!r}; CelebA's are {', '.join(known)}")
    return tuple(known[name] for name in attributes)


def _scenes(n: int, size: int) -> EvalSet:
    scenes = Scenes("test", n, size)
    drawn = [scenes[i] for i in range(n)]
    return EvalSet(
        "scenes", n, lambda i: drawn[i].image, [s.captions for s in drawn], scenes.classes,
        torch.tensor([s.class_index for s in drawn]), attribute_prompts=scenes.attribute_prompts,
        attributes=torch.stack([s.attributes for s in drawn]),
    )  # fmt: skip


def _of(name: str, pictures: Folder, limit: int | None, **known: Any) -> EvalSet:
    size = len(pictures) if limit is None else min(limit, len(pictures))
    return EvalSet(name, size, pictures.__getitem__, **known)
