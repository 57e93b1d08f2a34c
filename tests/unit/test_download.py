"""Downloads from a server of our own that cuts, forgets, changes and lies; nothing here leaves the machine."""

import errno
import hashlib
import io
import json
import shutil
import socket
import stat
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from psic_core.cli import main
from psic_core.datasets import catalogue, download, layouts, transfer
from psic_core.datasets.catalogue import DATA_SETS, DataSet
from psic_core.datasets.disk import DiskFullError, unpack
from psic_core.datasets.download import LOCK, get
from psic_core.datasets.folders import CelebA, Flickr8k, Folder, ImageNetFolder
from psic_core.datasets.transfer import DownloadError, Source, fetch

BODY = bytes(range(256)) * 3000  # 768,000 bytes: several blocks, no two neighbours alike


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Web:
    """What the server has and how it behaves; ``log`` keeps the path and the headers of every request."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)  # bytes after which each next answer ends
    status: dict[str, list[int]] = field(default_factory=dict)  # errors that each next request gets
    ranges: bool = True
    if_range: bool = True  # whether it heeds If-Range
    dated: bool = False  # Last-Modified in place of an ETag
    length: bool = True  # whether it says how long an answer is
    chunked: bool = False  # in chunks, in place of a length
    log: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def source(self, name: str, body: bytes, **options: object) -> Source:
        """Serve a file, and the source that names it, checksum included."""
        self.files[f"/{name}"] = body
        told = {"size": len(body), "sha256": sha256(body)} | options
        return Source(name, (f"{self.url}/{name}",), **told)

    def asked(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.log]


class Handler(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"  # which knows chunks; urllib asks for one answer a connection

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        web, path = self.web, self.path
        web.log.append((path, dict(self.headers)))
        if web.status.get(path):
            return self.send_error(web.status[path].pop(0))
        if path not in web.files:
            return self.send_error(404)
        body = web.files[path]
        mark = web.etags.get(path, f'"{sha256(body)[:8]}"')
        start = self.first_byte(mark)
        if start >= len(body) > 0:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Last-Modified" if web.dated else "ETag", mark)
        if web.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif web.length:
            self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        end = web.cuts[path].pop(0) if web.cuts.get(path) else len(body)
        with suppress(ConnectionError):  # some answers are refused half-way
            if web.chunked:
                self.wfile.write(b"%x\r\n" % (len(body) - start))
            self.wfile.write(body[start : start + end])
            if web.chunked and end == len(body):
                self.wfile.write(b"\r\n0\r\n\r\n")

    def first_byte(self, mark: str) -> int:
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if not asked or not self.web.ranges or (self.web.if_range and condition not in (None, mark)):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    known = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"web": known}))
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield known
    server.shutdown()
    server.server_close()
    thread.join()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- one file ---------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_nothing_else_stays(web: Web, tmp_path: Path):
    receipt = fetch(web.source("a.bin", BODY), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert (receipt.url, receipt.bytes, receipt.sha256) == (f"{web.url}/a.bin", len(BODY), sha256(BODY))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.bin.json"]
    assert web.asked() == [None]


def test_a_file_that_is_there_is_checked_and_not_asked_for(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY)
    first = fetch(source, tmp_path)
    assert fetch(source, tmp_path) == first
    assert len(web.log) == 1


def test_a_file_put_there_by_hand_is_taken_if_it_is_right(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY)
    (tmp_path / "a.bin").write_bytes(BODY)
    assert fetch(source, tmp_path).url == transfer.BY_HAND
    assert web.log == []
    (tmp_path / "a.bin").write_bytes(BODY[:-1] + b"!")
    assert fetch(source, tmp_path).url == f"{web.url}/a.bin"
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_cut_connection_is_resumed_where_it_ended(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY)
    web.cuts["/a.bin"] = [300_000, 100]
    fetch(source, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert web.asked() == [None, "bytes=300000-", "bytes=300100-"]
    assert {headers.get("If-Range") for _, headers in web.log[1:]} == {f'"{sha256(BODY)[:8]}"'}


def test_a_later_run_resumes_what_an_earlier_one_left(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = web.source("a.bin", BODY, sha256=None)  # the ETag alone says that it is the same file
    web.cuts["/a.bin"] = [300_000]
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "ATTEMPTS", 1)
        with pytest.raises(DownloadError, match="ended after 300,000 of 768,000 bytes"):
            fetch(source, tmp_path)
    assert (tmp_path / "a.bin.partial").read_bytes() == BODY[:300_000]
    fetch(source, tmp_path)
    assert web.asked() == [None, "bytes=300000-"]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_cut_is_noticed_without_content_length(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY)
    web.length, web.cuts["/a.bin"] = False, [300_000]
    fetch(source, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert web.asked() == [None, "bytes=300000-"]


def test_a_chunk_that_ends_early_is_resumed(web: Web, tmp_path: Path):
    """As GitHub sends its archives: no length, and a cut is an error of its own."""
    source = web.source("a.bin", BODY, size=None, sha256=None)
    web.chunked, web.cuts["/a.bin"] = True, [300_000]
    fetch(source, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    first, second = web.asked()
    assert first is None
    assert 300_000 - transfer.CHUNK <= int((second or "").removeprefix("bytes=").removesuffix("-")) <= 300_000


def test_a_server_without_ranges_sends_all_of_it_again(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY)
    web.ranges, web.cuts["/a.bin"] = False, [300_000]
    fetch(source, tmp_path)
    assert web.asked() == [None, "bytes=300000-"]
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("heeds", [True, False], ids=["if-range", "no-if-range"])
@pytest.mark.parametrize("dated", [True, False], ids=["date", "etag"])
def test_a_file_that_changed_meanwhile_is_begun_anew(heeds: bool, dated: bool, web: Web, tmp_path: Path):
    """Without a checksum, bytes of two files must not be joined, whether or not the server heeds If-Range."""
    source = web.source("a.bin", BODY, sha256=None)
    web.cuts["/a.bin"], web.if_range, web.dated = [300_000], heeds, dated
    served, changed = transfer._blocks, BODY[::-1]

    def change(reply: object) -> Iterator[bytes]:
        yield from served(reply)
        web.files["/a.bin"] = changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_blocks", change)
        fetch(source, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == changed
    assert web.asked() == ([None, "bytes=300000-"] if heeds else [None, "bytes=300000-", None])


def test_a_weak_etag_is_no_ground_to_resume_on(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY, sha256=None)
    web.etags["/a.bin"], web.cuts["/a.bin"] = 'W/"1"', [300_000]
    fetch(source, tmp_path)
    assert web.asked() == [None, None]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_partial_file_longer_than_the_whole_is_begun_anew(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY, size=None)
    (tmp_path / "a.bin.partial").write_bytes(BODY + b"more")
    fetch(source, tmp_path)
    assert web.asked() == [f"bytes={len(BODY) + 4}-", None]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_partial_file_that_is_whole_is_only_checked(web: Web, tmp_path: Path):
    (tmp_path / "a.bin.partial").write_bytes(BODY)
    fetch(web.source("a.bin", BODY), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert web.log == []


def test_a_server_in_trouble_is_asked_again(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY)
    web.status["/a.bin"] = [503, 429]
    fetch(source, tmp_path)
    assert len(web.log) == 3
    web.status["/b.bin"] = [500] * 99
    with pytest.raises(DownloadError, match="HTTP 500"):
        fetch(web.source("b.bin", BODY), tmp_path)
    assert len(web.log) == 3 + transfer.ATTEMPTS


def test_a_wrong_hash_names_both_and_the_bad_file_goes(web: Web, tmp_path: Path):
    other = BODY[::-1]
    source = web.source("a.bin", other, sha256=sha256(BODY))
    with pytest.raises(DownloadError, match=f"sha256 is {sha256(other)}, not {sha256(BODY)}.*deleted"):
        fetch(source, tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".json"] == []


def test_a_published_md5_counts_too(web: Web, tmp_path: Path):
    right = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
    fetch(web.source("a.bin", BODY, sha256=None, md5=right), tmp_path)
    with pytest.raises(DownloadError, match=f"md5 is [0-9a-f]{{32}}, not {right}"):
        fetch(web.source("b.bin", BODY[::-1], sha256=None, md5=right), tmp_path)
    assert not (tmp_path / "b.bin").exists()


def test_a_wrong_size_is_refused_before_a_byte_of_it(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY, size=len(BODY) + 1)
    with pytest.raises(DownloadError, match="offers 768,000 bytes, not 768,001"):
        fetch(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_shows_in_the_end_where_the_server_says_none(web: Web, tmp_path: Path):
    web.length = False
    with pytest.raises(DownloadError, match="its 768,000 bytes are not 767,999; the bad file was deleted"):
        fetch(web.source("a.bin", BODY, size=len(BODY) - 1, sha256=None), tmp_path)
    assert not (tmp_path / "a.bin.partial").exists()


@pytest.mark.parametrize("first", ["missing", "unreachable", "wrong"])
def test_mirrors_are_tried_in_order(first: str, web: Web, tmp_path: Path):
    source = web.source("mirror/a.bin", BODY)
    web.files["/wrong"] = BODY[::-1]
    address = f"http://127.0.0.1:{closed_port()}/a.bin" if first == "unreachable" else f"{web.url}/{first}"
    receipt = fetch(replace(source, name="a.bin", urls=(address, *source.urls)), tmp_path)
    assert receipt.url == f"{web.url}/mirror/a.bin"
    assert (tmp_path / "a.bin").read_bytes() == BODY
    paths = [path for path, _ in web.log]
    assert paths == ["/mirror/a.bin"] if first == "unreachable" else [f"/{first}", "/mirror/a.bin"]


def test_a_mirror_goes_on_from_the_first_ones_bytes_only_under_a_checksum(web: Web, tmp_path: Path):
    for name, checksum, asked in (("known", sha256(BODY), "bytes=300000-"), ("unknown", None, None)):
        source = web.source("mirror", BODY, sha256=checksum)
        web.files["/first"], web.log[:] = BODY, []
        web.cuts["/first"] = [300_000] + [0] * transfer.ATTEMPTS
        fetch(replace(source, name=name, urls=(f"{web.url}/first", *source.urls)), tmp_path)
        assert (tmp_path / name).read_bytes() == BODY
        assert (web.log[-1][0], web.log[-1][1].get("Range")) == ("/mirror", asked)
        assert "If-Range" not in web.log[-1][1]  # the first one's ETag means nothing here


def test_every_address_that_failed_is_named(web: Web, tmp_path: Path):
    port = closed_port()
    source = Source("a.bin", (f"{web.url}/none", f"http://127.0.0.1:{port}/a.bin"))
    with pytest.raises(DownloadError, match=rf"a\.bin from .*/none \(HTTP 404.*nor from .*{port}/a\.bin \(.*refused"):
        fetch(source, tmp_path)


# --- the disk ---------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, count))


class Tight(io.BufferedWriter):
    """A file on a disk with room for so many bytes."""

    room = 200_000

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_disk_that_is_too_small_is_told_before_the_download(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    free(monkeypatch, 1000)
    with pytest.raises(DiskFullError, match=r"a\.bin needs 768,000 bytes more, 1,000 bytes are free"):
        fetch(web.source("a.bin", BODY), tmp_path)
    assert not (tmp_path / "a.bin.partial").exists()


def test_a_full_disk_keeps_what_it_took_for_a_resume(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, plain = web.source("a.bin", BODY), Path.open

    def tight(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        wrote = mode in ("wb", "ab")
        return Tight(io.FileIO(path, mode)) if wrote else plain(path, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", tight)
        with pytest.raises(DiskFullError, match=r"needs [\d,]+ bytes more, [\d,]+ bytes are free; make room") as caught:
            fetch(source, tmp_path)
    kept = (tmp_path / "a.bin.partial").read_bytes()
    assert 0 < len(kept) <= Tight.room
    assert kept == BODY[: len(kept)]
    assert f"{len(BODY) - len(kept):,} bytes more" in str(caught.value)
    fetch(source, tmp_path)
    assert web.asked() == [None, f"bytes={len(kept)}-"]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_other_trouble_with_the_disk_is_not_laid_on_the_server(web: Web, tmp_path: Path):
    (tmp_path / "a.bin.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        fetch(web.source("a.bin", BODY), tmp_path)


# --- zip files --------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../evil.jpg", "a/../../evil.jpg", "/evil.jpg", "..\\evil.jpg"])
def test_a_member_that_leads_out_is_refused(name: str, tmp_path: Path):
    archive, out = tmp_path / "a.zip", tmp_path / "deep" / "out"
    archive.write_bytes(zipped({"fine.jpg": b"1", name: b"2"}))
    out.mkdir(parents=True)
    with pytest.raises(ValueError, match="evil.*leads out of the folder"):
        unpack(archive, out, lambda member: member)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "out"]


def test_a_link_is_refused(tmp_path: Path):
    link = zipfile.ZipInfo("Images")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc")
        archive.writestr("Images/passwd", "x")
    with pytest.raises(ValueError, match="'Images' is a link"):
        unpack(tmp_path / "a.zip", tmp_path, lambda _: None)


@pytest.mark.parametrize("harm", ["short", "bit", "page"])
def test_a_damaged_archive_is_deleted(harm: str, tmp_path: Path):
    archive, data = tmp_path / "a.zip", zipped({"a.jpg": BODY})
    at = data.index(BODY[:256]) + 1000
    flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    archive.write_bytes({"short": data[:-100], "bit": flipped, "page": b"<html>Quota exceeded</html>"}[harm])
    with pytest.raises(ValueError, match=r"a\.zip cannot be unpacked.*deleted, run it again"):
        unpack(archive, tmp_path, lambda member: member)
    assert not archive.exists()


def test_unpacking_looks_for_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.zip").write_bytes(zipped({"a.jpg": BODY, "left/out.jpg": BODY}))
    free(monkeypatch, len(BODY) - 1)
    with pytest.raises(DiskFullError, match=r"a\.zip needs 768,000 bytes more"):
        unpack(tmp_path / "a.zip", tmp_path, lambda name: name if name == "a.jpg" else None)
    assert not (tmp_path / "a.jpg").exists()
    assert (tmp_path / "a.zip").exists()


# --- whole data sets, in the layout of their publishers ---------------------------------------------


def picture(kind: str, level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (level, 100, 200)).save(buffer, kind)
    return buffer.getvalue()


def tiny(web: Web, name: str, bodies: dict[str, bytes], pictures: int) -> DataSet:
    """An entry of the catalogue with our server's files in place of its own."""
    true = DATA_SETS[name]
    known = {source.name: bool(source.sha256) for source in true.sources}
    assert set(bodies) <= set(known), "the catalogue downloads other files"
    sources = (web.source(n, b, **({} if known[n] else {"sha256": None, "size": None})) for n, b in bodies.items())
    return replace(true, sources=tuple(sources), pictures=pictures)


