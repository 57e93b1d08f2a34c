"""Named recipes: the phases that make a ``psic-qN``. What ``psic recipe`` runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from psic_core.config import RATES, CodecConfig, Phase, TrainConfig
from psic_core.training.phase import SHIELD, publish, run_phase
from psic_core.training.schedule import started


@dataclass(frozen=True)
class Recipe:
    """Phases, one after the other; each starts from the model that the one before left."""

    about: str
    phases: Mapping[str, TrainConfig]  # by name; the rate sets lmbda
    first: Phase = field(default_factory=Phase)  # what the first phase starts from; all phases see its pictures
    shared: tuple[str, ...] = ()  # phases that all rates have in common: they run once, at the third rate
    budget: float | None = None  # of what it publishes, where that is less than what the triggers learned with


_OURS = ("flickr8k", "scenes")
_WIDE = CodecConfig(n=128, m=192)  # CompressAI's own width at these rates


_TWO = {"eot": 0.5, "pool": 128, "log_every": 20, "grid": 1.0, **SHIELD}
_LONG = {"crop": 256, "learning_rate": 5e-4, "warmup": 200, "save_every": 1000, "log_every": 50}
# fmt: off
RECIPES = {
    "codec": Recipe(
        "codec-qN: CompressAI's hyperprior at its own width, from random weights, on photographs; "
        "data/checkpoints/make_codec.py is faster, on a GPU",
        {
            "trunk": TrainConfig(steps=6_000, batch_size=32, final_learning_rate=5e-4, **_LONG),
            "more": TrainConfig(steps=4_000, batch_size=64, final_learning_rate=5e-4, **_LONG),
            "decay": TrainConfig(steps=1_900, batch_size=64, final_learning_rate=5e-6, **_LONG),
        },
        Phase(("photos",), codec=_WIDE), shared=("trunk", "more"),
    ),
    "shield": Recipe(
        "psic-qN: triggers for its codec, against two readers, through platforms; all rates get the third's",
        {
            "two": TrainConfig("two", 3_700, 8, 160, learning_rate=1e-3, **_TWO),
            "more": TrainConfig("two", 3_290, 8, 160, learning_rate=7e-4, **_TWO),
        },
        Phase((*_OURS, "photos"), init="plain:psic-q{quality}", target="lite-clip+lite1-clip", scenes=1280,
              codec=replace(_WIDE, ladder=24, budget=16.0)),
        shared=("two", "more"), budget=10.0,
    ),
    "clip": Recipe(
        "notebook 13 as one command: CompressAI's pretrained hyperprior against the paper's CLIP ViT-B/32, at 224 px; "
        "for a GPU, after python data/get.py clip flickr8k",
        {
            "two": TrainConfig("two", 3_000, 32, 224, learning_rate=1e-3, first_budget=14, **_TWO),
        },
        Phase(("flickr8k",), init="zoo:bmshj2018-hyperprior/{quality}", target="ViT-B-32/openai", size=224,
              codec=replace(_WIDE, ladder=24, budget=4.5, reading_side=224)),
    ),
    "paper": Recipe(
        "the paper's words: additive triggers, batches of 128, CLIP ViT-B/32; give CC3M with "
        "--dataset shards:PATTERN (gamma is ours: at the paper's 1 nothing is protected)",
        {
            "one": TrainConfig("one", 200 * 23_437, 128, 256, learning_rate=1e-4, final_learning_rate=1e-4, pool=128,
                               trigger_rate=1, trains="codec"),
            "two": TrainConfig("two", 100 * 23_437, 128, 256, learning_rate=1e-5, final_learning_rate=1e-5, pool=128,
                               trigger_rate=1, trains="codec"),
        },
        Phase(_OURS, kind="psic", target="ViT-B-32/openai", size=256, codec=replace(_WIDE, ladder=0, anchored=False)),
    ),
}
# fmt: on


def phases(
    name: str, quality: int, folder: Path, root: str | None = None, changes: Mapping[str, Any] | None = None
) -> list[tuple[TrainConfig, Phase, Path]]:
    """What a recipe runs, phase by phase: how it learns, what it sees, where it goes.

    Args:
        name: One of `RECIPES`.
        quality: One of `RATES`.
        folder: Of the recipe's runs.
        root: The data root.
        changes: Fields of `Phase` that replace the recipe's: ``dataset``, ``target``, ``pictures``, ``init``
            (``{quality}`` in it stands for the rate; ``random``: none).

    Raises:
        ValueError: Unknown name or quality; an ``init`` of one rate where two are needed.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    if quality not in RATES:
        raise ValueError(f"quality {quality} has no lambda; the rates are {', '.join(map(str, RATES))}")
    recipe, found = RECIPES[name], []

    changes = dict(changes or {})
    codec, before = changes.pop("init", recipe.first.init), None
    _own_codec(recipe, quality, codec)  # refuses here, before hours of training
    for stage, config in recipe.phases.items():
        last, rate = config.stage == "two", 3 if stage in recipe.shared else quality
        start = codec.replace("{quality}", str(rate)) if codec not in (None, "random") else None
        phase = replace(
            recipe.first, init=before or start, data_root=root, kind="psic" if last else recipe.first.kind,
            codec=replace(recipe.first.codec, quality=rate),
        )  # fmt: skip
        out = folder / (f"{name}-{stage}" if stage in recipe.shared else f"{name}-q{rate}-{stage}")
        found.append((replace(config, lmbda=RATES[rate]), replace(phase, **changes), out))
        before = str(out / "model.safetensors")
    return found


def _own_codec(recipe: Recipe, quality: int, init: str | None) -> str | None:
    """The start of the codec that gets triggers of the third rate, where all of a recipe's phases were that rate's."""
    if quality == 3 or set(recipe.phases) > set(recipe.shared):
        return None
    if init is None or "{quality}" not in init:
        raise ValueError(f"rate {quality} needs its own codec and the third rate's: write {{quality}} in {init!r}")
    return init.replace("{quality}", str(quality))


def run_recipe(
    name: str,
    quality: int,
    folder: Path,
    root: str | None = None,
    dry_run: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Run a recipe's phases; finished ones are skipped, a broken-off one resumes.

    Args:
        name: One of `RECIPES`.
        quality: One of `RATES`.
        folder: Of the runs and of what they make.
        root: The data root.
        dry_run: A few steps of each phase at the smallest sizes on 64 pictures, in a folder of its own.
        changes: As in `phases`.

    Returns:
        The checkpoint ``psic-qN`` (or ``codec-qN``) in ``folder``; none where another process writes it.
    """
    folder = folder / "dry-run" if dry_run else folder
    accelerator, recipe = started(), RECIPES[name]
    for config, phase, out in phases(name, quality, folder, root, changes):
        if (out / "model.safetensors").is_file():
            accelerator.print(f"{out} is finished")
            continue
        accelerator.print(f"{out}: stage {config.stage}, {config.steps} steps of {config.batch_size} pictures")
        if dry_run:
            config, phase = config.fast(), replace(phase, scenes=min(phase.scenes, 64), pictures=phase.pictures or 64)
        run_phase(config, phase, out)
    with accelerator.main_process_first():
        if not accelerator.is_main_process:
            return []
        codec = _own_codec(recipe, quality, (changes or {}).get("init", recipe.first.init))
        return [publish(out / "model.safetensors", quality, folder, recipe.budget, codec)]
