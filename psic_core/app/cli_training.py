"""The commands that make models: ``psic train``, ``recipe``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from psic_core.config import Phase, TrainConfig

Folder = Annotated[Path, arg(aliases=["-o"])]


@dataclass(frozen=True)
class Train:
    """Train one phase: plain, one or two."""

    out: Folder  # folder of this run; a run that is there resumes
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
    out: Folder = Path("runs")  # a folder for each phase is made there
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
