"""Picture-caption pairs from WebDataset shards, as img2dataset writes them (CC3M, LAION): ``KEY.jpg``, ``KEY.txt``."""

import io
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from braceexpand import braceexpand
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from webdataset.tariterators import group_by_keys, tar_file_iterator

from psic_core.datasets.folders import square
from psic_core.images import SUFFIXES, load_image


class SkippedSample(UserWarning):
    """A member of a shard that is no picture with a caption; the rest is read on."""


def shard_files(pattern: str) -> list[str]:
    """The tar files that a pattern names: braces as in ``{00000..00331}.tar``, or a folder of ``*.tar``.

    Only files are read: WebDataset itself would also run commands (``pipe:``).

    Raises:
        FileNotFoundError: None, or one of them, is there.
    """
    if Path(pattern).is_dir():
        files = sorted(str(p) for p in Path(pattern).glob("*.tar"))
    else:
        files = list(braceexpand(pattern))
    missing = [f for f in files if not Path(f).is_file()]
    if missing or not files:
        raise FileNotFoundError(f"no shard {missing[0] if missing else pattern + '/*.tar'!r}; give existing .tar files")
    return files


def raw_samples(file: str) -> Iterator[dict[str, Any]]:
    """What lies under one key each in a shard, as bytes by suffix; unread, in the order of the file."""
    for sample in group_by_keys(_members(file), handler=_tell):
        yield sample | {"__url__": file}


def decoded(sample: dict[str, Any], size: int) -> tuple[UInt8[Tensor, "3 size size"], str] | None:
    """Picture and caption of a raw sample; ``None``, with a warning, where it cannot be read.

    Args:
        sample: As `raw_samples` gives it.
        size: Side of the square in pixels.
    """
    where = f"{Path(sample['__url__']).name}: {sample['__key__']}"
    picture = next((sample[s] for s in sample if f".{s}" in SUFFIXES), None)
    if picture is None or "txt" not in sample:
        _skip(f"{where} has no {'caption' if picture else 'picture'}")
        return None
    try:
        image, caption = square(load_image(io.BytesIO(picture)), size), sample["txt"].decode("utf-8").strip()
    except ValueError as error:
        _skip(f"{where} cannot be read: {error}")
        return None
    return pil_to_tensor(image), caption


def samples(pattern: str, size: int) -> Iterator[tuple[UInt8[Tensor, "3 size size"], str]]:
    """Pictures and captions in the order of the shards; whatever cannot be read is skipped with a warning.

    Args:
        pattern: As in `shard_files`.
        size: Side of the squares in pixels.
    """
    for file in shard_files(pattern):
        for sample in raw_samples(file):
            if pair := decoded(sample, size):
                yield pair


def read_shards(
    pattern: str, size: int, limit: int | None = None
) -> tuple[UInt8[Tensor, "n 3 size size"], list[tuple[str]]]:
    """All (or the first ``limit``) pairs, in memory.

    Raises:
        ValueError: No readable pair.
    """
    pictures, captions = [], []
    for picture, caption in samples(pattern, size):
        pictures.append(picture)
        captions.append((caption,))
        if len(pictures) == limit:
            break
    if not pictures:
        raise ValueError(f"{pattern}: no readable pair of picture and caption in its shards")
    return torch.stack(pictures), captions


def _members(file: str) -> Iterator[dict[str, Any]]:
    """The files in a shard, as bytes: WebDataset's own pipeline would leave the shard open and unpickle some."""
    with open(file, "rb") as stream:
        try:
            for member in tar_file_iterator(stream, handler=_tell):
                yield member | {"__url__": file}
        except (tarfile.TarError, EOFError) as error:  # between two members
            _tell(error)


def _tell(error: Exception) -> bool:
    _skip(f"a shard is damaged: {error}")
    return True


def _skip(what: str) -> None:
    warnings.warn(f"{what}; skipped", SkippedSample, stacklevel=3)