def flickr8k(web: Web) -> DataSet:
    names = ["1_a.jpg", "2_b.jpg", "3_c.jpg"]
    images = {"Flicker8k_Dataset/": b"", "__MACOSX/Flicker8k_Dataset/._1_a.jpg": b"junk"}
    images |= {f"Flicker8k_Dataset/{n}": picture("JPEG", i) for i, n in enumerate(names)}
    lines = [f'{n}#{k}\tA dog , "{k}" of {n} #1\t.' for n in names for k in range(5)]
    lines += [f"2258277193_586949ec62.jpg.1#{k}\tNo picture" for k in range(5)]
    text = {"Flickr8k.token.txt": "\n".join(lines) + "\n", "Flickr8k.lemma.token.txt": "", "readme.txt": "cite"}
    text |= {f"Flickr_8k.{s}Images.txt": n + "\n" for s, n in zip(("train", "dev", "test"), names, strict=True)}
    text |= {"__MACOSX/._Flickr8k.token.txt": "junk", "__MACOSX/._Flickr_8k.trainImages.txt": "junk"}
    packed = zipped({n: t.encode() for n, t in text.items()})
    return tiny(web, "flickr8k", {"Flickr8k_Dataset.zip": zipped(images), "Flickr8k_text.zip": packed}, 3)


