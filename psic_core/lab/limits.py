"""The threat model, level by level: every attack on one bench, beside its null, as ``psic limits`` runs it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.config import seed_everything
from psic_core.datasets.eval_sets import EvalSet, eval_set
from psic_core.datasets.scenes import Scenes
from psic_core.lab import key_search
from psic_core.lab.bench import TASKS, Bench, Pictures
from psic_core.lab.passes import Texts
from psic_core.lab.processing import DENOISERS, PLATFORMS, Processing, recoded
from psic_core.lab.rivals import finetune_reader, stripped, train_purifier
from psic_core.lab.tasks import task_results
from psic_core.lab.versions import jpeg_at
from psic_core.metrics import count_flips, flip_rate, psnr
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import Target, load_target
from psic_core.training.checkpoints import load_checkpoint, provenance

LEVELS = {
    "none": "nobody attacks",
    "unseen": "a scraper with another model",
    "platforms": "a platform, a screen, a habit",
    "denoisers": "someone who wants the shield gone and has tools against noise",
    "rival": "someone who knows the method and has the codec",
    "stream": "someone with file and decoder, without a key",
}
PLAIN = "plain"  # the version that nulls are measured on, as `tasks` calls the plain codec's
UNSEEN = "lite2-clip"  # a reader that no shield was trained against
OWN = 300  # pictures that a rival protects himself, of the training scenes
PURIFYING = 500  # steps of a purifier's training


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
        read = reader.encode_images(self.bench.decoded).cpu()
        self.add("unseen", f"read by {reader.name}", self.shown | {PLAIN: self._jpeg()}, reader, read)

    def process(self, level: str, processings: Mapping[str, Processing]) -> None:
        """Each processing, of every version."""
        for name, processing in tqdm(processings.items(), level, leave=False, disable=None):
            changed = {v: torch.cat([processing(x) for x in p.split(1)]) for v, p in self.shown.items()}
            self.add(level, name, changed)

    @torch.no_grad()
    def add(
        self, level: str, attack: str, changed: Mapping[str, Pictures], reader: Target | None = None,
        before: Tensor | None = None, **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Measure one attack and keep its row.

        Args:
            level: Of the threat model.
            attack: What tables call it.
            changed: By version, `PLAIN` among them: what the reader gets, at 8 bits, of any one size.
            reader: Who reads after the attack; the bench's own target where ``None``.
            before: What the reader makes of the plain codec's pictures, where it is its own reference.
            more: Further fields of the row.

        Returns:
            The row, JSON-ready: ``asr[model][task]`` and ``null[task]`` as `metrics.Estimate`, ``mean`` among the
            tasks; ``psnr[version]`` in dB to the originals, where the size is still theirs.
        """
        bench, texts = self.bench, Texts(reader) if reader else self.bench.texts
        first = task_results({PLAIN: bench.read if before is None else before}, bench.data,
                             bench.texts if before is None else texts)  # fmt: skip
        seen = {v: (reader or bench.target).encode_images(pictures).cpu() for v, pictures in changed.items()}
        correct = task_results(seen, bench.data, texts)
        rates = {}
        for version in changed:
            flips = {
                task: count_flips(first[task][0][PLAIN], correct[task][0][version], groups=correct[task][1])
                for task in TASKS
                if task in correct
            }
            rates[version] = {task: flip_rate([f])._asdict() for task, f in flips.items()}
            rates[version]["mean"] = flip_rate(list(flips.values()))._asdict()
        row = {"level": level, "attack": attack, "asr": {v: r for v, r in rates.items() if v != PLAIN}}
        row |= {"null": rates[PLAIN], "psnr": self._psnr(changed), **more}
        self.rows.append(row)
        return row

    def _psnr(self, changed: Mapping[str, Pictures]) -> dict[str, float]:
        x = self.bench.x
        return {v: sum(map(psnr, p, x)) / len(x) for v, p in changed.items() if p.shape == x.shape}

    def _jpeg(self) -> Pictures:
        first = self.shown[next(iter(self.models))]
        pairs = zip(self.bench.x.split(1), first.split(1), strict=True)
        return torch.cat([jpeg_at(x, psnr(protected, x)) for x, protected in pairs])


