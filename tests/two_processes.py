"""What `test_processes` starts in each process: one small training of every kind, and what is left of it."""

import io
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from models import awaken
from PIL import Image
from torch.nn import functional

from psic_core.batches import Batch
from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.datasets.streaming import Shards
from psic_core.pairs import Pairs
from psic_core.recipes import Phase, run_phase
from psic_core.targets import load_target
from psic_core.trainer import Trainer

TINY = CodecConfig(n=8, m=12, dim=16, hidden=8)
ROUGH = dict(learning_rate=1e-3, batch_size=4, crop=64, pool=6, warmup=2, save_every=2)
RUNS = {
    "plain": TrainConfig("plain", 4, **ROUGH),
    "one": TrainConfig("one", 4, **ROUGH, direction="both", moves="codec", fidelity=5.0, center=True),
    "one-mixed": TrainConfig("one", 3, **ROUGH, schedule="mixed", moves="codec", masking=1.0),
    "two": TrainConfig("two", 4, **ROUGH, direction="both", questions=2.0),
    "two-naive": TrainConfig("two", 2, **ROUGH, objective="naive", moves="codec"),
    "two-authors": TrainConfig("two", 2, **ROUGH, objective="authors"),
    "two-random": TrainConfig("two", 2, **ROUGH, objective="random_target"),
    "two-hardened": TrainConfig("two", 3, **ROUGH, eot=0.8, recode=True, negatives=0.5, searched=1),
    "two-purified": TrainConfig("two", 3, **ROUGH, purifier=0.5),
    "one-context": TrainConfig("one", 2, **ROUGH, moves="codec"),
}
STREAMED = {
    "stream-one": TrainConfig("one", 4, **ROUGH | {"save_every": 2}, moves="codec", direction="both"),
    "stream-two": TrainConfig("two", 2, **ROUGH),
}


def model_for(name: str) -> PSIC:
    torch.manual_seed(0)
    model = PSIC.build(replace(TINY, architecture="mbt2018") if "context" in name else TINY)
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
    return awaken(model)


def pairs() -> Pairs:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(12, 3, 6, 6, generator=rng)
    pictures = (functional.interpolate(coarse, size=(96, 96), mode="bilinear") * 255).to(torch.uint8)
    return Pairs(pictures, [(f"picture {max(i, 1)}", f"this is {max(i, 1)} again") for i in range(12)])


def write_shards(folder: Path, n: int = 12, shards: int = 2, side: int = 96) -> None:
    """Shards as img2dataset writes them, of noise; captions ``pair 0`` and on."""
    rng = np.random.default_rng(0)
    for k in range(shards):
        with tarfile.open(folder / f"{k:05}.tar", "w") as tar:
            for i in range(k, n, shards):
                picture = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(picture, "JPEG")
                for suffix, content in (("jpg", picture.getvalue()), ("txt", f"pair {i}".encode())):
                    info = tarfile.TarInfo(f"{i:09}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def watch(run: Trainer, seen: list) -> None:
    """Note what each batch holds: numbers of pairs in memory, captions of streamed ones."""
    draw = run.source.batch

    def noted(*arguments: object) -> Batch:
        batch = draw(*arguments)
        now = getattr(run.source, "now", None)
        seen.append([c for (c,) in now.captions] if now else batch.index)
        return batch

    run.source.batch = noted


def train_all(out: Path) -> None:
    """Every run, two of them broken off and resumed; each rank leaves weights, logs and what it saw.

    Args:
        out: Holds the shards.
    """
    target = load_target("tiny")
    shown = pairs().with_features(target)
    for name, config in {**RUNS, **STREAMED}.items():
        model, kept = model_for(name), out / name if name in ("one", "stream-one") else None
        source = Shards(str(out), 96, workers=0, buffer=3) if name in STREAMED else shown
        run = Trainer(model, source, config, target, kept)
        rank, seen = run.processes.rank, []
        watch(run, seen)
        rows = run.fit(3 if kept else None)
        if kept:
            model = model_for(name)
            if rank:  # the others' start and state are the first's
                model.g_s.triggers[0].cltg.w_d.weight.data.add_(1)
            run = Trainer(model, source, config, target, kept)
            watch(run, seen)
            rows += run.fit()
        learned = {n: p.detach().clone() for n, p in model.named_parameters()}
        torch.save({"weights": learned, "rows": rows, "seen": seen}, out / f"{name}-{rank}.pt")
    phase = Phase(("scenes",), target="tiny", scenes=24, size=64, codec=TINY, kind="psic")
    for _ in range(2):  # the second finds the run finished
        run_phase(replace(RUNS["one"], steps=2), phase, out / "phase")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]))
