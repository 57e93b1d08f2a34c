"""The real data sets that others publish: fetched, checked, and moved in place as a whole.

``python data/get.py`` lists them; with names it downloads. ``downloads.json`` says where they are, what they should be,
and on whose terms. Own code over urllib, because pooch and torchvision's helpers begin a cut download anew.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from tqdm import tqdm

from psic_core.config import data_dir
from psic_core.models.images import SUFFIXES, load_image

ATTEMPTS = 4  # at one address whose connection is cut
MOST = 2**36  # bytes of a file whose size is not published
TIMEOUT = 30.0  # seconds without a byte


def catalogue() -> dict[str, dict[str, Any]]:
    """What there is: ``home``, ``terms``, ``layout``, ``pictures``, ``needs`` and ``sources`` of each data set."""
    return json.loads((data_dir() / "downloads.json").read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """Download what is named, or list all there is; a mistake is one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser("python data/get.py", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to download; without any all is listed")
    parser.add_argument("--data-root", help="folder for the data sets (PSIC_DATA_ROOT); made where missing")
    args = parser.parse_args(argv)
    given = args.data_root or os.environ.get("PSIC_DATA_ROOT")
    root = Path(given) if given else None
    if not args.names:
        show(root)
        return 0
    try:
        for name in args.names:
            about = catalogue().get(name, {})
            if name in WEIGHTS:
                for path in weights(name):
                    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, checksum right")
            elif root is None:
                raise ValueError("no folder for the data sets: pass --data-root DIR or set PSIC_DATA_ROOT=DIR")
            elif get(name, root):
                print(f"{name}: {about['pictures']:,} pictures in {root / name}; {about['terms']} ({about['home']})")
            else:
                print(f"{name}: is there, in {root / name}")
    except (ValueError, OSError) as error:
        print(f"data/get.py: {error}", file=sys.stderr)
        return 2
    return 0


def show(root: Path | None) -> None:
    """The data sets: what there is to download, on whose terms, and what is there."""
    for name, about in catalogue().items():
        sizes = [source.get("size") for source in about["sources"]]
        size = "size unknown" if None in sizes else f"{sum(sizes) / 1e6:,.0f} MB"
        there = "is there" if root is not None and is_there(name, root) else ""
        what = "weights" if name in WEIGHTS else f"{about['pictures']:>8,} pictures"
        print(f"{name:16} {size:>12} {what}  {there}".rstrip())
        print(f"{'':16} {about['home']} - {about['terms']}")


def is_there(name: str, root: Path) -> bool:
    """Whether a data root has all that a data set needs."""
    return name not in WEIGHTS and all((root / name / path).exists() for path in catalogue()[name]["needs"])


def weights(name: str) -> list[Path]:
    """Download weights to where open_clip and ``torch.hub`` look for them; errors as `fetch`."""
    folders = {"clip": Path("~/.cache/clip").expanduser(), "hub": Path(torch.hub.get_dir()) / "checkpoints"}
    places = [(source, folders[source["into"]]) for source in catalogue()[name]["sources"]]
    for source, folder in places:
        folder.mkdir(parents=True, exist_ok=True)
        fetch(source, folder)
    return [folder / source["name"] for source, folder in places]


def get(name: str, root: Path) -> bool:
    """Download a data set into ``root/NAME``, in the layout that `psic_core.datasets.folders` reads.

    All happens in ``root/NAME.partial``, which stays for a later call until the whole has been moved in place.

    Args:
        name: Of `catalogue`.
        root: The data root; made where missing.

    Returns:
        Whether it was not there before.

    Raises:
        ValueError: No such data set, or what was downloaded is not the data set.
        OSError: A file could not be had, or the folder holds something else.
    """
    if name not in LAYOUTS:
        raise ValueError(f"no data set {name!r} to get; there are {', '.join(LAYOUTS)}")
    if is_there(name, root):
        return False
    about, place, work = catalogue()[name], root / name, root / f"{name}.partial"
    if place.exists():
        raise FileExistsError(f"{str(place)!r} is not whole ({about['layout']}): add what is missing, or move it away")
    work.mkdir(parents=True, exist_ok=True)
    for source in about["sources"]:
        fetch(source, work)
    built = work / "unpacked"
    shutil.rmtree(built, ignore_errors=True)  # of a run that was stopped
    built.mkdir()
    try:
        LAYOUTS[name](work, built)
        pictures = [path for path in built.rglob("*") if path.suffix.lower() in SUFFIXES]
        if len(pictures) != about["pictures"]:
            raise ValueError(f"{len(pictures):,} pictures, not {about['pictures']:,}")
        if any(not {"sha256", "md5"} & source.keys() for source in about["sources"]):
            for path in pictures:
                load_image(path)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"what was downloaded for {name} is damaged: {error}; delete {str(work)!r} and run it again") \
            from error  # fmt: skip
    built.replace(place)
    shutil.rmtree(work)
    return True


# --- one file -------------------------------------------------------------------------------------------