def run_limits(
    names: Sequence[str],
    limit: int,
    target: str = "lite-clip",
    levels: Sequence[str] = tuple(LEVELS),
    side: int = 160,
) -> dict[str, Any]:
    """Attack several models on the same held-out scenes.

    Args:
        names: Checkpoints of anchored PSIC, over one encoder; the first without its triggers is the plain codec.
        limit: Held-out scenes.
        target: The reader that the shields were made for.
        levels: Some of `LEVELS`.
        side: Of the pictures in pixels.

    Returns:
        ``rows`` as `Robustness.add` makes them, and what they were measured on; JSON-ready.

    Raises:
        ValueError: No model, or an unknown level.
    """
    if not names:
        raise ValueError("no model to attack: name at least one checkpoint")
    if wrong := [level for level in levels if level not in LEVELS]:
        raise ValueError(f"levels {', '.join(wrong)}: choose from {', '.join(LEVELS)}")
    seed_everything(0)
    models = {_label(name): load_checkpoint(name) for name in names}
    if len(models) < len(names):
        raise ValueError(f"{', '.join(names)}: two models of one name; rename a file or its folder")
    data = eval_set("scenes", limit=limit, side=side)
    suite = Robustness(models, load_checkpoint(names[0], plain=True), data, load_target(target))
    for level in tqdm(levels, "levels", disable=None):
        RUNS[level](suite)
    about = {"models": list(models), "target": target, "dataset": data.name, "n": data.size, "side": side}
    return about | {"rows": suite.rows, "provenance": provenance()}


def _label(name: str) -> str:
    """A checkpoint's name; that of its folder where it is a run's ``model.safetensors``."""
    path = Path(name)
    return path.parent.name if path.name == "model.safetensors" else path.stem


def _rival(suite: Robustness) -> None:
    """He protects photos of his own with each model: pairs for a purifier, protected pictures for a reader.

    All are of the bench's size, 160 px where nothing else is asked for: the shield of a larger photo is made there and
    enlarged, so that this is the purifier to fear, whatever the photo's size.
    """
    target = suite.bench.target
    scenes = Scenes("train", OWN, suite.bench.x.shape[-1])
    x = torch.stack([scenes[i].image for i in range(OWN)])
    captions = [scenes.captions(i) for i in range(OWN)]
    y_hat = suite.bench.latents(suite.bench.plain, x)
    full = suite.bench.decode(suite.bench.plain, y_hat)
    first = next(iter(suite.models.values()))
    changed = {v: stripped(suite.models.get(v, first), shown) for v, shown in suite.shown.items()}
    suite.add("rival", "coded again, triggers left out", changed)
    for name, model in suite.models.items():
        protected = suite.bench.decode(model, y_hat)
        purifier = train_purifier(protected, full, PURIFYING)
        cleaned = {
            v: torch.cat([round_to_8_bits(purifier(p)) for p in shown.split(20)]) for v, shown in suite.shown.items()
        }
        suite.add("rival", f"purifier, made with {name}", cleaned)
        adapted = finetune_reader(target, protected, captions)
        suite.add("rival", f"model's heads trained on {name}", suite.shown, reader=adapted)


def _stream(suite: Robustness) -> None:
    bench, models = suite.bench, suite.models
    wrong = key_search.random_conditions(1, next(iter(models.values())).config.dim, seed=7)[0]
    solved = {v: key_search.solve(m).condition for v, m in models.items()}
    for attack, chosen in (
        ("a wrong keyword", dict.fromkeys(models, wrong)),
        ("the triggers' equations, solved", solved),
    ):
        cosines = {v: float(c @ models[v].full_condition() / c.norm()) for v, c in chosen.items()}
        changed = {v: bench.decode(models[v], bench.y_hat, condition=c) for v, c in chosen.items()}
        suite.add("stream", attack, changed | {PLAIN: bench.decoded}, cosine=cosines)
    cut = dict.fromkeys(models, bench.decode(bench.plain, bench.y_hat))
    suite.add("stream", "every trigger left out of the program", cut | {PLAIN: bench.decoded})


RUNS: Mapping[str, Callable[[Robustness], None]] = {
    "none": Robustness.nothing,
    "unseen": lambda s: s.unseen(load_target(UNSEEN)),
    "platforms": lambda s: s.process("platforms", {**PLATFORMS, "coded again, plain": recoded(s.bench.plain)}),
    "denoisers": lambda s: s.process("denoisers", DENOISERS),
    "rival": _rival,
    "stream": _stream,
}
