"""One file from the web into a folder: mirrors in order, resumed after a cut, checked before it counts.

Own code over urllib, because pooch and torchvision's helpers begin a cut download anew. Resuming is RFC 9110's: Range
asks for the rest, If-Range (the ETag, or the date) for all of it where the file has changed meanwhile.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from psic_core.datasets.disk import check_room, room

CHUNK = 1 << 16  # bytes
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 6  # at one address whose connection is cut
PAUSE = 2.0  # seconds before the next of them
BY_HAND = "placed by hand"  # in place of an address


class DownloadError(OSError):
    """No address gave the file."""


class _UnfitError(Exception):
    """This address does not give the file."""


class _CutError(_UnfitError):
    """This address may give it at the next attempt."""


@dataclass(frozen=True)
class Source:
    """A file in the web.

    Args:
        name: What it is called on disk.
        urls: Its address, then mirrors with the same bytes.
        size: Bytes, where known.
        sha256: As published, in hex; ``None`` where nobody has.
        md5: As published, in hex; it finds damage, not malice.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Receipt:
    """What was downloaded: from where, its size in bytes, its sha256 in hex, and the day (UTC, ISO 8601)."""

    name: str
    url: str
    bytes: int
    sha256: str
    date: str


def fetch(source: Source, folder: Path, expected: str | None = None) -> Receipt:
    """Download a file to ``folder``, unless it is there and right; it has its name only once it is checked.

    Until then it is ``NAME.partial``, which a later call goes on with.

    Args:
        source: The file.
        folder: Made where missing.
        expected: The sha256 that an earlier download had, for a file without a published one.

    Raises:
        DownloadError: No address gave it; each is named, with the reason.
        DiskFullError: There is no room for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, faults = folder / source.name, []
    if path.is_file():
        try:
            return _there(source, path, expected)
        except _UnfitError as error:
            faults.append(f"{path} ({error})")
    for url in source.urls:
        try:
            partial = _transfer(url, source, folder)
            digest = _check(source, partial, expected)
        except _UnfitError as error:
            faults.append(f"{url} ({error})")
            continue
        receipt = Receipt(source.name, url, partial.stat().st_size, digest, _today())
        _beside(path).write_text(json.dumps(asdict(receipt)), encoding="utf-8")
        os.replace(partial, path)
        _beside(partial).unlink(missing_ok=True)
        return receipt
    raise DownloadError(f"cannot download {source.name} from {', nor from '.join(faults)}")


def _there(source: Source, path: Path, expected: str | None) -> Receipt:
    """The receipt of a file that an earlier run, or a person, left in the folder."""
    digest = _check(source, path, expected)
    noted = _note(_beside(path))
    if noted.get("sha256") == digest:
        return Receipt(**noted)
    return Receipt(source.name, BY_HAND, path.stat().st_size, digest, _today())


def _check(source: Source, path: Path, expected: str | None) -> str:
    """The sha256 of a file that is as published; one that is not is deleted."""
    size, fault = path.stat().st_size, ""
    md5, sha256 = _digests(path)
    if source.size not in (None, size):
        fault = f"its {size:,} bytes are not {source.size:,}"
    elif source.sha256 not in (None, sha256):
        fault = f"its sha256 is {sha256}, not {source.sha256} as published"
    elif source.md5 not in (None, md5):
        fault = f"its md5 is {md5}, not {source.md5} as published"
    elif not source.sha256 and expected not in (None, sha256):
        fault = f"its sha256 is {sha256}, not {expected} as the SOURCE.json here says; delete that to take the new file"
    if fault:
        path.unlink()
        raise _UnfitError(f"{fault}; the bad file was deleted")
    return sha256


def _digests(path: Path) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


def _transfer(url: str, source: Source, folder: Path) -> Path:
    """The whole file, unchecked, in as many attempts as are allowed."""
    partial = folder / f"{source.name}.partial"
    for _ in range(ATTEMPTS - 1):
        with suppress(_CutError):
            return _receive(url, source, partial)
        time.sleep(PAUSE)
    return _receive(url, source, partial)


def _receive(url: str, source: Source, partial: Path) -> Path:
    """One attempt: ask for what is missing, append it."""
    have, validator = _resumable(url, source, partial)
    if have and have == source.size:
        return partial
    with _ask(url, partial, have, validator) as reply:
        start, total = _extent(reply)
        new = _validator(reply)
        if start and (start != have or (validator and new and new != validator)):
            partial.unlink()  # a server that does not know If-Range
            raise _CutError("the file changed at the server")
        if None not in (source.size, total) and total != source.size:
            raise _UnfitError(f"it offers {total:,} bytes, not {source.size:,}")
        total = source.size if total is None else total
        _beside(partial).write_text(json.dumps({"url": url, "validator": new}), encoding="utf-8")
        _append(reply, partial, start, total)
    size = partial.stat().st_size
    if total is not None and size < total:  # urllib takes an early end for the end
        raise _CutError(f"the connection ended after {size:,} of {total:,} bytes")
    return partial


def _resumable(url: str, source: Source, partial: Path) -> tuple[int, str | None]:
    """How many bytes there are to go on from, and what says that the file is still the same.

    Without either a published checksum or a validator of this very address, nothing would: then from the start.
    """
    have = partial.stat().st_size if partial.is_file() else 0
    noted = _note(_beside(partial))
    validator = noted.get("validator") if noted.get("url") == url else None
    return (have, validator) if validator or source.sha256 or source.md5 else (0, None)


def _ask(url: str, partial: Path, have: int, validator: str | None) -> HTTPResponse:
    headers = {"User-Agent": "psic-core"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # no bytes follow those that we have: they are of another file
            partial.unlink(missing_ok=True)
        passing = error.code in (416, 429) or error.code >= 500
        raise (_CutError if passing else _UnfitError)(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _UnfitError(getattr(reason, "strerror", None) or str(reason)) from error


def _extent(reply: HTTPResponse) -> tuple[int, int | None]:
    """Where in the file the reply begins, and the file's length where the server says it, both in bytes."""
    if reply.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
        if not match:
            raise _UnfitError(f"it answers a range with Content-Range {reply.headers.get('Content-Range')!r}")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = reply.headers.get("Content-Length")
    return 0, None if length is None else int(length)


def _validator(reply: HTTPResponse) -> str | None:
    """What If-Range may hold: a strong ETag, else the date."""
    etag = reply.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else reply.headers.get("Last-Modified")


def _append(reply: HTTPResponse, partial: Path, start: int, total: int | None) -> None:
    check_room(partial.parent, (total or start) - start, partial.stem)
    with (
        room(partial.parent, lambda: total and total - partial.stat().st_size, partial.stem),
        partial.open("ab" if start else "wb") as out,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem, disable=None) as bar,
    ):
        for block in _blocks(reply):
            out.write(block)
            bar.update(len(block))


def _blocks(reply: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = reply.read(CHUNK)
        except (OSError, HTTPException) as error:
            raise _CutError(f"the connection broke: {error}") from error
        if not block:
            return
        yield block


def _beside(path: Path) -> Path:
    """Where it is noted what a file is."""
    return path.with_name(f"{path.name}.json")


def _note(path: Path) -> dict[str, str | int | None]:
    """A note, or nothing where there is none or a crash has cut it."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()
