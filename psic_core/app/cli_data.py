"""The command that fetches data sets: ``psic data get``, ``psic data list``."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add(command: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Register the command."""
    p = command("data", None, "download data sets that others publish, or list them")
    actions = p.add_subparsers(dest="action", required=True)

    text = "download data sets into --data-root; resumes, and leaves alone what is there"
    p = actions.add_parser("get", help=text, description=text)
    p.set_defaults(run=get)
    p.add_argument("names", nargs="+", metavar="NAME", help="as psic data list has them")
    p.add_argument("--data-root", help="folder for the data sets (PSIC_DATA_ROOT); made where missing")

    text = "the data sets: what there is to download, how it is checked, on whose terms"
    p = actions.add_parser("list", help=text, description=text)
    p.set_defaults(run=show)
    p.add_argument("--data-root", help="says which of them are there (PSIC_DATA_ROOT)")


def get(args: argparse.Namespace) -> None:
    """``psic data get``."""
    from psic_core.datasets.download import catalogue
    from psic_core.datasets.download import get as download

    root = _root(args.data_root)
    if root is None:
        raise ValueError("no folder for the data sets: pass --data-root DIR or set PSIC_DATA_ROOT=DIR")
    for name in args.names:
        if download(name, root):
            about = catalogue()[name]
            print(f"{name}: {about['pictures']:,} pictures in {root / name}; {about['terms']} ({about['home']})")
        else:
            print(f"{name}: is there, in {root / name}")


def show(args: argparse.Namespace) -> None:
    """``psic data list``."""
    from psic_core.datasets.download import catalogue, is_there

    root = _root(args.data_root)
    for name, about in catalogue().items():
        sizes = [source.get("size") for source in about["sources"]]
        size = "size unknown" if None in sizes else f"{sum(sizes) / 1e6:,.0f} MB"
        there = "is there" if root is not None and is_there(name, root) else ""
        print(f"{name:16} {size:>12} {about['pictures']:>8,} pictures  {there}".rstrip())
        print(f"{'':16} {about['home']} - {about['terms']}")


def _root(given: str | None) -> Path | None:
    """The data root, which need not exist; `psic_core.config.data_root` is for those who read it."""
    root = given or os.environ.get("PSIC_DATA_ROOT")
    return Path(root) if root else None
