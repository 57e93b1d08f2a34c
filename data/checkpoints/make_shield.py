"""Trains the triggers of the four shipped codecs together, on one GPU, in a given time.

``python data/checkpoints/make_shield.py OUT --data-root DIR --minutes 9`` goes on from psic-q1..4 and writes
``OUT/psic-q1..4.safetensors``. ``psic recipe shield`` does the same for one rate in the trainer's own loop, with states
to resume from. Here pictures and features lie in the GPU's memory, each step is of one codec, drawn anew, and the
readers take turns: 85 ms of an H200 for 128 pictures.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from psic_core.codec import PSIC
from psic_core.config import RATES, TrainConfig, seed_everything
from psic_core.evidence import target_captions
from psic_core.models.delta import energy, within_budget
from psic_core.models.vlp import Ensemble, load_target
from psic_core.objectives import grid_mse, uaeo_loss, wrong_conditions
from psic_core.training.checkpoints import load_checkpoint, provenance, save_checkpoint
from psic_core.training.pairs import Pairs
from psic_core.training.phase import SHIELD, load_pairs
from psic_core.training.platforms import random_platform_transform

#: How it learns; its steps are shares of the time, as nobody knows before how many steps there will be.
CONFIG = TrainConfig("two", 10_000, 128, 160, 1e-3, 1e-5, warmup=100, lmbda=RATES[3], first_budget=16.0, grid=1.0,
                     eot=0.5, pool=128, **SHIELD)  # fmt: skip
BUDGET = 10.0  # from four fifths of the time on
SHARP = 0.75  # of the steps see pictures as small copies of large photos, the others as this codec's own


def in_float32(stage: nn.Module) -> None:
    """Let the last stage compute in float32: a change of a grey level is below bfloat16's steps."""
    forward: Callable[[Tensor], Tensor] = stage.forward

    def exact(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    stage.forward = exact


class Run:
    """Four codecs with the triggers of the first, and what they learn from."""

    def __init__(self, models: Sequence[PSIC], pairs: Pairs, target: Ensemble, device: torch.device) -> None:
        self.models, self.target, self.device = models, target.to(device), device
        for model in models:
            model.to(device, memory_format=torch.channels_last).requires_grad_(False)
            model.g_s.triggers = models[0].g_s.triggers.requires_grad_(True)
            in_float32(model.g_s.stages[-1])
        self.pictures, self.ids = pairs.pictures.to(device), pairs.caption_ids.to(device)
        self.image, self.text = pairs.image_features.to(device), pairs.text_features.to(device)
        self.key = models[0].full_condition()
        self.parameters = list(models[0].g_s.triggers.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, fused=device.type == "cuda")
        self.rng = torch.Generator().manual_seed(0)
        self.order = torch.empty(0, dtype=torch.int64)

    def index(self) -> Tensor:
        """The next batch of a random order of all pictures."""
        if len(self.order) < CONFIG.batch_size:
            self.order = torch.randperm(len(self.pictures), generator=self.rng)
        chosen, self.order = self.order[: CONFIG.batch_size], self.order[CONFIG.batch_size :]
        return chosen.to(self.device, non_blocking=True)

    def change(self, model: PSIC, x: Tensor, sharp: bool) -> tuple[Tensor, Tensor]:
        """What is changed and the change, as `psic_core.training.trainer.Trainer.loss_within_budget` has them."""
        beta = wrong_conditions(len(x), model.config.dim, self.rng).to(x.device)
        side, top, left = x.shape[-1], 0, 0
        with torch.autocast(x.device.type, torch.bfloat16):
            with torch.no_grad():
                if not sharp:  # a true edge of the picture on any side
                    down = -side % model.factor
                    top, left = (down * int(k) for k in torch.randint(2, (2,), generator=self.rng))
                    x = functional.pad(x, (left, down - left, top, down - top), mode="replicate")
                y = model.analysed(x).float()
                y = y if sharp else y.round()
                plain = model.g_s.plain(y).float()
            delta = model.g_s(y, beta, self.key).float() - plain
        x = x if sharp else plain.clamp(0, 1)
        return tuple(v[..., top : top + side, left : left + side] for v in (x, delta))

    def step(self, t: float, number: int) -> dict[str, Tensor]:
        """One step at the share ``t`` of the time."""
        index = self.index()
        draw = torch.rand(2, generator=self.rng).tolist()
        x = self.pictures[index].float() / 255
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
        x, delta = self.change(self.models[int(draw[0] * len(self.models))], x, draw[1] < SHARP)
        now = int(t * CONFIG.steps)
        budget = CONFIG.budget_at(now, BUDGET)
        excess = (energy(delta, x) / budget).clamp_min(1).log().mean()
        delta = within_budget(delta, x, budget)
        parts = (x + delta).split(len(x) // 4)  # half of the pictures go through one of two platforms
        shown = torch.cat([random_platform_transform(p, float(k < 2), self.rng) for k, p in enumerate(parts)])
        reader, part = self.target.turn(number)
        choice = torch.randint(self.text.shape[1], (len(x),), device=x.device)
        image, text, ids = part(self.image[index]), part(self.text[index, choice]), self.ids[index, choice]
        target = target_captions(image, text, ids[:, None] == ids)
        attack = uaeo_loss(reader.encode_image(shown), text, target, direction=CONFIG.direction)
        grid = 255**2 * grid_mse(delta, x) / budget
        loss = attack + CONFIG.grid * min(1.0, 4 * t) * grid + excess / 2
        for group in self.optimiser.param_groups:
            group["lr"] = CONFIG.rate_at(now)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CONFIG.clip_grad, foreach=True)
        self.optimiser.step()
        mse = delta.detach().square().mean()
        return {"attack": attack.detach(), "grid": grid.detach(), "excess": excess.detach(), "mse": 255**2 * mse}

    def train(self, seconds: float) -> int:
        """Steps for a time, the key's triggers zero after them. Returns how many there were."""
        began, steps = time.time(), 0
        while (t := (time.time() - began) / seconds) < 1:
            row = self.step(t, steps)
            steps += 1
            if steps % 10 == 0 and self.device.type == "cuda":  # else the host runs ahead, and the clock with it
                torch.cuda.synchronize()
            if steps % 200 == 0 or steps < 4:
                print(f"{time.time() - began:.0f} s, step {steps}:", *(f"{k} {float(v):.3f}" for k, v in row.items()),
                      flush=True)  # fmt: skip
        self.models[0].anchor()
        return steps


def about(steps: int, seconds: float, pictures: int) -> dict[str, Any]:
    """What a card's history says of the run."""
    config = replace(CONFIG, steps=steps, warmup=steps // 100)
    made = {"config": asdict(config), "kind": "psic", "init": "psic-q3", "pictures": pictures, "size": CONFIG.crop}
    made |= {"datasets": ["flickr8k", "scenes", "photos"], "scenes": 1280, "target": "lite-clip+lite1-clip"}
    return made | {"budget": BUDGET, "seconds": seconds, **provenance()}


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--minutes", type=float, default=9)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("make_shield.py: no GPU that CUDA knows; `psic recipe shield` trains on a CPU too", file=sys.stderr)
        return 1
    seed_everything(0)
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    target = load_target("lite-clip+lite1-clip")
    pairs = load_pairs(["flickr8k", "scenes", "photos"], args.data_root, 1280).with_features(target, args.out)
    models = [load_checkpoint(f"psic-q{quality}") for quality in (1, 2, 3, 4)]
    steps = Run(models, pairs, target, torch.device("cuda")).train(60 * args.minutes)
    print(f"{steps} steps")
    phase = about(steps, 60 * args.minutes, len(pairs))
    for quality, model in enumerate(models, 1):
        path = args.out / f"psic-q{quality}.safetensors"
        card = model.card | {"history": [*model.card["history"], phase]}
        save_checkpoint(model.cpu(), path, card, half=True, publish_secret=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
