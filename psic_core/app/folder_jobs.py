"""Many photos: a folder of pictures to ``.psic`` files and back, by several processes, taken up where it stopped.

A record beside the outputs says of each what it was made from and how: a folder of full pictures looks like one of
protected pictures, and a copied photo keeps its time. Only an output that is what is asked for is passed over. Another
one is refused, or made anew with ``overwrite``.
"""

import hashlib
import json
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tqdm import tqdm

from psic_core import keys
from psic_core.app.words import say, sentence
from psic_core.bitstream import MAX_PIXELS
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_SECRET
from psic_core.models.images import SUFFIXES, load_image, save_image
from psic_core.training.checkpoints import find_checkpoint, load_checkpoint
from psic_core.training.files import whole

RECORD = ".psic-record.jsonl"
OVERWRITE = "pass --overwrite to replace it, or name another output"


class Job(NamedTuple):
    """One file to make."""

    source: Path
    output: Path


@dataclass(frozen=True)
class Work:
    """What to do with each file; ``tile`` and ``max_pixels`` as for `PSIC.compress`, ``quality`` likewise."""

    task: Literal["encode", "decode"]
    checkpoint: str
    keyword: str | None = None
    passphrase: str | None = None
    quality: int | None = None
    tile: int | None = None
    max_pixels: int = MAX_PIXELS
    adapt: Literal["carried", "sealed"] | None = None


class Record:
    """What is known of the outputs in a folder: a line of JSON each, the last one of a name counts."""

    def __init__(self, out: Path, work: Work) -> None:
        self.out, self.path = out, out / RECORD
        self.lines: dict[str, Any] = {}
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            try:
                self.lines |= json.loads(line)
            except (ValueError, TypeError):
                continue  # a run was killed while it wrote the line
        self.salt = bytes.fromhex(self.lines.get("salt", os.urandom(keys.SALT_BYTES).hex()))
        mark = keys.mark(work.keyword, self.salt).hex() if work.keyword else None  # as costly to guess from as a slot
        checkpoint = facts(find_checkpoint(work.checkpoint))
        self.how = {"task": work.task, "checkpoint": checkpoint, "quality": work.quality, "keyword": mark}
        self.how["adapt"] = work.adapt

    def fault(self, job: Job) -> str:
        """Why an output that is there is not what is asked for, or nothing."""
        found, name = self.lines.get(job.output.relative_to(self.out).as_posix()), repr(str(job.output))
        if not isinstance(found, dict):
            return f"{name} is there already, and nothing says from what"
        if found.get("output") != facts(job.output):
            return f"{name} was changed since it was made"
        other = [k for k, v in self.how.items() if found.get("how", {}).get(k) != v]
        other += ["source"] if found.get("source") != facts(job.source) else []
        return f"{name} is there already, made with another {', another '.join(other)}" if other else ""

    def add(self, job: Job, made: Path) -> None:
        """Append what is about to take its place: what is done is known even if the run is killed."""
        line = {"source": facts(job.source), "output": facts(made), "how": self.how}
        with self.path.open("a") as file:  # of several processes too: a line is written at once
            file.write(json.dumps({"salt": self.salt.hex(), job.output.relative_to(self.out).as_posix(): line}) + "\n")


def facts(path: Path) -> list[int | str]:
    """A file's size and SHA-256."""
    data = path.read_bytes()
    return [len(data), hashlib.sha256(data).hexdigest()]


def plan(folder: Path, out: Path, task: Literal["encode", "decode"]) -> tuple[list[Job], Counter[str]]:
    """Every picture (or ``.psic`` file) below a folder with its place below ``out``, and what is left out by suffix.

    ``a/cat.jpg`` becomes ``a/cat.psic``; beside an ``a/cat.png`` it becomes ``a/cat.jpg.psic``.

    Raises:
        ValueError: The folder holds none, or two would get one name.
    """
    wanted, suffix = (SUFFIXES, ".psic") if task == "encode" else ({".psic"}, ".png")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != RECORD)
    sources = [p for p in files if p.suffix.lower() in wanted]
    if not sources:
        raise ValueError(f"{str(folder)!r} holds no file that ends in {', '.join(sorted(wanted))}")
    places = [out / source.relative_to(folder).with_suffix(suffix) for source in sources]
    many = Counter(str(place).casefold() for place in places)
    jobs = [
        Job(s, place if many[str(place).casefold()] == 1 else place.with_name(s.name + suffix))
        for s, place in zip(sources, places, strict=True)
    ]
    twice, times = Counter(str(job.output).casefold() for job in jobs).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{twice!r} would be written {times} times; rename one of its sources")
    return jobs, Counter(p.suffix.lower() or p.name for p in files if p.suffix.lower() not in wanted)


