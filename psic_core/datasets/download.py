"""Data sets of the catalogue, downloaded, checked, and moved in place as a whole."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from psic_core.datasets.catalogue import DataSet
from psic_core.datasets.disk import check_room, room
from psic_core.datasets.transfer import DownloadError, Receipt, fetch

LOCK = "SOURCE.json"  # what was downloaded, in the data set's folder


def get(data: DataSet, root: Path) -> list[Receipt]:
    """Download a data set into ``root/NAME``, in the layout that `psic_core.datasets.folders` reads.

    All happens in ``root/NAME.partial``, which stays for a later call until the whole has been moved in place.

    Args:
        data: The data set.
        root: The data root; made where missing.

    Returns:
        What was downloaded; nothing where the data set is there.

    Raises:
        DownloadError: A file could not be had; says what to do by hand.
        DiskFullError: There is no room.
        FileExistsError: The folder holds something else, or a part of the data set.
        ValueError: What was downloaded is not the data set.
    """
    if data.is_in(root):
        return []
    place, work = root / data.name, root / f"{data.name}.partial"
    _refuse_part(data, place)
    work.mkdir(parents=True, exist_ok=True)
    built = work / "unpacked"
    shutil.rmtree(built, ignore_errors=True)  # of a run that was stopped
    there = sum(path.stat().st_size for path in work.iterdir())
    check_room(root, 2 * (data.size or 0) - there, data.name)  # twice: pictures in a zip file are hardly smaller
    locked = _locked(place / LOCK)
    try:
        receipts = [fetch(source, work, locked.get(source.name)) for source in data.sources]
    except DownloadError as error:
        raise DownloadError(f"{error}; {_remedy(data, place, work)}") from error
    built.mkdir()
    with room(work, lambda: None, data.name):
        data.build(work, built)
        _inspect(data, built, work)
        (built / LOCK).write_text(json.dumps([asdict(r) for r in receipts], indent=1) + "\n", encoding="utf-8")
    if place.is_dir():  # with nothing but an old lock, see `_refuse_part`
        (place / LOCK).unlink(missing_ok=True)
        place.rmdir()
    os.replace(built, place)
    shutil.rmtree(work)
    return receipts


def _refuse_part(data: DataSet, place: Path) -> None:
    """Leave alone what somebody has put there."""
    held = sorted({path.name for path in place.iterdir()} - {LOCK}) if place.is_dir() else []
    if held:
        missing = next(path for path in data.needs if not (place / path).exists())
        raise FileExistsError(
            f"{str(place)!r} holds {held[0]!r} but not {missing!r}; add what is missing ({data.layout}) or move "
            "the folder away"
        )


def _locked(path: Path) -> dict[str, str]:
    """The sha256 of each file of an earlier download, where its lock is left."""
    if not path.is_file():
        return {}
    try:
        return {str(row["name"]): str(row["sha256"]) for row in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{str(path)!r} is no list of downloads ({error!r}); delete it") from error


def _remedy(data: DataSet, place: Path, work: Path) -> str:
    return (
        f"connect this computer to the internet and run it again, or bring the file from elsewhere into {str(work)!r} "
        f"and run it again, or place {data.layout} in {str(place)!r} by hand"
    )


def _inspect(data: DataSet, built: Path, work: Path) -> None:
    """See that all is there; without a published checksum, that every picture opens too."""
    missing = [path for path in data.needs if not (built / path).exists()]
    pictures = [path for path in built.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    fault = f"no {missing[0]}" if missing else ""
    if not fault and len(pictures) != data.pictures:
        fault = f"{len(pictures):,} pictures, not {data.pictures:,}"
    for path in pictures if not (fault or data.published) else ():
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            fault = f"a damaged {path.name} ({error})"
            break
    if fault:
        raise ValueError(f"the files downloaded for {data.name} have {fault}; delete {str(work)!r} and run it again")
