"""What attacks leave of a shield: several models side by side, each attack with its null."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.bench import TASKS, Bench, Pictures
from psic_core.lab.passes import Texts
from psic_core.lab.processing import Processing
from psic_core.lab.tasks import task_results
from psic_core.lab.versions import jpeg_at
from psic_core.metrics import Flips, count_flips, flip_rate, psnr
from psic_core.models.vlp import Target

PLAIN = "plain"  # the version that nulls are measured on, as `tasks` calls the plain codec's


class Robustness:
    """A bench with the protected pictures of several models, and the rows of what was done to them.

    The rate of an attack counts, of what the reader gets right on the plain codec's untouched picture, what it gets
    wrong after the attack: on the protected picture (``asr``), and on the plain codec's (``null``), which the same
    attack spoils as well. An attack wins where ``asr`` comes down to ``null``.

    Args:
        models: PSIC by name, over the plain codec's encoder: their files are the same.
        plain: The plain codec.
        data: Pictures of one size.
        target: The reader that the shields were made for.

    Raises:
        ValueError: A model has another encoder than the plain codec.
    """

    def __init__(self, models: Mapping[str, PSIC], plain: PSIC, data: EvalSet, target: Target) -> None:
        for name, model in models.items():
            if model.fingerprint() != plain.fingerprint():
                raise ValueError(f"{name} has another encoder than the plain codec; name the pair of one rate")
        self.models, self.bench = dict(models), Bench(plain, data, target)
        self.shown = {PLAIN: self.bench.decoded}
        self.shown |= {name: self.bench.decode(m, self.bench.y_hat) for name, m in models.items()}
        self.rows: list[dict[str, Any]] = []

    def nothing(self) -> None:
        """No attack: what the shields do to the reader that they were made for."""
        self.add("none", "as published", self.shown | {PLAIN: self._jpeg()})

    def unseen(self, reader: Target) -> None:
        """A reader that nothing was trained against; the null is JPEG at the first model's PSNR."""
        self.add("unseen", f"read by {reader.name}", self.shown | {PLAIN: self._jpeg()}, self.bench.aimed_at(reader))

    def process(self, level: str, processings: Mapping[str, Processing]) -> None:
        """Each processing, of every version."""
        for name, processing in tqdm(processings.items(), level, leave=False, disable=None):
            started = time.process_time()
            changed = {v: _each(processing, pictures) for v, pictures in self.shown.items()}
            spent = (time.process_time() - started) / len(changed) / self.bench.data.size
            self.add(level, name, changed, seconds=spent)

    @torch.no_grad()
    def add(
        self, level: str, attack: str, changed: Mapping[str, Pictures], bench: Bench | None = None,
        reader: Target | None = None, seconds: float = 0.0, **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Measure one attack and keep its row.

        Args:
            level: Of the threat model.
            attack: What tables call it.
            changed: By version, `PLAIN` among them: what the reader gets, at 8 bits, of any one size.
            bench: Whose readings are the reference; the target's where ``None``.
            reader: Who reads after the attack; the bench's own target where ``None``.
            seconds: Processor time that it costs for each picture.
            more: Further fields of the row.

        Returns:
            The row, JSON-ready: ``asr[model][task]`` and ``null[task]`` as `metrics.Estimate`, ``mean`` among the
            tasks; ``psnr[version]`` in dB to the originals, where the size is still theirs.
        """
        bench = bench or self.bench
        target, texts = (reader, Texts(reader)) if reader else (bench.target, bench.texts)
        before = task_results({PLAIN: bench.read}, bench.data, bench.texts)
        seen = {v: target.encode_images(pictures).cpu() for v, pictures in changed.items()}
        correct = task_results(seen, bench.data, texts)
        rates = {}
        for version in changed:
            flips = {
                task: count_flips(before[task][0][PLAIN], correct[task][0][version], groups=correct[task][1])
                for task in TASKS
                if task in correct
            }
            rates[version] = {task: flip_rate([f])._asdict() for task, f in flips.items()} | {"mean": _mean(flips)}
        row = {"level": level, "attack": attack, "asr": {v: r for v, r in rates.items() if v != PLAIN}}
        row |= {"null": rates[PLAIN], "psnr": self._psnr(changed), "seconds": seconds, **more}
        self.rows.append(row)
        return row

    def _psnr(self, changed: Mapping[str, Pictures]) -> dict[str, float]:
        x = self.bench.x
        return {v: sum(map(psnr, p, x)) / len(x) for v, p in changed.items() if p.shape == x.shape}

    def _jpeg(self) -> Pictures:
        first = self.shown[next(iter(self.models))]
        pairs = zip(self.bench.x.split(1), first.split(1), strict=True)
        return torch.cat([jpeg_at(x, psnr(protected, x)) for x, protected in pairs])


def _mean(flips: Mapping[str, Flips]) -> dict[str, Any]:
    return flip_rate(list(flips.values()))._asdict()


def _each(change: Processing, pictures: Pictures) -> Float[Tensor, "n 3 new_height new_width"]:
    return torch.cat([change(x) for x in pictures.split(1)])