def kodak(web: Web) -> DataSet:
    return tiny(web, "kodak", {f"kodim{i:02}.png": picture("PNG", i) for i in range(1, 25)}, 24)


def celeba(web: Web) -> DataSet:
    faces = {"img_align_celeba/": b""} | {f"img_align_celeba/{i:06}.jpg": picture("JPEG", i) for i in (1, 2)}
    attributes = "2\nMale Young \n000001.jpg -1  1\n000002.jpg  1 -1\n"
    files = {"img_align_celeba.zip": zipped(faces), "list_attr_celeba.txt": attributes.encode()}
    return tiny(web, "celeba", files, 2)


def imagenet_sample(web: Web, harm: Callable[[bytes], bytes] = bytes) -> DataSet:
    names = ["n01514859_hen.JPEG", "n01440764_tench.JPEG", "n12057211_yellow_lady's_slipper.JPEG"]
    members = {f"imagenet-sample-images-bc69/{n}": harm(picture("JPEG", i)) for i, n in enumerate(names)}
    members |= {"imagenet-sample-images-bc69/gallery.md": b"# Gallery", "imagenet-sample-images-bc69/": b""}
    return tiny(web, "imagenet_sample", {"imagenet-sample-images.zip": zipped(members)}, 3)


def test_flickr8k_comes_as_it_is_read(web: Web, tmp_path: Path):
    get(flickr8k(web), tmp_path)
    splits = [Flickr8k(tmp_path / "flickr8k", split) for split in ("train", "dev", "test", "all")]
    assert [len(split) for split in splits] == [1, 1, 1, 3]
    assert [p.name for p in splits[1].files] == ["2_b.jpg"]
    assert splits[1].captions == (tuple(f'A dog , "{k}" of 2_b.jpg #1\t.' for k in range(5)),)
    assert splits[3][2].shape == (3, 8, 12)
    held = sorted(p.name for p in (tmp_path / "flickr8k").iterdir())
    assert held == ["Images", LOCK, "captions.txt", "splits"]


