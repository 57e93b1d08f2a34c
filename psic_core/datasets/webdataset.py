"""Picture-caption pairs from WebDataset shards, as img2dataset writes them (CC3M, LAION): ``KEY.jpg``, ``KEY.txt``."""

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import webdataset
from braceexpand import braceexpand
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

from psic_core.datasets.folders import square
from psic_core.models.images import load_image

BUFFER = 1000  # samples, still coded, that a reader shuffles among


@dataclass(frozen=True)
class Shards:
    """A set of shards to stream from, without end; a damaged shard or pair is skipped with a warning.

    Attributes:
        pattern: Names of tar files, with braces as in ``{00000..00331}.tar``.
        size: Side of the squares in pixels.
        workers: Reading processes beside each training process; 0 reads in the training process itself.
    """

    pattern: str
    size: int
    workers: int = 2

    def batches(
        self, batch_size: int, seed: int
    ) -> Iterator[tuple[UInt8[Tensor, "n 3 size size"], list[tuple[str, ...]]]]:
        """Shards drawn with replacement, their samples shuffled in a buffer; other processes and workers draw others.

        Raises:
            FileNotFoundError: A shard is not there.
        """
        files = list(braceexpand(self.pattern))
        if missing := [f for f in files if not Path(f).is_file()]:  # WebDataset itself would also run commands (pipe:)
            raise FileNotFoundError(f"no shard {missing[0]!r}; give existing .tar files: cc3m/{{00000..00331}}.tar")
        stream = webdataset.DataPipeline(
            webdataset.ResampledShards(files, seed=seed, deterministic=True),
            webdataset.tarfile_to_samples(handler=_skip),
            webdataset.shuffle(BUFFER, initial=BUFFER, seed=seed),
            webdataset.to_tuple("jpg;jpeg;png;webp", "txt", handler=_skip),
            webdataset.map_tuple(self._square, lambda text: (text.decode("utf-8").strip(),), handler=_skip),
            webdataset.batched(batch_size, lambda pairs: (torch.stack([p for p, _ in pairs]), [c for _, c in pairs])),
        )
        return iter(DataLoader(stream, batch_size=None, num_workers=self.workers, collate_fn=lambda batch: batch))

    def _square(self, data: bytes) -> UInt8[Tensor, "3 size size"]:
        return pil_to_tensor(square(load_image(io.BytesIO(data)), self.size))


def _skip(error: Exception) -> bool:
    """WebDataset's own `warn_and_continue` also sleeps."""
    warnings.warn(f"skipped: {error!r}", stacklevel=2)
    return True
