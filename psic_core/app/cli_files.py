"""The commands that make and read files: ``psic encode``, ``decode``, ``info``, ``rekey``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from psic_core.app.words import private

DEFAULT_CHECKPOINT = "psic-q2"

Output = Annotated[Path, arg(aliases=["-o"])]


@dataclass(frozen=True)
class Encode:
    """Write a photo to a .psic file, or a folder of photos to a folder of files."""

    photo: Positional[Path]  # or a folder
    output: Output  # of a folder: a folder, made where missing
    keyword: str = ""  # words that will decode the full version; here others see them: - asks, or reads standard input
    keyword_file: Path | None = None  # a file whose first line is the keyword; PSIC_KEYWORD is another way
    passphrase: str = ""  # the owner's, where the checkpoint does not hold its secret; - and PSIC_PASSPHRASE as above
    quality: int | None = None  # level of a variable-rate model, from 0
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    workers: int = 1  # processes for a folder
    overwrite: bool = False  # replace files that are there and are not what is asked for
    tile: int | None = None  # side in pixels of the windows of large photos; 0: never; None: 1024 above 4 megapixels
    max_megapixels: float = 50  # larger pictures are refused

    def run(self) -> None:
        """Encode."""
        from psic_core.app.folder_jobs import Job, Work, run_folder, run_one
        from psic_core.bitstream import describe

        keyword = private(self.keyword, "keyword", "PSIC_KEYWORD", self.keyword_file, twice=True)
        passphrase = private(self.passphrase, "passphrase", "PSIC_PASSPHRASE")
        most = round(self.max_megapixels * 1e6)
        work = Work("encode", self.checkpoint, keyword, passphrase, self.quality, self.tile, most)
        if self.photo.is_dir():
            return run_folder(self.photo, self.output, work, self.workers, self.overwrite)
        version = run_one(Job(self.photo, self.output), work, self.overwrite)
        facts = describe(self.output.read_bytes())
        size = f"{facts['bytes']['total']} bytes, {facts['bpp']:.3f} bpp, {facts['width']}x{facts['height']}"
        print(f"{self.output}: {size}, {version}")


@dataclass(frozen=True)
class Decode:
    """Decode a .psic file, or a folder: protected, or full with the keyword."""

    file: Positional[Path]  # or a folder
    output: Output  # of a folder: a folder, made where missing
    keyword: str = ""  # without a right one, protected is decoded; others see it here: - asks, or reads standard input
    keyword_file: Path | None = None  # a file whose first line is the keyword; PSIC_KEYWORD is another way
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    workers: int = 1  # processes for a folder
    overwrite: bool = False  # replace files that are there and are not what is asked for
    tile: int | None = None  # side in pixels of the windows of large photos; 0: never; None: 1024 above 4 megapixels
    max_megapixels: float = 50  # larger pictures are refused

    def run(self) -> None:
        """Decode."""
        from psic_core.app.folder_jobs import Job, Work, run_folder, run_one

        keyword = private(self.keyword, "keyword", "PSIC_KEYWORD", self.keyword_file)
        most = round(self.max_megapixels * 1e6)
        work = Work("decode", self.checkpoint, keyword, tile=self.tile, max_pixels=most)
        if self.file.is_dir():
            return run_folder(self.file, self.output, work, self.workers, self.overwrite)
        version = run_one(Job(self.file, self.output), work, self.overwrite)
        wrong = ": the keyword is not the one of this file" if keyword and version == "protected" else ""
        print(f"{self.output}: {version} version{wrong}")


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
    new: str  # the new owner's passphrase; here others see it: - asks, or reads standard input
    old: str = ""  # needed where the checkpoint does not hold its secret; - likewise
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    overwrite: bool = False  # replace a file that is there

    def run(self) -> None:
        """Write the copy."""
        from psic_core import keys
        from psic_core.config import PUBLIC_SECRET
        from psic_core.training.checkpoints import load_checkpoint, save_checkpoint

        if self.output.exists() and not self.overwrite:
            raise ValueError(f"{str(self.output)!r} is there already; pass --overwrite, or name another output")
        old, new = private(self.old, "old passphrase"), private(self.new, "new passphrase", twice=True)
        model = load_checkpoint(self.checkpoint)
        if old:
            model.unlock(old)
        if model.secret is None:
            raise ValueError("this checkpoint does not hold its secret; pass --old PASSPHRASE")
        known = {"public": True} if model.secret == PUBLIC_SECRET else {}
        keys.rekey(model, model.secret, keys.secret(new))
        save_checkpoint(model, self.output, model.card | known)
        print(f"{self.output}: decodes in full with the new passphrase only, files made before too.")
        print("Whoever has the model that it was copied from, and its secret, decodes the files of both in full.")


def read(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        FileNotFoundError: There is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    return path.read_bytes()
