"""Many photos: a folder of pictures to ``.psic`` files and back, by several processes, taken up where it stopped."""

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tqdm import tqdm

from psic_core import bitstream, keys
from psic_core.codec import PSIC
from psic_core.models.images import SUFFIXES, load_image, save_image
from psic_core.training.checkpoints import load_checkpoint
from psic_core.training.files import whole

_model: PSIC  # of a worker


class Job(NamedTuple):
    """One file to make."""

    source: Path
    output: Path


@dataclass(frozen=True)
class Work:
    """What to do with each file.

    Attributes:
        task: ``encode`` or ``decode``.
        checkpoint: A file or a shipped name.
        keyword: Sealed into each file, or tried on each.
        passphrase: The owner's, where the checkpoint does not hold its secret.
        quality: Level of a variable-rate model.
        tile: As for `PSIC.compress`.
        threads: Of PyTorch, in each worker; 0 leaves them alone.
    """

    task: Literal["encode", "decode"]
    checkpoint: str
    keyword: str | None = None
    passphrase: str | None = None
    quality: int | None = None
    tile: int | None = None
    threads: int = 0


class Outcome(NamedTuple):
    """How a folder went: numbers of files, and a sentence for each that failed."""

    written: int
    skipped: int
    failed: dict[Path, str]


def plan(folder: Path, out: Path, task: Literal["encode", "decode"]) -> list[Job]:
    """Every picture (or ``.psic`` file) below a folder, with its place below ``out``.

    ``a/cat.jpg`` becomes ``a/cat.psic``; beside an ``a/cat.png`` it becomes ``a/cat.jpg.psic``.

    Raises:
        ValueError: The folder holds none.
    """
    wanted, suffix = (SUFFIXES, ".psic") if task == "encode" else ({".psic"}, ".png")
    sources = sorted(p for p in folder.rglob("*") if p.suffix.lower() in wanted and p.is_file())
    if not sources:
        raise ValueError(f"{str(folder)!r} holds no file that ends in {', '.join(sorted(wanted))}")
    places = [out / source.relative_to(folder).with_suffix(suffix) for source in sources]
    return [
        Job(s, place if places.count(place) == 1 else place.with_name(s.name + suffix))
        for s, place in zip(sources, places, strict=True)
    ]


def run(jobs: Sequence[Job], work: Work, workers: int = 1, overwrite: bool = False) -> Outcome:
    """Make the files that are not there yet. A bad file is reported and does not stop the others.

    A file counts as there if it is younger than its source and, for ``encode``, whole and of the same model. It
    appears whole or not at all, so a run that was killed is simply started again.

    Args:
        jobs: Of `plan`.
        work: What to do.
        workers: Processes; each holds a model, and a large photo takes a gigabyte in each.
        overwrite: Make all anew.

    Raises:
        ValueError: The model cannot do it, there are no workers, or one was killed.
        FileNotFoundError: No such checkpoint.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    model = load(work)
    left = [job for job in jobs if overwrite or not _is_there(job, work, model)]
    workers = min(workers, len(left))
    failed: dict[Path, str] = {}
    with tqdm(total=len(left), desc=work.task, unit="file", disable=None) as bar:
        for job, error in _outcomes(left, work, workers, model):
            bar.update()
            if error:
                failed[job.source] = error
    return Outcome(len(left) - len(failed), len(jobs) - len(left), dict(sorted(failed.items())))


def load(work: Work) -> PSIC:
    """The model, able to do the work.

    Raises:
        ValueError: A keyword is to be sealed and the secret is missing; no such quality.
        FileNotFoundError: No such checkpoint.
    """
    model = load_checkpoint(work.checkpoint)
    if work.passphrase:
        model.secret = keys.secret(work.passphrase)
    model.coder.checked_quality(work.quality, model.config.quality)
    if work.task == "encode" and work.keyword and model.secret is None:
        raise ValueError("this checkpoint does not hold its secret; pass --passphrase PASSPHRASE")
    return model


def make(job: Job, work: Work, model: PSIC) -> None:
    """Make one file, whole or not at all.

    Raises:
        ValueError: The source cannot be read, or the output's suffix is no picture format.
        OSError: The output cannot be written.
    """
    with whole(job.output) as partial:
        if work.task == "encode":
            image = load_image(job.source)
            partial.write_bytes(model.compress(image, work.keyword, quality=work.quality, tile=work.tile))
        else:
            image = model.decompress(job.source.read_bytes(), work.keyword, tile=work.tile)
            save_image(image, partial, job.output.suffix)


def _is_there(job: Job, work: Work, model: PSIC) -> bool:
    if not job.output.is_file() or job.output.stat().st_mtime < job.source.stat().st_mtime:
        return False
    if work.task == "decode":
        return True
    try:
        stream = bitstream.unpack(job.output.read_bytes())
    except bitstream.BitstreamError:
        return False
    quality = model.coder.checked_quality(work.quality, model.config.quality)
    same = (stream.architecture, stream.quality, stream.fingerprint, bool(stream.slots))
    return same == (model.config.architecture, quality, model.fingerprint(), bool(work.keyword))


def _outcomes(jobs: list[Job], work: Work, workers: int, model: PSIC) -> Iterator[tuple[Job, str]]:
    """Each job as it is done, with what went wrong."""
    if workers <= 1:
        yield from ((job, _attempt(job, work, model)) for job in jobs)
        return
    spare = replace(work, threads=max(1, torch.get_num_threads() // workers))
    with ProcessPoolExecutor(workers, _context(), _start, (spare,)) as pool:
        futures = {pool.submit(_in_worker, job, spare): job for job in jobs}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                raise ValueError(
                    "a process was killed, for want of memory perhaps: try fewer --workers or --tile 512; files that "
                    "are done stay, run again for the others"
                ) from None


def _context() -> BaseContext:
    """Processes from a server that has loaded PyTorch once, where the system can fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start(work: Work) -> None:
    global _model
    torch.set_num_threads(work.threads)
    _model = load(work)


def _in_worker(job: Job, work: Work) -> str:
    return _attempt(job, work, _model)


def _attempt(job: Job, work: Work, model: PSIC) -> str:
    """Make one file; returns what went wrong, or nothing."""
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        make(job, work, model)
    except Exception as error:  # whatever one file does, the others go on
        return f"{type(error).__name__}: {error}" if not isinstance(error, (ValueError, OSError)) else str(error)
    return ""


def run_folder(folder: Path, output: Path, work: Work, workers: int, overwrite: bool) -> None:
    """`plan`, `run` and `report` for the command line.

    Raises:
        ValueError: The output is a file, or a file failed.
    """
    if output.is_file():
        raise ValueError(f"{str(output)!r} is a file; a folder of files goes into a folder")
    report(run(plan(folder, output, work.task), work, workers, overwrite))


def report(outcome: Outcome) -> None:
    """Say how it went: failures on stderr.

    Raises:
        ValueError: A file failed.
    """
    for source, error in outcome.failed.items():
        print(f"{source}: {error}", file=sys.stderr)
    print(f"{outcome.written} written, {outcome.skipped} there already, {len(outcome.failed)} failed")
    if outcome.failed:
        raise ValueError(f"{len(outcome.failed)} files failed; the others are done. Run again after mending them")
