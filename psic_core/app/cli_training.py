"""The commands that make models: ``psic train``, ``recipe``, ``ablate``, ``publish``, ``train-target``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

Folder = Annotated[Path, arg(aliases=["-o"])]


@dataclass(frozen=True)
class Train:
    """Train one phase: plain, one or two."""

    out: Folder  # folder of this run; a run that is there resumes


def with_configurations() -> type:
    """`Train` with all options of `psic_core.config.TrainConfig` and `psic_core.training.phase.Phase`."""
    from psic_core.config import TrainConfig
    from psic_core.training.phase import Phase, run_phase

    @dataclass(frozen=True)
    class FullTrain(Train):
        __doc__ = Train.__doc__

        config: TrainConfig = field(default_factory=TrainConfig)
        phase: Phase = field(default_factory=Phase)

        def run(self) -> None:
            run_phase(self.config, self.phase, self.out)

    return FullTrain


@dataclass(frozen=True)
class RunRecipe:
    """Make psic-qN by a named recipe; resumes. Without a name, list the recipes."""

    name: Positional[str | None] = None  # of a recipe
    quality: int = 2  # the rate, 1 to 4
    out: Folder = Path("runs")  # a folder for each phase is made there
    data_root: str | None = None  # of the data sets (PSIC_DATA_ROOT)
    dataset: tuple[str, ...] = ()  # other pictures than the recipe's, as in psic train
    target: str | None = None  # another target than the recipe's
    pictures: int | None = None  # train on about so many of the pictures
    dry_run: bool = False  # a few steps of every phase: does it run here at all?

    def run(self) -> None:
        """Run it, or list them."""
        from psic_core.training.recipes import RECIPES, run_recipe

        if not self.name:
            for name, known in RECIPES.items():
                print(f"{name:12} {known.about}")
            return
        chosen = {k: getattr(self, k) for k in ("dataset", "target", "pictures") if getattr(self, k)}
        for path in run_recipe(self.name, self.quality, self.out, self.data_root, self.dry_run, chosen):
            print(path)


@dataclass(frozen=True)
class Ablate:
    """Compare objectives, choices and rivals on equal terms: short trainings from one codec."""

    points: Annotated[Positional[tuple[str, ...]], arg(metavar="METHOD[@STRENGTH][#SEED]")] = ()
    """Those to run; none named: all that the file does not have yet."""
    list: bool = False  # say what there is, and do nothing
    out: Folder = Path("runs/ablations")  # folder of the runs
    json: Path = Path("data/results/points.jsonl")  # what they give, a line each
    pictures: int = 300  # held-out scenes to measure on
    target: str = "lite-clip"  # the model under attack
    weights: Path | None = None  # of one bavaft point: write the rival's weights there too, as float16

    def run(self) -> None:
        """Run the points, or list the methods."""
        from psic_core.lab.ablations import RIVALS, SWEEPS, VARIANTS, point
        from psic_core.lab.comparison import publish_bavaft, run_points

        if self.list:
            for name, what in ({n: v.what for n, v in VARIANTS.items()} | RIVALS).items():
                print(f"{name:18} {what}; strengths {', '.join(map(str, SWEEPS.get(name, ('its own',))))}")
            return
        if self.weights and (len(self.points) != 1 or point(self.points[0]).method != "bavaft"):
            raise ValueError(
                f"--weights takes one bavaft point, got {self.points}; write psic ablate bavaft@30 --weights FILE"
            )
        run_points(self.points, self.out, self.json, self.pictures, self.target)
        if self.weights:
            publish_bavaft(point(self.points[0]), self.out, self.weights, self.target)


@dataclass(frozen=True)
class Publish:
    """Write a trained model as psic-qN, in float16."""

    checkpoint: str  # the last phase's model.safetensors
    quality: int  # number of the rate
    output: Folder  # folder
    strength: float = 1.0  # scales the triggers; 1: as trained
    label: str = ""  # for its name: psic-LABEL-qN

    def run(self) -> None:
        """Write it."""
        from psic_core.training.phase import publish

        print(publish(self.checkpoint, self.quality, self.output, self.strength, self.label))


@dataclass(frozen=True)
class TrainTarget:
    """Train the heads of lite-clip, or of its like, on Flickr8k, scenes and class names, and measure what it reads."""

    output: Folder  # heads file, .safetensors
    target: Literal["lite-clip", "lite1-clip", "lite2-clip"] = "lite-clip"  # whose heads
    data_root: str | None = None  # of the data sets (PSIC_DATA_ROOT)
    cache: Path = Path("build/cache")  # folder that keeps the towers' features

    def run(self) -> None:
        """Train, write and measure them."""
        from psic_core.lab.readers import make_reader

        for figure, by in make_reader(self.output, self.target, self.data_root, self.cache).items():
            print(f"{figure:26}" + "".join(f"{version:>12} {100 * value:5.1f}" for version, value in by.items()))
