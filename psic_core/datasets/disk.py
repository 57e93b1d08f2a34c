"""Room on the disk, and zip files unpacked into it without trusting them."""

import errno
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm


class DiskFullError(OSError):
    """There is no room; what has been downloaded stays, for a later run."""


def check_room(folder: Path, needed: int, what: str) -> None:
    """See that the disk of a folder has so many bytes free.

    Args:
        folder: A folder that exists.
        needed: Bytes.
        what: What they are for.

    Raises:
        DiskFullError: It has not; says how many are needed and how many are free.
    """
    if needed > shutil.disk_usage(folder).free:
        raise DiskFullError(_full(folder, needed, what))


@contextmanager
def room(folder: Path, needed: Callable[[], int | None], what: str) -> Iterator[None]:
    """Tell in a sentence that the disk became full while something was written.

    Args:
        folder: Where it is written.
        needed: Gives the bytes that are still missing, ``None`` where nobody knows.
        what: What is written.

    Raises:
        DiskFullError: In place of the system's own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(_full(folder, needed(), what)) from error
        raise


def _full(folder: Path, needed: int | None, what: str) -> str:
    more = "more room" if needed is None else f"{needed:,} bytes more"
    return (
        f"no room in {str(folder)!r}: {what} needs {more}, {shutil.disk_usage(folder).free:,} bytes are free; "
        "make room and run it again, it goes on from what is there"
    )


class _UnsafeError(Exception):
    """A member of a zip file is not a plain file below the folder."""


def unpack(archive: Path, into: Path, place: Callable[[str], str | None]) -> None:
    """Write members of a zip file below a folder; an archive that is damaged or unsafe is deleted.

    Args:
        archive: The zip file.
        into: The folder, which exists.
        place: A member's name to its path below the folder; ``None`` leaves it out.

    Raises:
        ValueError: Damaged (every CRC is checked), or a member is a link or leads out of the folder.
        DiskFullError: There is no room.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for info in members.infolist():
                _refuse_unsafe(info)
            wanted = [(i, into / to) for i in members.infolist() if not i.is_dir() and (to := place(i.filename))]
            check_room(into, sum(info.file_size for info, _ in wanted), archive.name)
            with room(into, lambda: None, archive.name):
                for info, path in tqdm(wanted, desc=archive.name, unit="files", disable=None):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with members.open(info) as source, path.open("wb") as out:
                        shutil.copyfileobj(source, out)
    except (_UnsafeError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        archive.unlink()
        raise ValueError(f"{archive.name} cannot be unpacked: {error}; it was deleted, run it again") from error


def _refuse_unsafe(info: zipfile.ZipInfo) -> None:
    """All of an archive is refused for one such member, wanted or not: whoever put it there is not to be trusted."""
    name = PurePosixPath(info.filename)
    if stat.S_ISLNK(info.external_attr >> 16):
        raise _UnsafeError(f"its member {info.filename!r} is a link")
    if name.is_absolute() or ".." in name.parts or "\\" in info.filename:
        raise _UnsafeError(f"its member {info.filename!r} leads out of the folder")
