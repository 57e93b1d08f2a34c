"""The threat model, level by level: every attack on one bench, as ``psic limits`` runs it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.config import seed_everything
from psic_core.datasets.eval_sets import EvalSet, eval_set
from psic_core.datasets.scenes import Scenes
from psic_core.lab import key_search
from psic_core.lab.bench import Bench
from psic_core.lab.processing import DENOISERS, PLATFORMS, recoded
from psic_core.lab.rivals import finetune_reader, stripped, train_purifier
from psic_core.lab.robustness import PLAIN, Pictures, Robustness
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import load_target
from psic_core.training.checkpoints import load_checkpoint, provenance

LEVELS = {
    "none": "nobody attacks",
    "unseen": "a scraper with another model",
    "platforms": "a platform, a screen, a habit",
    "denoisers": "someone who wants the shield gone and has tools against noise",
    "rival": "someone who knows the method and has the codec",
    "stream": "someone with file and decoder, without a key",
}
SUMMARY = (
    "as published", "read by lite2-clip", "JPEG 75", "half size and back", "screenshot", "crop to 75 %", "blur 1.5 px",
    "coded again, plain", "median 3 × 3", "total variation", "non-local means", "coded again, triggers left out",
    "purifier, made with psic-q2", "model's heads trained on psic-q2",
    "a wrong key", "the triggers' equations, solved",
)  # fmt: skip
UNSEEN = ("lite1-clip", "lite2-clip")
OWN = 300  # pictures that a rival protects himself, of the training scenes
PURIFYING = 500  # steps of a purifier's training


def run_limits(
    names: Sequence[str],
    limit: int,
    target: str = "lite-clip",
    levels: Sequence[str] = tuple(LEVELS),
) -> dict[str, Any]:
    """Attack several models on the same held-out scenes.

    Args:
        names: Checkpoints of anchored PSIC, over one encoder; the first without its triggers is the plain codec.
        limit: Held-out scenes.
        target: The reader that the shields were made for.
        levels: Some of `LEVELS`.

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
    data: EvalSet = eval_set("scenes", limit=limit)
    suite = Robustness(models, load_checkpoint(names[0], plain=True), data, load_target(target))
    runs: dict[str, Callable[[Robustness], None]] = {
        "none": Robustness.nothing,
        "unseen": lambda s: [s.unseen(load_target(name)) for name in UNSEEN],
        "platforms": _platforms,
        "denoisers": lambda s: s.process("denoisers", DENOISERS),
        "rival": _rival,
        "stream": _stream,
    }
    for level in tqdm(levels, "levels", disable=None):
        runs[level](suite)
    about = {
        "models": list(models),
        "target": target,
        "dataset": data.name,
        "n": data.size,
    }
    return about | {"rows": suite.rows, "provenance": provenance()}


def _label(name: str) -> str:
    """A checkpoint's name; that of its folder where it is a run's ``model.safetensors``."""
    path = Path(name)
    return path.parent.name if path.name == "model.safetensors" else path.stem


def _platforms(suite: Robustness) -> None:
    plain = suite.bench.plain
    suite.process("platforms", {**PLATFORMS, "coded again, plain": recoded(plain)})
    again = {v: recoded(suite.models.get(v, plain)) for v in suite.shown}
    changed = {v: torch.cat([again[v](x) for x in pictures.split(1)]) for v, pictures in suite.shown.items()}
    suite.add("platforms", "coded again, protected again", changed)


def _rival(suite: Robustness) -> None:
    """He protects photos of his own with each model: pairs for a purifier, protected pictures for a reader."""
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
    bench, models, dim = suite.bench, suite.models, next(iter(suite.models.values())).config.dim
    wrong = key_search.random_conditions(2, dim, seed=7)

    def under(attack: str, chosen: Mapping[str, Float[Tensor, " dim"]]) -> None:
        cosines = {v: float(c @ models[v].full_condition() / c.norm().clamp_min(1e-12)) for v, c in chosen.items()}
        changed = {v: bench.decode(models[v], bench.y_hat, condition=c) for v, c in chosen.items()}
        suite.add("stream", attack, changed | {PLAIN: bench.decoded}, cosine=cosines)

    for attack, c in (
        ("a wrong key", wrong[0]),
        ("half way between two wrong keys", key_search.between(wrong[0], wrong[1], 0.5)),
        ("beyond a wrong key, on the way from another", key_search.between(wrong[0], wrong[1], 1.5)),
        ("a wrong key, three times as long", 3 * wrong[0]),
    ):
        under(attack, dict.fromkeys(models, c))
    under("the triggers' equations, solved", {v: key_search.solve(m).condition for v, m in models.items()})
    count = len(next(iter(models.values())).g_s.triggers)
    for cut in (*((i,) for i in range(count)), tuple(range(count))):
        changed = {v: _cut(bench, m, cut) for v, m in models.items()}
        what = "every trigger" if len(cut) == count else f"trigger {cut[0]}"
        suite.add("stream", f"{what} left out of the program", changed | {PLAIN: bench.decoded})


def _cut(bench: Bench, model: PSIC, stages: Sequence[int]) -> Pictures:
    height, width = bench.x.shape[-2:]
    shown = (key_search.without_triggers(model, y, stages)[..., :height, :width] for y in bench.y_hat.split(20))
    return torch.cat([round_to_8_bits(x) for x in shown])
