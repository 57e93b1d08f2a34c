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
    from psic_core.datasets.catalogue import data_set
    from psic_core.datasets.download import LOCK
    from psic_core.datasets.download import get as download

    chosen, root = [data_set(name) for name in args.names], _root(args.data_root)
    if root is None:
        raise ValueError("no folder for the data sets: pass --data-root DIR or set PSIC_DATA_ROOT=DIR")
    for data in chosen:
        receipts = download(data, root)
        if not receipts:
            print(f"{data.name}: is there, in {root / data.name}")
            continue
        print(f"{data.name}: {data.pictures:,} pictures in {root / data.name}; {data.terms} ({data.home})")
        pinned = {source.name: source.md5 for source in data.sources if not source.sha256}
        for receipt in (r for r in receipts if r.name in pinned):
            why = "md5 as published" if pinned[receipt.name] else "no checksum is published"
            print(f"  {receipt.name}: {receipt.bytes:,} bytes, {why}; its sha256 {receipt.sha256} is noted in {LOCK}")


def show(args: argparse.Namespace) -> None:
    """``psic data list``."""
    from psic_core.datasets.catalogue import DATA_SETS

    root = _root(args.data_root)
    for data in DATA_SETS.values():
        size = "size unknown" if data.size is None else f"{data.size / 1e6:,.0f} MB"
        check = "checksums" if data.published else "no checksum"
        there = "is there" if root is not None and data.is_in(root) else ""
        print(f"{data.name:16} {size:>12} {data.pictures:>8,} pictures  {check:12} {there}".rstrip())
        print(f"{'':16} {data.home} - {data.terms}")


def _root(given: str | None) -> Path | None:
    """The data root, which need not exist; `psic_core.config.data_root` is for those who read it."""
    root = given or os.environ.get("PSIC_DATA_ROOT")
    return Path(root) if root else None
