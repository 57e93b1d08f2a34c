"""What one training step sees: which pictures, which crops, and in stage two which latents."""

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.config import TrainConfig
from psic_core.datasets.photos import Photos
from psic_core.datasets.webdataset import Shards
from psic_core.evidence import caption_ids
from psic_core.models import tiles
from psic_core.models.vlp import Target
from psic_core.objectives import Pool
from psic_core.training.pairs import Pairs


class Batch(NamedTuple):
    """What one step sees."""

    x: Float[Tensor, "batch 3 crop crop"]
    y_hat: Float[Tensor, "batch m h w"] | None  # stage two: latents of the crop and its surroundings
    index: Int64[Tensor, " batch"]
    rng: torch.Generator
    corners: tuple[tuple[int, int], ...] | None = None  # of each crop within what y_hat decodes to; None: whole

    def cut(self, x_hat: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 crop crop"]:
        """The part of a decoded batch that shows ``x``."""
        if self.corners is None:
            return x_hat
        side = self.x.shape[-1]
        return torch.stack([p[:, t : t + side, e : e + side] for p, (t, e) in zip(x_hat, self.corners, strict=True)])


class CachedLatents:
    """Rounded latents of every picture, whole, which is what decoders really get.

    The codec pads a picture to a multiple of 64 below and to the right. Files do it so; here every second, third
    and fourth chunk of pictures is padded at the other sides, so that a true edge of the picture is seen on each
    side: what an attack learns of edges that are always padded away is wrong where they are not.

    Args:
        model: Its backbone encodes, once for each picture.
        pairs: The pictures.
        device: Where to encode.
        chunk: Pictures encoded together.
        quiet: No progress bar.
    """

    def __init__(self, model: PSIC, pairs: Pairs, device: torch.device, chunk: int = 16, quiet: bool = False) -> None:
        height, width = pairs.pictures.shape[-2:]
        multiple, parts, starts = model.factor, [], []
        self.cell = model.coder.cell
        down, right = -height % multiple, -width % multiple
        chunks = pairs.pictures.split(chunk)
        for k, pictures in enumerate(tqdm(chunks, desc="latents", leave=False, disable=quiet)):
            top, left = (self.cell * (n // self.cell) * (k >> bit & 1) for bit, n in enumerate((down, right)))
            x = functional.pad(
                pictures.to(device).float() / 255, (left, right - left, top, down - top), mode="replicate"
            )
            y_hat = model.quantised_latents(x).cpu()
            whole = torch.equal(y_hat, y_hat.round()) and y_hat.abs().max() < 2**15
            parts.append(y_hat.to(torch.int16) if whole else y_hat)
            starts += [(top // self.cell, left // self.cell)] * len(pictures)
        self.y_hat = torch.cat(parts)
        self.starts = starts  # of each picture in its padded latents
        self.context = _context(model, max(self.y_hat.shape[-2:]))

    def window(
        self, index: Int64[Tensor, " batch"], top: int, left: int, side: int
    ) -> tuple[Float[Tensor, "batch m h w"], tuple[tuple[int, int], ...]]:
        """Latents that decode to a crop as if the whole picture were decoded, and where the crop then lies.

        Args:
            index: The pictures.
            top: First row of the crop, in latents.
            left: First column.
            side: Rows and columns of the crop, in latents.
        """
        cut, corners = [], []
        height, width = self.y_hat.shape[-2:]
        n, m = (min(side + 2 * self.context, size) for size in (height, width))
        for i in index.tolist():
            t, e = (a + b for a, b in zip(self.starts[i], (top, left), strict=True))
            t0, e0 = max(0, min(t - self.context, height - n)), max(0, min(e - self.context, width - m))
            cut.append(self.y_hat[i, :, t0 : t0 + n, e0 : e0 + m])
            corners.append((self.cell * (t - t0), self.cell * (e - e0)))
        return torch.stack(cut).float(), tuple(corners)


def _context(model: PSIC, side: int) -> int:
    """Latents around a crop that its pixels depend on; where that is beyond ``side``, more than any picture has."""
    try:
        beta = next(model.parameters()).new_zeros(1, model.config.dim)
        return tiles.reach(lambda y: model.g_s(y, beta), model.g_s.channels[0], 1, beta.device, side)
    except ValueError:
        return 2**16


def indices(step: int, pairs: int, config: TrainConfig) -> Int64[Tensor, " batch"]:
    """The step's pictures: a permutation for each epoch, without a state to keep."""
    size = config.batch_size
    epoch, position = divmod(step * size, pairs - pairs % size)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))
    return order[position : position + size]


def draw(
    pairs: Pairs,
    index: Int64[Tensor, " batch"],
    config: TrainConfig,
    rng: torch.Generator,
    latents: CachedLatents | None,
    device: torch.device,
) -> Batch:
    """One batch: a common random crop of the pictures, mirrored at random where they are encoded anew."""
    x = pairs.pictures[index]
    grid = latents.cell if latents is not None else 1
    top, left = (
        int(torch.randint((side - config.crop) // grid + 1, (), generator=rng)) * grid for side in x.shape[-2:]
    )
    x = x[..., top : top + config.crop, left : left + config.crop].to(device).float() / 255
    if latents is not None:
        y_hat, corners = latents.window(index, top // grid, left // grid, config.crop // grid)
        return Batch(x, y_hat.to(device), index, rng, corners)
    return Batch(x.flip(-1) if torch.rand((), generator=rng) < 0.5 else x, None, index, rng)


class Crops:
    """Batches of random crops of photographs, for stage plain; each process takes its rows of every batch.

    Args:
        photos: Decoded when the first batch is asked for.
        config: The phase.
        accelerator: Knows the other processes.
    """

    latents = None  # every crop is encoded anew

    def __init__(self, photos: Photos, config: TrainConfig, accelerator: Accelerator) -> None:
        self.photos, self.config, self.accelerator = photos, config, accelerator
        self.ahead: Iterator[Tensor] | None = None

    def batch(self, step: int, rng: torch.Generator) -> Batch:
        """The step's crops; steps follow each other, so that worker processes can work ahead."""
        config = self.config
        if self.ahead is None:
            workers = min(max(1, (os.cpu_count() or 1) - 2), 14) if config.workers is None else config.workers
            steps = range(step, config.steps)
            self.ahead = self.photos.batches(config.batch_size, config.crop, config.seed, steps, workers)
        x = local_rows(next(self.ahead), self.accelerator)
        x = x.to(self.accelerator.device, non_blocking=True).float() / 255
        return Batch(x, None, torch.arange(len(x)), rng)


class InMemory:
    """Batches from pairs that every process holds whole; each takes its rows of every batch.

    Args:
        pairs: With features where the protected version is trained.
        config: The phase.
        model: Encodes the latents of stage two.
        accelerator: Knows the other processes.
    """

    def __init__(self, pairs: Pairs, config: TrainConfig, model: PSIC, accelerator: Accelerator) -> None:
        self.pairs, self.config, self.model, self.accelerator = pairs, config, model, accelerator

    @cached_property
    def latents(self) -> CachedLatents | None:
        """Stage two: what its decoder starts from, encoded once (by each process)."""
        if self.config.stage != "two":
            return None
        quiet = not self.accelerator.is_main_process
        return CachedLatents(self.model, self.pairs, self.accelerator.device, quiet=quiet)

    def batch(self, step: int, rng: torch.Generator) -> Batch:
        """This process's rows of the step's batch."""
        index = local_rows(indices(step, len(self.pairs), self.config), self.accelerator)
        return draw(self.pairs, index, self.config, rng, self.latents, self.accelerator.device)

    def pool(self, batch: Batch, target: Target) -> Pool:
        """The pairs of Eq. 5 to 8."""
        return self.pairs.pool(batch.index, self.config.pool, batch.rng)


class Streamed:
    """Batches from shards that are larger than memory; each process reads for itself.

    Nothing of it is cached: CC3M's 3 million pairs would be 590 GB of pictures and, in stage two, 295 GB of latents. So
    the target reads every batch's clean pictures and captions anew, and in stage two the encoder codes every batch. The
    pool of Eq. 5 to 8 is the batch. Arguments as of `InMemory`.
    """

    latents = None  # none are kept

    def __init__(self, shards: Shards, config: TrainConfig, model: PSIC, accelerator: Accelerator) -> None:
        self.shards, self.config, self.model, self.accelerator = shards, config, model, accelerator
        self.read: Iterator[Any] | None = None
        self.now: Pairs | None = None

    def batch(self, step: int, rng: torch.Generator) -> Batch:
        """The next batch, crops and mirroring as for pairs in memory; a run that is resumed draws other pictures."""
        if self.read is None:
            size = self.config.batch_size // self.accelerator.num_processes
            self.read = self.shards.batches(size, self.config.seed * 1_000_003 + step)
        self.now, latents, device = Pairs(*next(self.read)), None, self.accelerator.device
        if self.config.stage == "two":
            quarter = -(-len(self.now) // 4)  # padded on all four sides, as the cached ones are
            latents = CachedLatents(self.model, self.now, device, quarter, quiet=True)
        return draw(self.now, torch.arange(len(self.now)), self.config, rng, latents, device)

    def pool(self, batch: Batch, target: Target) -> Pool:
        """The batch's own pairs, read anew."""
        words = [caption for (caption,) in self.now.captions]
        return Pool(target.encode_images(self.now.pictures), target.encode_text(words), caption_ids(words))


def local_rows(whole: Shaped[Tensor, "batch ..."], accelerator: Accelerator) -> Shaped[Tensor, "rows ..."]:
    """This process's share of what the whole batch has."""
    return whole.chunk(accelerator.num_processes)[accelerator.process_index]
