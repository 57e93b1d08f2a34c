"""The commands that make and read files: ``psic protect``, ``encode``, ``decode``, ``info``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from psic_core.app.words import private

DEFAULT_CHECKPOINT = "psic-q4"  # at 100 % a person sees less of its blur than of the lower rates'

Output = Annotated[Path, arg(aliases=["-o"])]


@dataclass(frozen=True)
class Protect:
    """Write the .psic file and the protected picture of each photo, and say what a reader believes of it."""

    photos: Positional[tuple[Path, ...]]
    output: Output = Path()  # a folder, made where missing
    keyword: str = ""  # words that will decode the full version; others see them here: - asks; or PSIC_KEYWORD
    # a shield searched for the photo, eight seconds each: in the file, or in the picture, which only the keyword takes
    # out again; none: the model's trained triggers alone, which mislead less and are seen more
    adapt: Literal["carried", "sealed", "none"] = "carried"
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    reader: str = "lite-clip"  # the model that says what it sees
    names: Path | None = None  # a text file of what may be there, a name a line; None: ImageNet's 1,000 classes
    suffix: Literal[".jpg", ".png"] = ".jpg"  # of the picture to post
    overwrite: bool = False  # replace files that are there

    def run(self) -> None:
        """Protect each photo."""
        from open_clip import IMAGENET_CLASSNAMES

        from psic_core.app.folder_jobs import Work, checked, load, make
        from psic_core.bitstream import unpack
        from psic_core.models.images import load_image, to_pil, to_tensor
        from psic_core.models.vlp import load_target

        keyword = private(self.keyword, "keyword", "PSIC_KEYWORD", twice=True)
        work = Work("encode", self.checkpoint, keyword, adapt=None if self.adapt == "none" else self.adapt)
        files = [self.output / f"{photo.stem}.psic" for photo in self.photos]
        shown = [self.output / f"{photo.stem}-protected{self.suffix}" for photo in self.photos]
        for photo, *outputs in zip(self.photos, files, shown, strict=True):
            for output in outputs:
                checked(photo, output, self.overwrite)
        if len(set(files)) < len(files):
            raise ValueError("two photos have one name but for their suffix; protect them one by one, into two folders")
        names = self.names.read_text("utf-8").splitlines() if self.names else IMAGENET_CLASSNAMES
        names = [name.strip() for name in names if name.strip()]
        self.output.mkdir(parents=True, exist_ok=True)
        model, reader = load(work), load_target(self.reader)
        prompts = reader.encode_text([f"a photo of a {name}" for name in names])
        for photo, output, picture in zip(self.photos, files, shown, strict=True):
            make(photo, output, work, model)
            make(output, picture, Work("decode", self.checkpoint), model)
            print(f"{photo}: {output}, {output.stat().st_size} bytes; {picture} to post")
            stream = unpack(file := output.read_bytes())
            if keyword:
                full = model.decompress(file, keyword)
            else:  # what nobody has of a sealed file; of another, its owner
                full = to_pil(model.picture(model.latents(stream), stream.size, model.full_condition()))
            versions = {"original": load_image(photo), "full": full, "protected": load_image(picture)}
            for version, image in versions.items():
                belief = reader.probabilities(reader.encode_images(to_tensor(image)), prompts)[0]
                print(f"  {version:10} {names[int(belief.argmax())]}, {100 * float(belief.max()):.0f} %")


@dataclass(frozen=True)
class Coding:
    """What encoding and decoding take; a folder's files go into a folder."""

    output: Output  # of a folder: a folder, made where missing
    keyword: str = ""  # words that open the full version; others see them here: - asks; or PSIC_KEYWORD
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    overwrite: bool = False  # replace files that are there; else a folder's stay, and a single one is refused
    tile: int | None = None  # side in pixels of the windows of large photos; 0: never; None: 1024 above 4 megapixels
    max_megapixels: float = 50  # larger pictures are refused

    def make(self, source: Path, task: Literal["encode", "decode"], **more: Any) -> tuple[str | None, str | None]:
        """Make a file, or a folder's; returns one file's version, and the keyword."""
        from psic_core.app.folder_jobs import Work, checked, load, make, run_folder

        keyword = private(self.keyword, "keyword", "PSIC_KEYWORD", twice=task == "encode")
        most = round(self.max_megapixels * 1e6)
        work = Work(task, self.checkpoint, keyword, tile=self.tile, max_pixels=most, **more)
        if source.is_dir():
            run_folder(source, self.output, work, self.overwrite)
            return None, keyword
        checked(source, self.output, self.overwrite)
        return make(source, self.output, work, load(work)), keyword


@dataclass(frozen=True, kw_only=True)
class Encode(Coding):
    """Write a photo to a .psic file, or a folder of photos to a folder of files."""

    photo: Positional[Path]  # or a folder
    passphrase: str = ""  # the owner's, where the checkpoint does not hold its secret; - and PSIC_PASSPHRASE as above
    # a shield searched for each photo: in the file, or in the picture itself, which only a keyword takes out again
    adapt: Literal["carried", "sealed"] | None = None

    def run(self) -> None:
        """Encode."""
        from psic_core.bitstream import describe

        passphrase = private(self.passphrase, "passphrase", "PSIC_PASSPHRASE")
        version, _ = self.make(self.photo, "encode", passphrase=passphrase, adapt=self.adapt)
        if version:
            facts = describe(self.output.read_bytes())
            size = f"{facts['bytes']['total']} bytes, {facts['bpp']:.3f} bpp, {facts['width']}x{facts['height']}"
            print(f"{self.output}: {size}, {version}")


@dataclass(frozen=True, kw_only=True)
class Decode(Coding):
    """Decode a .psic file, or a folder: protected, or full with the keyword."""

    file: Positional[Path]  # or a folder

    def run(self) -> None:
        """Decode."""
        version, keyword = self.make(self.file, "decode")
        if version:
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

        facts = describe(self.file.read_bytes())
        print(json.dumps(facts, indent=1) if self.json else "\n".join(f"{k}: {v}" for k, v in facts.items()))