def test_kodak_comes_as_it_is_read(web: Web, tmp_path: Path):
    get(kodak(web), tmp_path)
    pictures = Folder(tmp_path / "kodak")
    assert [p.name for p in pictures.files] == [f"kodim{i:02}.png" for i in range(1, 25)]
    assert round(float(pictures[6][0, 0, 0]) * 255) == 7


def test_celeba_comes_as_it_is_read(web: Web, tmp_path: Path):
    get(celeba(web), tmp_path)
    faces = CelebA(tmp_path / "celeba")
    assert faces.attributes == ("Male", "Young")
    assert faces.labels.tolist() == [[False, True], [True, False]]
    assert faces[1].shape == (3, 8, 12)


def test_the_imagenet_sample_comes_as_it_is_read(web: Web, tmp_path: Path):
    get(imagenet_sample(web), tmp_path)
    data = ImageNetFolder(tmp_path / "imagenet_sample")
    assert data.classes == ("tench", "hen", "yellow lady's slipper")  # in the order of the synsets
    assert round(float(data[0][0].mean()) * 255) == 1  # the tench is the second that was packed
    lines = (tmp_path / "imagenet_sample" / "classes.csv").read_text().splitlines()
    assert lines[:2] == ["index,synset,class_name,file", "0,n01440764,tench,n01440764_tench.JPEG"]


