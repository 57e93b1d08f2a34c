"""The commands that make and read files: ``psic encode``, ``decode``, ``info``, ``rekey``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

DEFAULT_CHECKPOINT = "psic-q2"

Output = Annotated[Path, arg(aliases=["-o"])]


@dataclass(frozen=True)
class Encode:
    """Write a photo to a .psic file, or a folder of photos to a folder of files."""

    photo: Positional[Path]  # or a folder
    output: Output  # of a folder: a folder, made where missing
    keyword: str = ""  # words that will decode the full version
    passphrase: str = ""  # the owner's, where the checkpoint does not hold its secret
    quality: int | None = None  # level of a variable-rate model, from 0
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    workers: int = 1  # processes for a folder
    overwrite: bool = False  # of a folder: make files anew that are there already
    tile: int | None = None  # side in pixels of the windows of large photos; 0: never; None: 1024 above 4 megapixels

    def run(self) -> None:
        """Encode."""
        from psic_core.app.folder_jobs import Job, Work, load, make, run_folder
        from psic_core.bitstream import describe

        work = Work("encode", self.checkpoint, self.keyword or None, self.passphrase or None, self.quality, self.tile)
        if self.photo.is_dir():
            return run_folder(self.photo, self.output, work, self.workers, self.overwrite)
        make(Job(self.photo, self.output), work, load(work))
        facts = describe(read(self.output))
        size = f"{facts['bytes']['total']} bytes, {facts['bpp']:.3f} bpp, {facts['width']}x{facts['height']}"
        print(f"{self.output}: {size}")


@dataclass(frozen=True)
class Decode:
    """Decode a .psic file, or a folder: protected, or full with the keyword."""

    file: Positional[Path]  # or a folder
    output: Output  # of a folder: a folder, made where missing
    keyword: str = ""  # without it, or with a wrong one, the protected version is decoded
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    workers: int = 1  # processes for a folder
    overwrite: bool = False  # of a folder: make files anew that are there already
    tile: int | None = None  # side in pixels of the windows of large photos; 0: never; None: 1024 above 4 megapixels

    def run(self) -> None:
        """Decode."""
        from psic_core.app.folder_jobs import Job, Work, load, make, run_folder

        work = Work("decode", self.checkpoint, self.keyword or None, tile=self.tile)
        if self.file.is_dir():
            return run_folder(self.file, self.output, work, self.workers, self.overwrite)
        read(self.file)
        make(Job(self.file, self.output), work, load(work))


@dataclass(frozen=True)
class Info:
    """Say what a .psic file says of itself."""

    file: Positional[Path]  # a .psic file
    json: bool = False  # as JSON

    def run(self) -> None:
        """Print it."""
        from psic_core.bitstream import describe

        facts = describe(read(self.file))
        print(json.dumps(facts, indent=1) if self.json else "\n".join(f"{k}: {v}" for k, v in facts.items()))


@dataclass(frozen=True)
class Rekey:
    """Give a copy of a model a secret of your own, without training."""

    output: Output  # the copy; it does not hold its secret, only the passphrase gives it
    new: str  # the new owner's passphrase
    old: str = ""  # needed where the checkpoint does not hold its secret
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name

    def run(self) -> None:
        """Write the copy."""
        from psic_core import keys
        from psic_core.training.checkpoints import load_checkpoint, save_checkpoint

        model = load_checkpoint(self.checkpoint)
        if model.secret is None and not self.old:
            raise ValueError("this checkpoint does not hold its secret; pass --old PASSPHRASE")
        old = keys.secret(self.old) if self.old else model.secret
        keys.rekey(model, old, keys.secret(self.new))
        save_checkpoint(model, self.output, model.card)
        print(f"{self.output}: decodes full with the new passphrase only. Files made before stay readable.")


def read(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        FileNotFoundError: There is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    return path.read_bytes()
