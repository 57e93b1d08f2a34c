"""The command that measures: ``psic evaluate``. What else is measured has a script in ``data/results``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from psic_core.app.cli_files import DEFAULT_CHECKPOINT
from psic_core.datasets import DataSet


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