@pytest.mark.parametrize("make", [flickr8k, kodak, celeba, imagenet_sample])
def test_what_is_there_is_left_alone(make: Callable[[Web], DataSet], web: Web, tmp_path: Path):
    data = make(web)
    receipts = get(data, tmp_path)
    assert [r.name for r in receipts] == [source.name for source in data.sources]
    assert sorted(p.name for p in tmp_path.iterdir()) == [data.name]  # downloads are gone
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    web.log.clear()
    assert get(data, tmp_path) == []
    assert web.log == []
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_lock_names_what_was_downloaded_and_binds_the_next_time(web: Web, tmp_path: Path):
    data = imagenet_sample(web)
    [receipt] = get(data, tmp_path)
    place, body = tmp_path / "imagenet_sample", web.files["/imagenet-sample-images.zip"]
    [row] = json.loads((place / LOCK).read_text())
    assert row == {
        "name": "imagenet-sample-images.zip",
        "url": f"{web.url}/imagenet-sample-images.zip",
        "bytes": len(body),
        "sha256": sha256(body),
        "date": receipt.date,
    }
    kept = (place / LOCK).read_text()
    shutil.rmtree(place)
    place.mkdir()
    (place / LOCK).write_text(kept)
    web.files["/imagenet-sample-images.zip"] = other = zipped({"x/n01440764_carp.JPEG": picture("JPEG", 9)})
    with pytest.raises(DownloadError, match=rf"{sha256(other)}, not {sha256(body)} as the SOURCE\.json"):
        get(data, tmp_path)
    web.files["/imagenet-sample-images.zip"] = body
    assert len(get(data, tmp_path)) == 1
    assert len(ImageNetFolder(place)) == 3