def fetch(source: Mapping[str, Any], folder: Path) -> None:
    """Download a file to ``folder``, unless it is there and right; it has its name only once it is checked.

    Until then it is ``NAME.partial``. A cut connection is taken up where it ended if the checksum is published, which
    then says whether the parts are of one file.

    Args:
        source: ``name``, ``urls`` with mirrors, and where known ``size`` in bytes, ``sha256`` (its beginning will do)
            or ``md5`` in hex.
        folder: That exists.

    Raises:
        OSError: No address gave the file; each is named, with the reason.
    """
    path, partial, faults = folder / source["name"], folder / f"{source['name']}.partial", []
    if path.is_file() and not (fault := _fault(source, path)):
        return
    for url in source["urls"] * ATTEMPTS:
        try:
            _receive(url, partial, bool({"sha256", "md5"} & source.keys()), source.get("size", MOST))
        except HTTPError as error:
            error.close()
            faults.append(f"{url} (HTTP {error.code} {error.reason})")
            continue
        except (OSError, HTTPException) as error:
            faults.append(f"{url} ({error})")
            continue
        if not (fault := _fault(source, partial)):
            partial.replace(path)
            return
        partial.unlink()
        faults.append(f"{url} ({fault}; the bad file was deleted)")
    raise OSError(
        f"cannot download {source['name']} from {', nor from '.join(dict.fromkeys(faults))}; connect this computer to "
        f"the internet and run it again, or put the file into {str(folder)!r} by hand and run it again"
    )


def _receive(url: str, partial: Path, resume: bool, most: int) -> None:
    """Ask for what is missing, append it; a server that sends more than so many bytes is not heard to its end."""
    have = partial.stat().st_size if resume and partial.is_file() else 0
    asked = Request(url, headers={"User-Agent": "psic-core"} | ({"Range": f"bytes={have}-"} if have else {}))
    try:
        reply = urlopen(asked, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # else there is nothing beyond what we have
            raise
        error.close()
        return
    with reply:
        start = have if reply.status == 206 else 0
        length = reply.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem, disable=None)
        with partial.open("ab" if start else "wb") as out, bar:
            while block := reply.read(1 << 16):
                out.write(block)
                bar.update(len(block))
                if out.tell() > most:
                    break
    if total is not None and partial.stat().st_size < total:  # urllib takes an early end for the end
        raise OSError(f"the connection ended after {partial.stat().st_size:,} of {total:,} bytes")


def _fault(source: Mapping[str, Any], path: Path) -> str:
    """What is wrong with a file, or nothing."""
    found = {"size": path.stat().st_size}
    for name in {"sha256", "md5"} & source.keys():
        digest = hashlib.new(name)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        found[name] = digest.hexdigest()
    wrong = [k for k, value in found.items() if not str(value).startswith(str(source.get(k, value)))]
    return f"its {wrong[0]} is {found[wrong[0]]}, not {source[wrong[0]]} as published" if wrong else ""


# --- from what others publish to the layouts that are read --------------------------------------------------


def flickr8k(files: Path, out: Path) -> None:
    """The pictures lie in ``Flicker8k_Dataset/`` (their spelling), the captions as ``NAME.jpg#0<tab>caption``."""
    unpack(files / "Flickr8k_Dataset.zip", out / "Images", r"[^/]+/(\w+\.jpg)")
    unpack(files / "Flickr8k_text.zip", out / "splits", r"(Flickr_8k\.(?:train|dev|test)Images\.txt)")
    unpack(files / "Flickr8k_text.zip", files, r"(Flickr8k\.token\.txt)")
    lines = (files / "Flickr8k.token.txt").read_text(encoding="utf-8").split("\n")
    rows = [re.split(r"#\d+\t", line, maxsplit=1) for line in lines if line]
    # five captions are of 2258277193_586949ec62.jpg.1, which is no picture
    known = [(name, text.strip()) for name, text in rows if (out / "Images" / name).is_file()]
    _write(out / "captions.txt", ("image", "caption"), known)


def kodak(files: Path, out: Path) -> None:
    """The pictures come one by one, as they are read."""
    for path in sorted(files.glob("kodim??.png")):
        shutil.copyfile(path, out / path.name)


def celeba(files: Path, out: Path) -> None:
    """The aligned and cropped faces, 178x218 pixels; the list of attributes is not in the archive."""
    unpack(files / "img_align_celeba.zip", out / "img_align_celeba", r"img_align_celeba/(\d+\.jpg)")
    shutil.copyfile(files / "list_attr_celeba.txt", out / "list_attr_celeba.txt")


def imagenet_sample(files: Path, out: Path) -> None:
    """A picture for each class, ``n01440764_tench.JPEG``; ImageNet numbers its classes in the order of the synsets."""
    unpack(files / "imagenet-sample-images.zip", out, r"[^/]+/(n\d{8}_[^/]+\.JPEG)")
    rows = []
    for index, path in enumerate(sorted(out.glob("n*.JPEG"))):
        synset, words = path.stem.split("_", maxsplit=1)
        rows.append((index, synset, words.replace("_", " "), path.name))
    _write(out / "classes.csv", ("index", "synset", "class_name", "file"), rows)


WEIGHTS = ("clip",)  # of networks; all else are pictures
LAYOUTS: dict[str, Callable[[Path, Path], None]] = {
    "flickr8k": flickr8k,
    "kodak": kodak,
    "celeba": celeba,
    "imagenet_sample": imagenet_sample,
}


def unpack(archive: Path, into: Path, pattern: str) -> None:
    """Write the members of a zip file whose whole name matches, under the name in the pattern's group.

    The group holds no slash, so that no member leads out of the folder; every CRC is checked.

    Raises:
        zipfile.BadZipFile: Damaged.
        ValueError: No member matches.
    """
    with zipfile.ZipFile(archive) as members:
        wanted = [(name, match[1]) for name in members.namelist() if (match := re.fullmatch(pattern, name))]
        if not wanted:
            raise ValueError(f"{archive.name} holds nothing of the form {pattern}")
        into.mkdir(parents=True, exist_ok=True)
        for name, short in tqdm(wanted, desc=archive.name, unit="files", disable=None):
            with members.open(name) as source, (into / short).open("wb") as out:
                shutil.copyfileobj(source, out)


def _write(path: Path, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


if __name__ == "__main__":
    sys.exit(main())
