"""The command that fetches data sets: ``psic data get``, ``psic data list``."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, subcommand


@dataclass(frozen=True)
class Get:
    """Download data sets into the data root; goes on where it was cut, and leaves alone what is there."""

    names: Positional[tuple[str, ...]]  # as psic data list has them
    data_root: str | None = None  # folder for the data sets (PSIC_DATA_ROOT); made where missing

    def run(self) -> None:
        """Download."""
        from psic_core.datasets.download import catalogue, get

        root = _root(self.data_root)
        if root is None:
            raise ValueError("no folder for the data sets: pass --data-root DIR or set PSIC_DATA_ROOT=DIR")
        for name in self.names:
            if get(name, root):
                about = catalogue()[name]
                print(f"{name}: {about['pictures']:,} pictures in {root / name}; {about['terms']} ({about['home']})")
            else:
                print(f"{name}: is there, in {root / name}")


@dataclass(frozen=True)
class List:
    """List the data sets: what there is to download, and on whose terms."""

    data_root: str | None = None  # says which of them are there (PSIC_DATA_ROOT)

    def run(self) -> None:
        """Print the list."""
        from psic_core.datasets.download import catalogue, is_there

        root = _root(self.data_root)
        for name, about in catalogue().items():
            sizes = [source.get("size") for source in about["sources"]]
            size = "size unknown" if None in sizes else f"{sum(sizes) / 1e6:,.0f} MB"
            there = "is there" if root is not None and is_there(name, root) else ""
            print(f"{name:16} {size:>12} {about['pictures']:>8,} pictures  {there}".rstrip())
            print(f"{'':16} {about['home']} - {about['terms']}")


@dataclass(frozen=True)
class Data:
    """Download data sets that others publish, or list them."""

    action: Annotated[Get, subcommand("get")] | Annotated[List, subcommand("list")]

    def run(self) -> None:
        """Do the one or the other."""
        self.action.run()


def _root(given: str | None) -> Path | None:
    """The data root, which need not exist; `psic_core.config.data_root` is for those who read it."""
    root = given or os.environ.get("PSIC_DATA_ROOT")
    return Path(root) if root else None