def run(
    jobs: list[Job], out: Path, work: Work, workers: int = 1, overwrite: bool = False
) -> tuple[Counter[str], int, dict[Path, str]]:
    """Make what is not there as it is asked for. A bad file is reported and does not stop the others.

    A file appears whole or not at all, so a run that was killed is simply started again.

    Args:
        jobs: Of `plan`.
        out: The folder of the outputs.
        work: What to do.
        workers: Processes; each holds a model, and a large photo takes a gigabyte in each.
        overwrite: Make anew what is there but is not what is asked for; else it counts as failed.

    Returns:
        How many were written, by version; how many were there; and a sentence for each that failed.

    Raises:
        ValueError: The model cannot do it, or there are no workers.
        FileNotFoundError: No such checkpoint.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    model, known = load(work), Record(out, work)
    sources, left, failed = {job.source.resolve() for job in jobs}, [], {}
    for job in jobs:
        if job.output.resolve() in sources:
            failed[job.source] = f"{str(job.output)!r} is one of the sources; name another output"
        elif not job.output.exists():
            left.append(job)
        elif fault := known.fault(job):
            left.append(job) if overwrite else failed.update({job.source: f"{fault}; {OVERWRITE}"})
    kept, written = len(jobs) - len(left) - len(failed), Counter()
    for job, version, error in tqdm(_made(left, work, workers, model, known), work.task, len(left), disable=None):
        if error:
            failed[job.source] = error
        else:
            written[version] += 1
    return written, kept, dict(sorted(failed.items()))


def _made(jobs: list[Job], work: Work, workers: int, *shared: Any) -> Iterator[tuple[Job, str, str]]:
    """Each job as it is done, with its version, or what went wrong."""
    if min(workers, len(jobs)) <= 1:
        yield from ((job, *_attempt(job, work, *shared)) for job in jobs)
        return
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (work, shared[1], threads)) as pool:
        futures = {pool.submit(_in_worker, job, work): job for job in jobs}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], *future.result()
                except BrokenProcessPool:
                    yield futures[future], "", "a worker was killed; is there too little memory? Try fewer workers"
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(work: Work, known: Record, threads: int) -> None:
    """What a worker does first; it ends with its parent, and leaves Ctrl-C to it."""
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    warnings.showwarning = say
    _shared = load(work), known


def _in_worker(job: Job, work: Work) -> tuple[str, str]:
    return _attempt(job, work, *_shared)


def _attempt(job: Job, work: Work, model: PSIC, known: Record) -> tuple[str, str]:
    """Make one file; returns its version, and what went wrong."""
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        return make(job, work, model, known), ""
    except Exception as error:  # whatever one file does, the others go on
        return "", sentence(error)


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
    if work.adapt == "sealed":
        if not work.keyword and not multiprocessing.parent_process():
            say("sealed without a keyword: nobody will ever decode a full version of these files, you neither")
        return model
    if work.task == "encode" and work.keyword and model.secret is None:
        raise ValueError("this checkpoint does not hold its secret; pass --passphrase PASSPHRASE")
    public = model.secret == PUBLIC_SECRET or model.card.get("public")
    if work.task == "encode" and public and not multiprocessing.parent_process():
        say("the secret of this model is public: whoever has the model decodes its files in full, whatever the keyword")
    return model


def checked(job: Job, overwrite: bool) -> None:
    """Refuse before anything is done.

    Raises:
        FileNotFoundError: There is no source.
        ValueError: The output is there already, or is the source.
    """
    if not job.source.is_file():
        raise FileNotFoundError(f"no file {str(job.source)!r}")
    if job.output.exists() and job.output.samefile(job.source):
        raise ValueError(f"{str(job.output)!r} is the source itself; name another output")
    if job.output.exists() and not overwrite:
        raise ValueError(f"{str(job.output)!r} is there already; {OVERWRITE}")


def make(job: Job, work: Work, model: PSIC, known: Record | None = None) -> str:
    """Make one file, whole or not at all, and record it; returns its version.

    Raises:
        ValueError: The source cannot be read, or the output's suffix is no picture format.
        OSError: The output cannot be written.
    """
    with whole(job.output) as partial:
        options = {"tile": work.tile, "max_pixels": work.max_pixels}
        if work.task == "encode":
            image = load_image(job.source, work.max_pixels)
            partial.write_bytes(model.compress(image, work.keyword, quality=work.quality, adapt=work.adapt, **options))
            version = "with a keyword" if work.keyword else "without keyword"
        else:
            image = model.decompress(job.source.read_bytes(), work.keyword, **options)
            save_image(image, partial, job.output.suffix)
            version = image.info["version"]
        if known:
            known.add(job, partial)
        return version


def run_folder(folder: Path, out: Path, work: Work, workers: int, overwrite: bool) -> None:
    """`plan` and `run` for the command line; failures, and what was left out, are told on stderr.

    Raises:
        ValueError: The output is a file, or a file failed.
    """
    if out.is_file():
        raise ValueError(f"{str(out)!r} is a file; a folder of files goes into a folder")
    jobs, skipped = plan(folder, out, work.task)
    written, kept, failed = run(jobs, out, work, workers, overwrite)
    for source, error in failed.items():
        print(f"{source}: {error}", file=sys.stderr)
    if skipped:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in skipped.most_common())
        print(f"left out, because they do not end as pictures do that can be read: {kinds}", file=sys.stderr)
    versions = f" ({', '.join(f'{n} {version}' for version, n in written.most_common())})" if written else ""
    print(f"{written.total()} written{versions}, {kept} there already, {len(failed)} failed")
    if failed:
        raise ValueError(f"{len(failed)} files failed; the others are done. Run again after mending them")
