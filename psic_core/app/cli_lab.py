"""The commands that measure: ``psic evaluate``, ``captions``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from psic_core.app.cli_files import DEFAULT_CHECKPOINT
from psic_core.datasets import DataSet

Report = Annotated[Path, arg(metavar="OUT")]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What every measurement of one model takes."""

    json: Report  # the report; of several data sets, their reports by name
    dataset: tuple[DataSet, ...]  # one or several
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    plain: str | None = None  # the plain codec of the same rate; None: the model without its triggers
    cache: Path | None = None  # folder that keeps what was measured: a second run takes seconds
    data_root: str | None = None  # of the data sets (PSIC_DATA_ROOT), or your photos, captioned or not
    limit: tuple[int, ...] = ()  # the first so many pictures: one number for all sets, or one for each
    side: int | None = None  # shorter side in pixels that photos are coded at; 0: as they are; None: the set's own way

    def models(self) -> tuple[Any, Any]:
        """The model, and the plain codec that it is compared with."""
        from psic_core.training.checkpoints import load_checkpoint

        plain = load_checkpoint(self.plain) if self.plain else load_checkpoint(self.checkpoint, plain=True)
        return load_checkpoint(self.checkpoint), plain

    def sets(self) -> list[Any]:
        """The data sets."""
        from psic_core.datasets.eval_sets import eval_set

        limits = self.limit if len(self.limit) > 1 else (self.limit or (None,)) * len(self.dataset)
        if len(limits) != len(self.dataset):
            raise ValueError(f"{len(limits)} limits for {len(self.dataset)} data sets: give one, or one for each")
        given = zip(self.dataset, limits, strict=True)
        return [eval_set(name, self.data_root, limit, self.side) for name, limit in given]

    def write(self, reports: list[dict[str, Any]]) -> None:
        """Write the reports so far."""
        from psic_core.lab.evaluate import write_json

        found = {r["dataset"]: r | {"checkpoint": self.checkpoint, "side": self.side} for r in reports}
        write_json(found if len(self.dataset) > 1 else found[self.dataset[0]], self.json)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Measurement):
    """Measure a checkpoint on data sets."""

    target: tuple[str, ...] = ("lite-clip",)  # the model that reads the pictures; further ones go to `transfer`

    def run(self) -> None:
        """Measure, write and print."""
        from psic_core.app.tables import rates_table, recall_table, success_table
        from psic_core.lab.evaluate import evaluate
        from psic_core.models.vlp import load_target

        sets, (model, plain) = self.sets(), self.models()
        targets = [load_target(name) for name in self.target]
        reports = []
        for data in sets:
            reports.append(evaluate(model, plain, data, targets, self.cache))
            self.write(reports)
        found = {r["dataset"]: {model.config.quality: r} for r in reports}
        print("\n\n".join(table(found) for table in (success_table, rates_table, recall_table)))


@dataclass(frozen=True, kw_only=True)
class Captions(Measurement):
    """Score what a captioner that was never attacked says of each version."""

    def run(self) -> None:
        """Caption, score, write and print."""
        from psic_core.app.tables import captions_table
        from psic_core.lab.captioner import load_captioner
        from psic_core.lab.captions import caption_report

        sets, (model, plain), captioner = self.sets(), self.models(), load_captioner()
        reports = []
        for data in sets:
            reports.append(caption_report(model, plain, data, captioner, self.cache))
            self.write(reports)
            print(captions_table({model.config.quality: reports[-1]}))
