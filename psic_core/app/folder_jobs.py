"""Many photos: a folder of pictures to ``.psic`` files and back, by several processes, taken up where it stopped.

A record beside the outputs says of each what it was made from and how (`psic_core.app.record`). Only an output that is
what is asked for is passed over. Another one is refused, or made anew with ``overwrite``.
"""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tqdm import tqdm

from psic_core.app import record
from psic_core.app.record import facts
from psic_core.app.words import say, sentence
from psic_core.bitstream import MAX_PIXELS
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_SECRET
from psic_core.models.images import SUFFIXES, load_image, save_image
from psic_core.training.checkpoints import find_checkpoint, load_checkpoint
from psic_core.training.files import whole

OVERWRITE = "pass --overwrite to replace it, or name another output"
_model: PSIC  # of a worker
_known: record.Record  # likewise


class Job(NamedTuple):
    """One file to make."""

    source: Path
    output: Path


class Plan(NamedTuple):
    """What to make in a folder, and how many files of each suffix are left out."""

    out: Path
    jobs: list[Job]
    skipped: Counter[str]


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
        max_pixels: Likewise.
        threads: Of PyTorch, in each worker; 0 leaves them alone.
    """

    task: Literal["encode", "decode"]
    checkpoint: str
    keyword: str | None = None
    passphrase: str | None = None
    quality: int | None = None
    tile: int | None = None
    max_pixels: int = MAX_PIXELS
    threads: int = 0


class Outcome(NamedTuple):
    """How a folder went: files written, by version; passed over; and a sentence for each that failed."""

    written: Counter[str]
    kept: int
    failed: dict[Path, str]


def plan(folder: Path, out: Path, task: Literal["encode", "decode"]) -> Plan:
    """Every picture (or ``.psic`` file) below a folder, with its place below ``out``.

    ``a/cat.jpg`` becomes ``a/cat.psic``; beside an ``a/cat.png`` it becomes ``a/cat.jpg.psic``.

    Raises:
        ValueError: The folder holds none, or two would get one name.
    """
    wanted, suffix = (SUFFIXES, ".psic") if task == "encode" else ({".psic"}, ".png")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != record.NAME)
    sources = [p for p in files if p.suffix.lower() in wanted]
    if not sources:
        raise ValueError(f"{str(folder)!r} holds no file that ends in {', '.join(sorted(wanted))}")
    places = [out / source.relative_to(folder).with_suffix(suffix) for source in sources]
    many = Counter(str(place).casefold() for place in places)
    jobs = [
        Job(s, place if many[str(place).casefold()] == 1 else place.with_name(s.name + suffix))
        for s, place in zip(sources, places, strict=True)
    ]
    twice = Counter(str(job.output).casefold() for job in jobs).most_common(1)[0]
    if twice[1] > 1:
        raise ValueError(f"{twice[0]!r} would be written {twice[1]} times; rename one of its sources")
    return Plan(out, jobs, Counter(p.suffix.lower() or p.name for p in files if p.suffix.lower() not in wanted))


def run(planned: Plan, work: Work, workers: int = 1, overwrite: bool = False) -> Outcome:
    """Make what is not there as it is asked for. A bad file is reported and does not stop the others.

    A file appears whole or not at all, so a run that was killed is simply started again.

    Args:
        planned: Of `plan`.
        work: What to do.
        workers: Processes; each holds a model, and a large photo takes a gigabyte in each.
        overwrite: Make anew what is there but is not what is asked for; else it counts as failed.

    Raises:
        ValueError: The model cannot do it, or there are no workers.
        FileNotFoundError: No such checkpoint.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    model, how = load(work), {"task": work.task, "checkpoint": facts(find_checkpoint(work.checkpoint))}
    known = record.Record(planned.out, how | {"quality": work.quality}, work.keyword)
    sources = {job.source.resolve() for job in planned.jobs}
    left: list[Job] = []
    failed: dict[Path, str] = {}
    for job in planned.jobs:
        if job.output.resolve() in sources:
            failed[job.source] = f"{str(job.output)!r} is one of the sources; name another output"
        elif not job.output.exists():
            left.append(job)
        elif fault := known.fault(job.source, job.output):
            left.append(job) if overwrite else failed.update({job.source: f"{fault}; {OVERWRITE}"})
    kept, written = len(planned.jobs) - len(left) - len(failed), Counter()
    with tqdm(total=len(left), desc=work.task, unit="file", disable=None) as bar:
        for job, version, error in _made(left, work, min(workers, len(left)), model, known):
            bar.update()
            if error:
                failed[job.source] = error
            else:
                written[version] += 1
    return Outcome(written, kept, dict(sorted(failed.items())))


