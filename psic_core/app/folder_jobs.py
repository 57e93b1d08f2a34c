"""Photos to ``.psic`` files and back, one or a folder of them: a file appears whole or not at all."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from psic_core.app.words import say, sentence
from psic_core.bitstream import MAX_PIXELS
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_SECRET
from psic_core.models.images import SUFFIXES, load_image, save_image
from psic_core.training.checkpoints import load_checkpoint
from psic_core.training.files import whole


@dataclass(frozen=True)
class Work:
    """What to do with each file; ``tile``, ``max_pixels`` and ``adapt`` as for `PSIC.compress`."""

    task: Literal["encode", "decode"]
    checkpoint: str
    keyword: str | None = None
    passphrase: str | None = None
    tile: int | None = None
    max_pixels: int = MAX_PIXELS
    adapt: Literal["carried", "sealed"] | None = None


def load(work: Work) -> PSIC:
    """The model, able to do the work.

    Raises:
        ValueError: A keyword is to be sealed and the secret is missing, or not the model's.
        FileNotFoundError: No such checkpoint.
    """
    model = load_checkpoint(work.checkpoint)
    if work.passphrase:
        model.unlock(work.passphrase)
    if work.adapt == "sealed" and not work.keyword:
        say("sealed without a keyword: nobody will ever decode a full version of these files, you neither")
    elif work.task == "encode" and work.adapt != "sealed":
        if work.keyword and model.secret is None:
            raise ValueError("this checkpoint does not hold its secret; pass --passphrase PASSPHRASE")
        if model.secret == PUBLIC_SECRET:
            say("this model's secret is public: whoever has the model decodes its files in full, whatever the keyword")
    return model


def checked(source: Path, output: Path, overwrite: bool) -> None:
    """Refuse before anything is done.

    Raises:
        FileNotFoundError: There is no source.
        ValueError: The output is there already, or is the source.
    """
    if not source.is_file():
        raise FileNotFoundError(f"no file {str(source)!r}")
    if output.exists() and output.samefile(source):
        raise ValueError(f"{str(output)!r} is the source itself; name another output")
    if output.exists() and not overwrite:
        raise ValueError(f"{str(output)!r} is there already; pass --overwrite to replace it, or name another output")


def make(source: Path, output: Path, work: Work, model: PSIC) -> str:
    """Make one file; returns its version.

    Raises:
        ValueError: The source cannot be read, or the output's suffix is no picture format.
        OSError: The output cannot be written.
    """
    with whole(output) as partial:
        if work.task == "encode":
            image, options = load_image(source, work.max_pixels), {"tile": work.tile, "max_pixels": work.max_pixels}
            partial.write_bytes(model.compress(image, work.keyword, adapt=work.adapt, **options))
            return "with a keyword" if work.keyword else "without keyword"
        stream = source.read_bytes()
        image = model.decompress(stream, work.keyword, tile=work.tile, max_pixels=work.max_pixels)
        save_image(image, partial, output.suffix)
        return image.info["version"]


def plan(folder: Path, out: Path, task: Literal["encode", "decode"]) -> list[tuple[Path, Path]]:
    """Every picture (or ``.psic`` file) below a folder with its place below ``out``.

    ``a/cat.jpg`` becomes ``a/cat.psic``; beside an ``a/cat.png`` it becomes ``a/cat.jpg.psic``.

    Raises:
        ValueError: The folder holds none, or two would get one name.
    """
    wanted, suffix = (SUFFIXES, ".psic") if task == "encode" else ({".psic"}, ".png")
    sources = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in wanted)
    if not sources:
        raise ValueError(f"{str(folder)!r} holds no file that ends in {', '.join(sorted(wanted))}")
    places = [out / source.relative_to(folder).with_suffix(suffix) for source in sources]
    times = Counter(str(place).casefold() for place in places)
    places = [place if times[str(place).casefold()] == 1 else place.with_name(source.name + suffix)
              for source, place in zip(sources, places, strict=True)]  # fmt: skip
    if len({str(place).casefold() for place in places}) < len(places):
        raise ValueError(f"two files of {str(folder)!r} would be written to one; rename those of one name")
    return list(zip(sources, places, strict=True))


def run_folder(folder: Path, out: Path, work: Work, overwrite: bool) -> None:
    """Make what is not there yet. A bad file is reported and does not stop the others.

    Args:
        folder: Of the sources.
        out: Of the outputs.
        work: What to do.
        overwrite: Make anew what is there.

    Raises:
        ValueError: The output is a file, or a source failed.
    """
    if out.is_file():
        raise ValueError(f"{str(out)!r} is a file; a folder of files goes into a folder")
    jobs, model, written, failed = plan(folder, out, work.task), load(work), Counter(), 0
    left = [(source, output) for source, output in jobs if overwrite or not output.exists()]
    for source, output in tqdm(left, work.task, disable=None):
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            written[make(source, output, work, model)] += 1
        except Exception as error:
            failed += 1
            print(f"{source}: {sentence(error)}", file=sys.stderr)
    versions = f" ({', '.join(f'{n} {version}' for version, n in written.most_common())})" if written else ""
    print(f"{written.total()} written{versions}, {len(jobs) - len(left)} there already, {failed} failed")
    if len(left) < len(jobs):
        say("what was there stays, whatever it was made from and how; --overwrite makes it anew")
    if failed:
        raise ValueError(f"{failed} files failed; the others are done. Run again after mending them")
