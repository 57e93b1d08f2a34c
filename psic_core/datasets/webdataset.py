"""Picture-caption pairs from WebDataset shards, as img2dataset writes them (CC3M, LAION): ``KEY.jpg``, ``KEY.txt``."""

import io
import json
import random
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from braceexpand import braceexpand
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms.functional import pil_to_tensor
from webdataset import ResampledShards
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys, tar_file_iterator
from webdataset.utils import pytorch_worker_seed

from psic_core.datasets.folders import square
from psic_core.models.images import SUFFIXES, load_image

BUFFER = 1000  # samples, still coded, that a reader shuffles among

Sample = tuple[UInt8[Tensor, "3 size size"], str]
Loaded = tuple[UInt8[Tensor, "n 3 size size"], list[tuple[str]]]


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


def samples(file: str) -> Iterator[dict[str, Any]]:
    """What lies under one key each in a shard, as bytes by suffix; a damaged member is skipped with a warning.

    WebDataset's own reader would leave the shard open.
    """
    with open(file, "rb") as stream:

        def members() -> Iterator[dict[str, Any]]:
            try:
                yield from (member | {"__url__": file} for member in tar_file_iterator(stream, handler=_tell))
            except (tarfile.TarError, EOFError) as error:  # between two members
                _tell(error)

        yield from (sample | {"__url__": file} for sample in group_by_keys(members(), handler=_tell))


def decoded(sample: dict[str, Any], size: int) -> Sample | None:
    """Picture and caption of a sample; ``None``, with a warning, where it cannot be read.

    Args:
        sample: As `samples` gives it.
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


def read_shards(pattern: str, size: int) -> Loaded:
    """All pairs, in memory, in the order of the shards.

    Args:
        pattern: As in `shard_files`.
        size: Side of the squares in pixels.

    Raises:
        ValueError: No readable pair.
    """
    read = (decoded(sample, size) for file in shard_files(pattern) for sample in samples(file))
    found = [pair for pair in read if pair]
    if not found:
        raise ValueError(f"{pattern}: no readable pair of picture and caption in its shards")
    return _collated(found)


@dataclass(frozen=True)
class Shards:
    """A set of shards to stream from, without end and without ever holding more than a buffer of them.

    Attributes:
        pattern: As in `shard_files`.
        size: Side of the squares in pixels.
        workers: Reading processes beside each training process; 0 reads in the training process itself.
    """

    pattern: str
    size: int
    workers: int = 2

    @cached_property
    def files(self) -> list[str]:
        """The shards' files."""
        return shard_files(self.pattern)

    @cached_property
    def pairs(self) -> int:
        """How many, as img2dataset counted (``NNNNN_stats.json`` beside a shard), else by the shards' headers."""
        return sum(_count(Path(f)) for f in self.files)

    def __len__(self) -> int:
        return self.pairs

    def loader(self, batch_size: int, seed: tuple[int, int]) -> DataLoader:
        """Batches without end; other processes and workers draw others.

        Args:
            batch_size: Of this process.
            seed: Of the order: a run's, and the step that it begins at.

        Raises:
            ValueError: The shards hold no picture.
        """
        if not self.pairs:
            raise ValueError(f"{self.pattern}: no picture in its shards")
        return DataLoader(_Stream(self, seed), batch_size, num_workers=self.workers, collate_fn=_collated)


@dataclass
class _Stream(IterableDataset):
    """Shards drawn with replacement, their samples shuffled in a buffer."""

    shards: Shards
    seed: tuple[int, int]

    def __iter__(self) -> Iterator[Sample]:
        rng = random.Random(f"{self.seed} {pytorch_worker_seed()}")
        drawn = ResampledShards(self.shards.files, seed=rng.randrange(2**31), deterministic=True)
        raw = (sample for shard in drawn for sample in samples(shard["url"]))
        mixed = shuffle(BUFFER, initial=BUFFER, rng=rng)(raw)
        yield from (pair for sample in mixed if (pair := decoded(sample, self.shards.size)))


def _count(file: Path) -> int:
    stats = file.with_name(f"{file.stem}_stats.json")
    if stats.is_file():
        return int(json.loads(stats.read_text())["successes"])
    try:
        with tarfile.open(file) as tar:
            return sum(Path(name).suffix.lower() in SUFFIXES for name in tar.getnames())
    except tarfile.TarError as error:
        raise ValueError(f"{file} is no tar file: {error}; download it again or leave it out") from error


def _collated(found: Sequence[Sample]) -> Loaded:
    return torch.stack([picture for picture, _ in found]), [(caption,) for _, caption in found]


def _tell(error: Exception) -> bool:
    _skip(f"a shard is damaged: {error}")
    return True


def _skip(what: str) -> None:
    warnings.warn(f"{what}; skipped", SkippedSample, stacklevel=3)