def load(work: Work) -> PSIC:
    """The model, able to do the work.

    Raises:
        ValueError: A keyword is to be sealed and the secret is missing, or not the model's; no such quality.
        FileNotFoundError: No such checkpoint.
    """
    model = load_checkpoint(work.checkpoint)
    if work.passphrase:
        model.unlock(work.passphrase)
    model.coder.checked_quality(work.quality, model.config.quality)
    if work.task == "encode" and work.keyword and model.secret is None:
        raise ValueError("this checkpoint does not hold its secret; pass --passphrase PASSPHRASE")
    public = model.secret == PUBLIC_SECRET or model.card.get("public")
    if work.task == "encode" and public and not multiprocessing.parent_process():
        say("the secret of this model is public: whoever has the model decodes its files in full, whatever the keyword")
    return model


def run_one(job: Job, work: Work, overwrite: bool) -> str:
    """Make one file; returns its version.

    Raises:
        FileNotFoundError: There is no source.
        ValueError: As `make`; or the output is there already, or is the source.
    """
    checked(job, overwrite)
    return make(job, work, load(work))


def checked(job: Job, overwrite: bool) -> None:
    """Raise what `run_one` raises before anything is done."""
    if not job.source.is_file():
        raise FileNotFoundError(f"no file {str(job.source)!r}")
    if job.output.exists() and job.output.samefile(job.source):
        raise ValueError(f"{str(job.output)!r} is the source itself; name another output")
    if job.output.exists() and not overwrite:
        raise ValueError(f"{str(job.output)!r} is there already; {OVERWRITE}")


def make(job: Job, work: Work, model: PSIC, known: record.Record | None = None) -> str:
    """Make one file, whole or not at all, and record it; returns its version.

    Raises:
        ValueError: The source cannot be read, or the output's suffix is no picture format.
        OSError: The output cannot be written.
    """
    with whole(job.output) as partial:
        source, options = facts(job.source), {"tile": work.tile, "max_pixels": work.max_pixels}
        if work.task == "encode":
            image = load_image(job.source, work.max_pixels)
            partial.write_bytes(model.compress(image, work.keyword, quality=work.quality, **options))
            version = "with a keyword" if work.keyword else "without keyword"
        else:
            image = model.decompress(job.source.read_bytes(), work.keyword, **options)
            save_image(image, partial, job.output.suffix)
            version = image.info["version"]
        if known:
            known.add(job.output, {"source": source, "output": facts(partial), "version": version})
        return version


def _made(
    jobs: list[Job], work: Work, workers: int, model: PSIC, known: record.Record
) -> Iterator[tuple[Job, str, str]]:
    """Each job as it is done, with its version, or what went wrong."""
    if workers <= 1:
        yield from ((job, *_attempt(job, work, model, known)) for job in jobs)
        return
    spare = replace(work, threads=max(1, torch.get_num_threads() // workers))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (spare, known)) as pool:
        futures = {pool.submit(_in_worker, job, spare): job for job in jobs}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], *future.result()
                except BrokenProcessPool:
                    yield futures[future], "", "a worker was killed; is there too little memory? Try fewer workers"
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(work: Work, known: record.Record) -> None:
    """What a worker does first; it ends with its parent, and leaves Ctrl-C to it."""
    global _model, _known
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(work.threads)
    warnings.showwarning = say
    _model, _known = load(work), known


def _in_worker(job: Job, work: Work) -> tuple[str, str]:
    return _attempt(job, work, _model, _known)


def _attempt(job: Job, work: Work, model: PSIC, known: record.Record) -> tuple[str, str]:
    """Make one file; returns its version, and what went wrong."""
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        return make(job, work, model, known), ""
    except Exception as error:  # whatever one file does, the others go on
        return "", sentence(error)


def run_folder(folder: Path, output: Path, work: Work, workers: int, overwrite: bool) -> None:
    """`plan`, `run` and `report` for the command line.

    Raises:
        ValueError: The output is a file, or a file failed.
    """
    if output.is_file():
        raise ValueError(f"{str(output)!r} is a file; a folder of files goes into a folder")
    planned = plan(folder, output, work.task)
    report(planned, run(planned, work, workers, overwrite))


def report(planned: Plan, outcome: Outcome) -> None:
    """Say how it went: failures, and what was left out, on stderr.

    Raises:
        ValueError: A file failed.
    """
    for source, error in outcome.failed.items():
        print(f"{source}: {error}", file=sys.stderr)
    if planned.skipped:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in planned.skipped.most_common())
        print(f"left out, because they do not end as pictures do that can be read: {kinds}", file=sys.stderr)
    versions = ", ".join(f"{n} {version}" for version, n in outcome.written.most_common())
    versions = f" ({versions})" if versions else ""
    total = outcome.written.total()
    print(f"{total} written{versions}, {outcome.kept} there already, {len(outcome.failed)} failed")
    if outcome.failed:
        raise ValueError(f"{len(outcome.failed)} files failed; the others are done. Run again after mending them")
