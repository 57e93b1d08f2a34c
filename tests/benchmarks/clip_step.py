"""What a step of notebook 13 takes at the real shapes: python tests/benchmarks/clip_step.py data/results/clip-step.json

Random weights and random pictures: time and memory do not depend on them. One core, and its own time, so that what
else runs on the machine does not count; a process for each row, so that memory is its own.
"""

import json
import multiprocessing
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from psic_core.codec import PSIC
from psic_core.models.vlp import load_target
from psic_core.training.pairs import Pairs
from psic_core.training.recipes import phases
from psic_core.training.trainer import Trainer

ROWS = [(32, "float32"), (32, "bfloat16"), (64, "bfloat16"), (64, "float32")]  # the last one takes 13 GB


def measure(batch: int, precision: str) -> dict[str, str | int | float]:
    """The second step, which finds everything warm; the first is counted."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ((setup, start, _),) = phases("clip", 3, Path("runs"))
    target, model = load_target("ViT-B-32/random"), PSIC.build(start.codec, bytes(16))
    pictures = torch.randint(0, 256, (batch, 3, start.size, start.size), dtype=torch.uint8)
    features = normalize(torch.randn(batch, 512), dim=1)
    pairs = Pairs(pictures, [("",)] * batch, features, features[:, None], torch.arange(batch)[:, None])
    trainer = Trainer(model, pairs, replace(setup, batch_size=batch, precision=precision), target)
    trainer.latents  # noqa: B018 - computed once, when it is first asked for
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    with FlopCounterMode(display=False) as counted:
        trainer.train_step()
    began = time.process_time()
    trainer.train_step()
    seconds, peak = time.process_time() - began, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"batch {batch} {precision}: {seconds:.0f} s, {before / 1e9:.1f} GB before, {peak / 1e9:.1f} GB at most")
    return {
        "batch": batch, "precision": precision, "tflop": round(counted.get_total_flops() / 1e12, 3),
        "seconds": round(seconds, 1), "gigabytes": round((peak - before) / 1e9, 2),
    }  # fmt: skip


if __name__ == "__main__":
    path = Path(sys.argv[1])
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []  # rows that are there stay
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in ROWS[len(rows) :]:
            rows.append(pool.apply(measure, row))
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