def test_a_run_that_was_stopped_is_gone_on_with(web: Web, tmp_path: Path):
    data = kodak(web)
    web.status["/kodim24.png"] = [404]
    with pytest.raises(DownloadError, match=r"kodim24\.png"):
        get(data, tmp_path)
    assert not (tmp_path / "kodak").exists()
    (tmp_path / "kodak.partial" / "unpacked").mkdir()
    (tmp_path / "kodak.partial" / "unpacked" / "kodim99.png").write_bytes(b"half")
    web.log.clear()
    get(data, tmp_path)
    assert [path for path, _ in web.log] == ["/kodim24.png"]
    assert len(Folder(tmp_path / "kodak")) == 24


def test_a_folder_with_something_else_is_left_alone(web: Web, tmp_path: Path):
    (tmp_path / "flickr8k" / "Images").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"holds 'Images' but not 'captions\.txt'; add .* or move the folder"):
        get(flickr8k(web), tmp_path)
    assert web.log == []


def test_pictures_are_counted(web: Web, tmp_path: Path):
    data = replace(celeba(web), pictures=202_599)
    with pytest.raises(ValueError, match=r"2 pictures, not 202,599; delete '.*celeba\.partial'"):
        get(data, tmp_path)
    assert not (tmp_path / "celeba").exists()


def test_without_a_checksum_every_picture_must_open(web: Web, tmp_path: Path):
    data = imagenet_sample(web, lambda jpeg: jpeg[:-30])
    with pytest.raises(ValueError, match=r"a damaged n\d+_.*\.JPEG"):
        get(data, tmp_path)
    assert not (tmp_path / "imagenet_sample").exists()


def test_an_archive_without_captions_is_told(web: Web, tmp_path: Path):
    data = flickr8k(web)
    web.source("Flickr8k_text.zip", zipped({"readme.txt": b""}))
    with pytest.raises(ValueError, match=r"Flickr8k_text\.zip holds no Flickr8k\.token\.txt"):
        get(data, tmp_path)


