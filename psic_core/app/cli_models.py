"""The commands that make and measure models: ``psic train``, ``recipe``, ``evaluate``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from psic_core.app.cli_files import DEFAULT_CHECKPOINT, Output
from psic_core.config import Phase, TrainConfig
from psic_core.datasets import DataSet


@dataclass(frozen=True)
class Train:
    """Train one phase: plain, one or two."""

    out: Output  # folder of this run; a run that is there resumes
    config: TrainConfig = field(default_factory=TrainConfig)
    phase: Phase = field(default_factory=Phase)

    def run(self) -> None:
        """Train it."""
        from psic_core.training.phase import run_phase

        run_phase(self.config, self.phase, self.out)


@dataclass(frozen=True)
class RunRecipe:
    """Make psic-qN by a named recipe; resumes. Without a name, list the recipes."""

    name: Positional[str | None] = None  # of a recipe
    quality: int = 2  # the rate, 1 to 4
    out: Output = Path("runs")  # a folder for each phase is made there
    data_root: str | None = None  # of the data sets (PSIC_DATA_ROOT)
    dataset: tuple[str, ...] = ()  # other pictures than the recipe's, as in psic train
    target: str | None = None  # another target than the recipe's
    init: str | None = None  # another start than the recipe's, with {quality} for the rate; random: random weights
    pictures: int | None = None  # train on about so many of the pictures
    dry_run: bool = False  # a few steps of every phase: does it run here at all?

    def run(self) -> None:
        """Run it, or list them."""
        from psic_core.training.recipes import RECIPES, run_recipe

        if not self.name:
            for name, known in RECIPES.items():
                print(f"{name:12} {known.about}")
            return
        chosen = {k: getattr(self, k) for k in ("dataset", "target", "init", "pictures") if getattr(self, k)}
        for path in run_recipe(self.name, self.quality, self.out, self.data_root, self.dry_run, chosen):
            print(path)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a checkpoint on data sets."""

    json: Annotated[Path, arg(metavar="OUT")]  # the report; of several data sets, their reports by name
    dataset: tuple[DataSet, ...]  # one or several
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    target: tuple[str, ...] = ("lite-clip",)  # the model that reads the pictures; further ones go to `transfer`
    plain: str | None = None  # the plain codec of the same rate; None: the model without its triggers
    cache: Path | None = None  # folder that keeps what was measured: a second run takes seconds
    data_root: str | None = None  # of the data sets (PSIC_DATA_ROOT), or your photos, captioned or not
    limit: tuple[int, ...] = ()  # the first so many pictures: one number for all sets, or one for each
    side: int | None = None  # shorter side in pixels that photos are coded at; 0: as they are; None: the set's own way

    def run(self) -> None:
        """Measure, write and print."""
        from psic_core.app.tables import rates_table, success_table
        from psic_core.datasets.eval_sets import eval_set
        from psic_core.lab.evaluate import evaluate, write_json
        from psic_core.models.vlp import load_target
        from psic_core.training.checkpoints import load_checkpoint

        limits = self.limit if len(self.limit) > 1 else (self.limit or (None,)) * len(self.dataset)
        if len(limits) != len(self.dataset):
            raise ValueError(f"{len(limits)} limits for {len(self.dataset)} data sets: give one, or one for each")
        given = zip(self.dataset, limits, strict=True)
        sets = [eval_set(name, self.data_root, limit, self.side) for name, limit in given]
        plain = load_checkpoint(self.plain) if self.plain else load_checkpoint(self.checkpoint, plain=True)
        model, targets = load_checkpoint(self.checkpoint), [load_target(name) for name in self.target]
        found = {}
        for data in sets:  # what is measured is written at once
            report = evaluate(model, plain, data, targets, self.cache)
            found[data.name] = report | {"checkpoint": self.checkpoint, "side": self.side}
            write_json(found if len(sets) > 1 else found[data.name], self.json)
        rates = {name: {model.config.quality: report} for name, report in found.items()}
        print("\n\n".join(table(rates) for table in (success_table, rates_table)))
