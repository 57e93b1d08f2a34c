"""Pairs from shards without end and without ever holding more than a buffer of them: for sets larger than memory."""

import json
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import shuffle

from psic_core.datasets.shards import decoded, raw_samples, shard_files
from psic_core.images import SUFFIXES

Place = tuple[int, int]  # epoch, and samples of it that were read, good and bad ones


@dataclass(frozen=True)
class Shards:
    """A set of shards to stream from.

    Attributes:
        pattern: As in `shards.shard_files`.
        size: Side of the squares in pixels.
        workers: Reading processes beside each training process; 0 reads in the training process itself.
        buffer: Samples, still coded, that a reader shuffles among.
    """

    pattern: str
    size: int
    workers: int = 2
    buffer: int = 1000

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


def _count(file: Path) -> int:
    stats = file.with_name(f"{file.stem}_stats.json")
    if stats.is_file():
        return int(json.loads(stats.read_text())["successes"])
    try:
        with tarfile.open(file) as tar:
            return sum(Path(name).suffix.lower() in SUFFIXES for name in tar.getnames())
    except tarfile.TarError as error:
        raise ValueError(f"{file} is no tar file: {error}; download it again or leave it out") from error


class Sample(NamedTuple):
    """One pair, and where its reader then stands."""

    picture: UInt8[Tensor, "3 size size"]
    caption: str
    reader: int
    place: Place


class Loaded(NamedTuple):
    """A batch of one reader."""

    pictures: UInt8[Tensor, "batch 3 size size"]
    captions: list[tuple[str]]
    reader: int
    place: Place


@dataclass
class Stream(IterableDataset):
    """One training process's share of the pairs, epoch after epoch.

    Every shard belongs to one reader of one process for the whole run; it reads its shards in a new order each
    epoch, shuffled further by a buffer, to the last pair, and then begins the next epoch. So no pair comes twice in an
    epoch, none is left out, and processes wait for nobody. Where shards differ in length, so do epochs.

    Attributes:
        shards: What to read.
        rank: Number of this training process.
        count: Training processes.
        seed: Of all orders.
        places: Where each reader starts; the beginning where empty.
        first: The reader whose turn it is.
        epochs: Epochs to give; endless where ``None``.

    Raises:
        ValueError: Fewer shards than processes; an epoch without a single readable pair.
    """

    shards: Shards
    rank: int = 0
    count: int = 1
    seed: int = 0
    places: Sequence[Place] = ()
    first: int = 0
    epochs: int | None = None
    readers: int = field(init=False)

    def __post_init__(self) -> None:
        """Share out the shards."""
        n = len(self.shards.files)
        if n < self.count:
            raise ValueError(
                f"{n} shards cannot be shared by {self.count} processes: write more and smaller shards, or load them "
                "into memory with --stream no"
            )
        self.readers = max(1, min(self.shards.workers, n // self.count))
        self.places = list(self.places) or [(0, 0)] * self.readers
        if len(self.places) != self.readers:
            raise ValueError(
                f"the run to resume had {len(self.places)} readers a process, this one has {self.readers}: use as many"
            )

    def loader(self, batch_size: int) -> DataLoader:
        """Batches of this process; readers take turns. Shared-memory workers, where there are any."""
        workers = self.readers if self.shards.workers else 0
        return DataLoader(self, batch_size, num_workers=workers, collate_fn=_collated, drop_last=False)

    def __iter__(self) -> Iterator[Sample]:
        """The pairs of the reader that runs here."""
        worker = get_worker_info()
        reader = (self.first + (worker.id if worker else 0)) % self.readers
        epoch, done = self.places[reader]
        while self.epochs is None or epoch < self.epochs:
            found = done > 0
            for sample in self._epoch(reader, epoch, done):
                found = True
                yield sample
            if not found:
                raise ValueError(f"{self.shards.pattern}: no readable pair of picture and caption in these shards: "
                                 + ", ".join(Path(f).name for f in self._files(reader)))  # fmt: skip
            epoch, done = epoch + 1, 0

    def _files(self, reader: int) -> list[str]:
        files = list(self.shards.files)
        random.Random(f"{self.seed}").shuffle(files)
        return files[self.rank * self.readers + reader :: self.count * self.readers]

    def _epoch(self, reader: int, epoch: int, done: int) -> Iterator[Sample]:
        """One epoch's pairs; the first ``done`` samples are passed over, their pictures left undecoded."""
        files, rng = self._files(reader), random.Random(f"{self.seed} {self.rank} {reader} {epoch}")
        rng.shuffle(files)
        raw = (sample for file in files for sample in raw_samples(file))
        mixed = shuffle(self.shards.buffer, initial=self.shards.buffer, rng=rng)(raw) if self.shards.buffer else raw
        for n, sample in enumerate(mixed):
            if n >= done and (pair := decoded(sample, self.shards.size)):
                yield Sample(*pair, reader, (epoch, n + 1))


def _collated(samples: Sequence[Sample]) -> Loaded:
    last = samples[-1]
    return Loaded(torch.stack([s.picture for s in samples]), [(s.caption,) for s in samples], last.reader, last.place)


def as_tensor(places: Sequence[Place]) -> Int64[Tensor, "readers 2"]:
    """The readers' places, to be stored."""
    return torch.tensor(places, dtype=torch.int64)
