"""The commands that make and read files: ``psic encode``, ``decode``, ``info``."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add(command: Callable[[str, Any, str], argparse.ArgumentParser], checkpoint: str) -> None:
    """Register the commands."""
    p = command("encode", encode, "write a photo to a .psic file, or a folder of photos to a folder of files")
    p.add_argument("photo", type=Path, help="or a folder")
    p.add_argument("--keyword", help="words that will decode the full version")
    p.add_argument("--passphrase", help="the owner's, where the checkpoint does not hold its secret")
    p.add_argument("--quality", type=int, help="level of a variable-rate model, from 0")
    _common(p, checkpoint)

    p = command("decode", decode, "decode a .psic file, or a folder: protected, or full with the keyword")
    p.add_argument("file", type=Path, help="or a folder")
    p.add_argument("--keyword", help="without it, or with a wrong one, the protected version is decoded")
    _common(p, checkpoint)

    p = command("info", info, "what a .psic file says of itself")
    p.add_argument("file", type=Path)
    p.add_argument("--json", action="store_true")


def encode(args: argparse.Namespace) -> None:
    """``psic encode``."""
    from psic_core.app.folder_jobs import Job, Work, load, make
    from psic_core.bitstream import describe

    work = Work("encode", args.checkpoint, args.keyword, args.passphrase, args.quality, args.tile)
    if args.photo.is_dir():
        return _folder(args.photo, args, work)
    make(Job(args.photo, args.output), work, load(work))
    facts = describe(read(args.output))
    print(f"{args.output}: {facts['bytes']['total']} bytes, {facts['bpp']:.3f} bpp, {facts['width']}x{facts['height']}")


def decode(args: argparse.Namespace) -> None:
    """``psic decode``."""
    from psic_core.app.folder_jobs import Job, Work, load, make

    work = Work("decode", args.checkpoint, args.keyword, tile=args.tile)
    if args.file.is_dir():
        return _folder(args.file, args, work)
    read(args.file)
    make(Job(args.file, args.output), work, load(work))


def info(args: argparse.Namespace) -> None:
    """``psic info``."""
    from psic_core.bitstream import describe

    facts = describe(read(args.file))
    print(json.dumps(facts, indent=1) if args.json else "\n".join(f"{k}: {v}" for k, v in facts.items()))


def read(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        FileNotFoundError: There is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    return path.read_bytes()


def _common(p: argparse.ArgumentParser, checkpoint: str) -> None:
    p.add_argument("-o", "--output", type=Path, required=True, help="of a folder: a folder, made where missing")
    p.add_argument("--checkpoint", default=checkpoint, help="file or shipped name (%(default)s)")
    p.add_argument("--workers", type=int, default=1, help="processes for a folder (%(default)s)")
    p.add_argument("--overwrite", action="store_true", help="of a folder: make files anew that are there already")
    p.add_argument("--tile", type=int, metavar="PIXELS",
                   help="side of the windows of large photos; 0: never; default: 1024 above 4 megapixels")  # fmt: skip


def _folder(folder: Path, args: argparse.Namespace, work: Any) -> None:
    from psic_core.app import folder_jobs

    if args.output.is_file():
        raise ValueError(f"{str(args.output)!r} is a file; a folder of files goes into a folder")
    folder_jobs.report(
        folder_jobs.run(folder_jobs.plan(folder, args.output, work.task), work, args.workers, args.overwrite)
    )