def test_room_for_downloads_and_pictures_is_looked_for_before_anything(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = celeba(web)
    free(monkeypatch, 2 * (data.size or 0) - 1)
    with pytest.raises(DiskFullError, match=f"celeba needs {2 * (data.size or 0):,} bytes more"):
        get(data, tmp_path)
    assert web.log == []


def test_a_disk_that_fills_while_unpacking_is_told_and_gone_on_from(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = kodak(web)
    with monkeypatch.context() as patch:
        patch.setattr(layouts.shutil, "copyfile", full)
        with pytest.raises(DiskFullError, match="kodak needs more room"):
            get(data, tmp_path)
    web.log.clear()
    get(data, tmp_path)
    assert web.log == []  # all had been downloaded


# --- the catalogue and the command ------------------------------------------------------------------


def test_the_catalogue_is_whole():
    assert list(DATA_SETS) == ["flickr8k", "kodak", "celeba", "imagenet_sample"]
    for source in (source for data in DATA_SETS.values() for source in data.sources):
        assert all(url.startswith(("https://", "http://")) for url in source.urls)
        assert source.urls[0].startswith("https://")
        assert source.sha256 is None or len(bytes.fromhex(source.sha256)) == 32
        assert source.md5 is None or len(bytes.fromhex(source.md5)) == 16
    kodaks = DATA_SETS["kodak"].sources
    assert len({source.sha256 for source in kodaks}) == 24
    assert (kodaks[22].name, kodaks[22].size) == ("kodim23.png", 557_596)
    assert {data.name: data.published for data in DATA_SETS.values()} == {
        "flickr8k": True,
        "kodak": True,
        "celeba": True,
        "imagenet_sample": False,
    }


def command(monkeypatch: pytest.MonkeyPatch, data: DataSet, *words: object) -> int:
    monkeypatch.setitem(catalogue.DATA_SETS, data.name, data)
    return main(["data", *map(str, words)])


def test_the_command_gets_and_then_says_that_it_is_there(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    data, root = imagenet_sample(web), tmp_path / "new" / "root"
    assert command(monkeypatch, data, "get", "imagenet_sample", "--data-root", root) == 0
    said = capsys.readouterr().out
    assert f"imagenet_sample: 3 pictures in {root / 'imagenet_sample'}" in said
    digest = sha256(web.files["/imagenet-sample-images.zip"])
    assert f"no checksum is published; its sha256 {digest} is noted in SOURCE.json" in said
    assert command(monkeypatch, data, "get", "imagenet_sample", "--data-root", root) == 0
    assert capsys.readouterr().out == f"imagenet_sample: is there, in {root / 'imagenet_sample'}\n"


def test_offline_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("no_proxy", "*")
    address = f"http://127.0.0.1:{closed_port()}/kodim01.png"
    data = replace(DATA_SETS["kodak"], sources=(replace(DATA_SETS["kodak"].sources[0], urls=(address,)),))
    assert command(monkeypatch, data, "get", "kodak", "--data-root", tmp_path) == 2
    captured = capsys.readouterr()
    line = captured.err.strip()
    assert line.startswith(f"psic data: cannot download kodim01.png from {address} (Connection refused); ")
    assert "connect this computer to the internet" in line
    assert line.endswith(f"place kodim01.png to kodim24.png in '{tmp_path / 'kodak'}' by hand")
    assert "\n" not in line
    assert captured.out == ""


def test_the_list_says_what_is_there(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    get(kodak(web), tmp_path)
    assert main(["data", "list", "--data-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if not line.startswith(" ")] == list(DATA_SETS)
    assert [line.split()[0] for line in said.splitlines() if line.endswith("is there")] == ["kodak"]
    monkeypatch.delenv("PSIC_DATA_ROOT", raising=False)
    assert main(["data", "list"]) == 0
    assert "is there" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["get", "coco", "--data-root", "x"], "no data set 'coco' to get; there are flickr8k, kodak"),
        (["get", "kodak"], "pass --data-root DIR or set PSIC_DATA_ROOT=DIR"),
    ],
)
def test_mistakes_are_told(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("PSIC_DATA_ROOT", raising=False)
    assert main(["data", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_lock_is_read_with_care(web: Web, tmp_path: Path):
    (tmp_path / "kodak").mkdir()
    (tmp_path / "kodak" / download.LOCK).write_text("{}")
    get(kodak(web), tmp_path)
    (tmp_path / "celeba").mkdir()
    (tmp_path / "celeba" / download.LOCK).write_text("[1]")
    with pytest.raises(ValueError, match=r"SOURCE\.json' is no list of downloads.*delete it"):
        get(celeba(web), tmp_path)
