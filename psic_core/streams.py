"""Batches from shards that are larger than memory: what `InMemory` looks up is computed for each batch."""

import hashlib
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from psic_core.batches import Batch, CachedLatents, draw
from psic_core.codec import PSIC
from psic_core.config import TrainConfig
from psic_core.datasets.streaming import Loaded, Shards, Stream, as_tensor
from psic_core.pairs import Pairs, Pool
from psic_core.processes import Processes
from psic_core.targets import Target


class Streamed:
    """Batches from shards; each process reads its own.

    Nothing of it is cached: for 3 million pairs of 256 pixels that would be 590 GB of pictures, 12 GB of features
    (ViT-B/32) and, in stage two, 295 GB of latents (192 channels, 16 bits). So the target reads every batch's clean
    pictures and captions anew, and in stage two the encoder codes every batch. The pool of Eq. 5 to 8 is the batch of
    all processes and, beyond it, the pairs of the latest batches, whose features are at hand and, the target being
    frozen, exact.

    Args:
        shards: Where from.
        config: The phase.
        model: Encodes the latents of stage two.
        target: Reads clean pictures and captions; not needed where only rate and distortion are trained.
        processes: Their batches together are the batch.
    """

    latents = None  # none are kept

    def __init__(
        self, shards: Shards, config: TrainConfig, model: PSIC, target: Target | None, processes: Processes
    ) -> None:
        self.shards, self.config, self.model, self.target, self.processes = shards, config, model, target, processes
        self.stream = Stream(shards, processes.rank, processes.count, config.seed)
        self.taken, self.loaded = 0, None  # batches; iterator over the loader
        self.places = list(self.stream.places)
        self.now: Pairs | None = None
        self.earlier: Pool | None = None

    def __len__(self) -> int:
        return len(self.shards)

    def batch(self, step: int, rng: torch.Generator) -> Batch:
        """This process's rows of the next batch, crops and mirroring as for pairs in memory."""
        loaded = self._next()
        self.now = Pairs(loaded.pictures, loaded.captions)
        latents, device = None, self.processes.accelerator.device
        if self.config.stage == "two":
            quarter = -(-len(self.now) // 4)  # padded on all four sides, as the cached ones are
            latents = CachedLatents(self.model, self.now, device, quarter, quiet=True)
        return draw(self.now, torch.arange(len(self.now)), self.config, rng, latents, device)

    def clean(self, batch: Batch) -> Float[Tensor, "own d"]:
        """What the target makes of the batch's own pictures, whole."""
        if self.now.image_features is None:
            self.now.image_features = self.target.encode_images(self.now.pictures)
        return self.now.image_features

    def pool(self, batch: Batch) -> Pool:
        """The batch of all processes, then the latest pairs before it."""
        captions = [caption for (caption,) in self.now.captions]
        own = Pool(self.clean(batch), self.target.encode_text(captions), _numbers(captions).to(batch.x.device))
        pool = Pool(*map(self.processes.gather, own))
        if self.earlier is not None:
            pool = Pool(*(torch.cat(both) for both in zip(pool, self.earlier, strict=True)))
        kept = max(0, self.config.pool - len(own.ids) * self.processes.count)
        self.earlier = Pool(*(part[:kept] for part in pool)) if kept else None
        return pool

    def state(self) -> dict[str, Any]:
        """Where every process's readers stand, and the pool's earlier pairs."""
        device = self.processes.accelerator.device
        places = self.processes.gather(as_tensor(self.places).to(device)).cpu()
        earlier = None if self.earlier is None else {k: v.cpu() for k, v in self.earlier._asdict().items()}
        return {"taken": self.taken, "places": places, "earlier": earlier}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where a run stood: each reader passes over what it has given in the epoch it was in.

        Raises:
            ValueError: The run was shared by another number of readers, or held its pictures in memory.
        """
        if not state:
            raise ValueError("the run to resume held its pictures in memory; resume it with --stream no")
        readers = self.stream.readers * self.processes.count
        if len(state["places"]) != readers:
            raise ValueError(
                f"the run to resume had {len(state['places'])} readers, this one has {readers}: start as many "
                "processes and workers as before"
            )
        places = self.processes.own(state["places"]).tolist()
        self.taken, self.places = state["taken"], [(epoch, done) for epoch, done in places]
        self.loaded = None
        if state["earlier"] is not None:
            device = self.processes.accelerator.device
            self.earlier = Pool(**{k: v.to(device) for k, v in state["earlier"].items()})

    def _next(self) -> Loaded:
        if self.loaded is None:
            self.stream.places, self.stream.first = self.places, self.taken % self.stream.readers
            self.loaded = iter(self.stream.loader(self.config.batch_size // self.processes.count))
        loaded = next(self.loaded)
        self.taken += 1
        self.places = [loaded.place if r == loaded.reader else p for r, p in enumerate(self.places)]
        return loaded


def _numbers(captions: list[str]) -> Int64[Tensor, " n"]:
    """`evidence.caption_ids` for captions that no process sees together: equal numbers for equal captions."""
    digests = (hashlib.sha256(c.strip().casefold().encode()).digest()[:8] for c in captions)
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)
