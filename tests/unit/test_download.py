"""Downloads from a server of our own that cuts and lies; nothing here leaves the machine."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import get as download
import open_clip
import pytest
import torch
from compressai.models import ScaleHyperprior
from compressai.zoo.image import model_urls
from get import fetch, get, unpack
from PIL import Image
from torch.nn.functional import normalize

from psic_core.config import CodecConfig, data_dir
from psic_core.datasets.folders import CelebA, Flickr8k, Folder, ImageNetFolder
from psic_core.models.vlp import load_target
from psic_core.training.phase import starting_model

BODY = bytes(range(256)) * 3000  # 768,000 bytes: several blocks, no two neighbours alike


@dataclass
class Web:
    """What the server has and how it behaves; ``asked`` keeps every request's path and range."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # bytes after which each next answer ends
    ranges: bool = True
    length: str | None = None  # what Content-Length says in the place of the truth; empty: there is none
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def source(self, name: str, body: bytes, **options: object) -> dict[str, Any]:
        """Serve a file, and the source that names it, checksum included."""
        self.files[f"/{name}"] = body
        known = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        return {"name": name, "urls": [f"{self.url}/{name}"]} | known | options


class Handler(BaseHTTPRequestHandler):
    web: Web

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self.web.asked.append((self.path, asked := self.headers.get("Range")))
        if self.path not in self.web.files:
            return self.send_error(404)
        body = self.web.files[self.path]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.web.ranges else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if self.web.length is None or self.web.length:
            self.send_header("Content-Length", self.web.length or str(len(body) - start))
        self.end_headers()
        end = self.web.cuts.pop(0) if self.web.cuts else len(body)
        self.wfile.write(body[start : start + end])


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    known = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"web": known}))
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield known
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_cut_connection_is_taken_up_where_it_ended(web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY)
    web.cuts = [300_000, 100]
    fetch(source, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [r for _, r in web.asked] == [None, "bytes=300000-", "bytes=300100-"]
    fetch(source, tmp_path)  # is there, and right
    assert len(web.asked) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("length", ["", "many", "-5"])
def test_a_server_without_a_length_is_read_to_its_end_and_no_further(length: str, web: Web, tmp_path: Path):
    source, web.length = web.source("a.bin", BODY), length
    fetch(source, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    long = web.source("b.bin", BODY) | {"size": 70_000}
    with pytest.raises(OSError, match="its size is 131072, not 70000 as published"):
        fetch(long, tmp_path)


@pytest.mark.parametrize("option", ["sha256", "md5", "size"])
def test_a_file_that_is_not_as_published_is_deleted_and_every_address_named(option: str, web: Web, tmp_path: Path):
    source = web.source("a.bin", BODY)
    web.files["/a.bin"] = BODY[::-1] if option != "size" else BODY[:-1]
    if option == "md5":
        source |= {"md5": hashlib.md5(BODY, usedforsecurity=False).hexdigest()}
        del source["sha256"]
    source["urls"] = [f"{web.url}/gone", *source["urls"]]
    with pytest.raises(OSError, match=rf"/gone \(HTTP 404.*/a\.bin \(its {option} is .* as published.*by hand"):
        fetch(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_nothing_leads_out_of_the_folder(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(zipped({"x/fine.jpg": b"1", "../evil.jpg": b"2", "/evil.jpg": b"3"}))
    unpack(tmp_path / "a.zip", tmp_path / "deep" / "out", r"[^/]+/(\w+\.jpg)")
    assert sorted(p.name for p in tmp_path.rglob("*.jpg")) == ["evil.jpg", "fine.jpg"]
    assert {p.parent.name for p in tmp_path.rglob("*.jpg")} == {"out"}


# --- whole data sets, in the layout of their publishers ---------------------------------------------


def picture(kind: str, level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (level, 100, 200)).save(buffer, kind)
    return buffer.getvalue()


def flickr8k() -> dict[str, bytes]:
    names = ["1_a.jpg", "2_b.jpg", "3_c.jpg"]
    images = {"Flicker8k_Dataset/": b"", "__MACOSX/Flicker8k_Dataset/._1_a.jpg": b"junk"}
    images |= {f"Flicker8k_Dataset/{n}": picture("JPEG", i) for i, n in enumerate(names)}
    lines = [f'{n}#{k}\tA dog , "{k}" of {n} #1\t.' for n in names for k in range(5)]
    lines += [f"2258277193_586949ec62.jpg.1#{k}\tNo picture" for k in range(5)]
    text = {"Flickr8k.token.txt": "\n".join(lines) + "\n", "readme.txt": "cite"}
    text |= {f"Flickr_8k.{s}Images.txt": n + "\n" for s, n in zip(("train", "dev", "test"), names, strict=True)}
    packed = zipped({n: t.encode() for n, t in text.items()})
    return {"Flickr8k_Dataset.zip": zipped(images), "Flickr8k_text.zip": packed}


def kodak() -> dict[str, bytes]:
    return {f"kodim{i:02}.png": picture("PNG", i) for i in range(1, 25)}


def celeba() -> dict[str, bytes]:
    faces = {"img_align_celeba/": b""} | {f"img_align_celeba/{i:06}.jpg": picture("JPEG", i) for i in (1, 2)}
    attributes = "2\nMale Young \n000001.jpg -1  1\n000002.jpg  1 -1\n"
    return {"img_align_celeba.zip": zipped(faces), "list_attr_celeba.txt": attributes.encode()}


def imagenet_sample(harm: Callable[[bytes], bytes] = bytes) -> dict[str, bytes]:
    names = ["n01514859_hen.JPEG", "n01440764_tench.JPEG", "n12057211_yellow_lady's_slipper.JPEG"]
    members = {f"imagenet-sample-images-bc69/{n}": harm(picture("JPEG", i)) for i, n in enumerate(names)}
    return {"imagenet-sample-images.zip": zipped(members | {"imagenet-sample-images-bc69/gallery.md": b"# Gallery"})}


@pytest.fixture
def publish(web: Web, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put our server's files in the place of a data set's own."""

    def serve(name: str, bodies: dict[str, bytes], pictures: int) -> None:
        true = json.loads((data_dir() / "downloads.json").read_text())
        assert list(bodies) == [source["name"] for source in true[name]["sources"]]
        checked = [bool({"sha256", "md5"} & source.keys()) for source in true[name]["sources"]]
        sources = [web.source(n, body) for n, body in bodies.items()]
        for source, known in zip(sources, checked, strict=True):
            if not known:
                del source["sha256"], source["size"]
        true[name] |= {"sources": sources, "pictures": pictures}
        monkeypatch.setattr(download, "catalogue", lambda: true)

    return serve


def test_each_data_set_comes_as_it_is_read(publish: Callable[..., None], web: Web, tmp_path: Path):
    publish("flickr8k", flickr8k(), 3)
    assert get("flickr8k", tmp_path)
    splits = [Flickr8k(tmp_path / "flickr8k", split) for split in ("train", "dev", "test")]
    assert [len(split) for split in splits] == [1, 1, 1]
    assert splits[1].captions == (tuple(f'A dog , "{k}" of 2_b.jpg #1\t.' for k in range(5)),)
    publish("kodak", kodak(), 24)
    assert get("kodak", tmp_path)
    assert round(float(Folder(tmp_path / "kodak")[6][0, 0, 0]) * 255) == 7
    publish("celeba", celeba(), 2)
    assert get("celeba", tmp_path)
    assert CelebA(tmp_path / "celeba").labels.tolist() == [[False, True], [True, False]]
    publish("imagenet_sample", imagenet_sample(), 3)
    assert get("imagenet_sample", tmp_path)
    data = ImageNetFolder(tmp_path / "imagenet_sample")
    assert data.classes == ("tench", "hen", "yellow lady's slipper")  # in the order of the synsets
    assert round(float(data[0][0].mean()) * 255) == 1  # the tench is the second that was packed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["celeba", "flickr8k", "imagenet_sample", "kodak"]
    web.asked.clear()
    assert not get("imagenet_sample", tmp_path)
    assert web.asked == []


def test_what_is_not_the_data_set_is_told(publish: Callable[..., None], tmp_path: Path):
    publish("celeba", celeba(), 202_599)
    with pytest.raises(ValueError, match=r"2 pictures, not 202,599; delete '.*celeba\.partial'"):
        get("celeba", tmp_path)
    publish("imagenet_sample", imagenet_sample(lambda jpeg: jpeg[:-30]), 3)
    with pytest.raises(ValueError, match=r"damaged: cannot read .*JPEG"):
        get("imagenet_sample", tmp_path)
    (tmp_path / "flickr8k" / "Images").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"is not whole \(Images/, captions\.txt"):
        get("flickr8k", tmp_path)


# --- weights, from the server to the models ---------------------------------------------------------


class Held(torch.nn.Module):
    """Tensors by their dotted names, as TorchScript, which is how CLIP's own weights are published."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name in {n.partition(".")[0] for n in tensors}:
            inner = {n.partition(".")[2]: t for n, t in tensors.items() if n.partition(".")[0] == name}
            if "" in inner:
                self.register_buffer(name, inner[""])
            else:
                self.add_module(name, Held(inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def published(state: dict[str, torch.Tensor], script: bool) -> bytes:
    buffer = io.BytesIO()
    if script:
        torch.jit.save(torch.jit.script(Held(state)), buffer)
    else:
        torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_weights_come_to_where_they_are_looked_for(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Served, fetched, checked and loaded: CLIP and a codec of few channels in the place of the published ones."""
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    clip, codec = open_clip.model.CLIP(16, vision, text, quick_gelu=True).half().float(), ScaleHyperprior(8, 12)
    bodies = [published({n: p.half() for n, p in clip.state_dict().items()}, script=True)]
    bodies.append(published(codec.state_dict(), script=False))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    digest = hashlib.sha256(bodies[1]).hexdigest()[:8]
    names = ["ViT-B-32.pt", f"bmshj2018-hyperprior-3-{digest}.pth.tar"]
    sources = [web.source(n, b, into=i) for n, b, i in zip(names, bodies, ("clip", "hub"), strict=True)]
    sources[1] |= {"sha256": digest}
    del sources[1]["size"]
    monkeypatch.setattr(download, "catalogue", lambda: {"clip": {"sources": sources}})
    web.cuts = [300_000]
    assert download.main(["clip"]) == 0
    asked = len(web.asked)
    target = load_target("ViT-B-32/openai")
    x = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        found, true = target.encode_image(x), clip.eval().encode_image(target.preprocess(x))
    torch.testing.assert_close(found, normalize(true, dim=-1))
    assert target.size == 32
    monkeypatch.setitem(model_urls["bmshj2018-hyperprior"]["mse"], 3, f"{web.url}/{names[1]}")
    model = starting_model("zoo:bmshj2018-hyperprior/3", CodecConfig(dim=16, ladder=4, reading_side=224))
    assert torch.equal(model.backbone.g_a[0].weight, codec.g_a[0].weight)
    assert (model.config.n, model.config.m, model.config.quality, model.config.reading_side) == (8, 12, 3, 224)
    assert model.full_condition().shape == (16,)
    assert len(web.asked) == asked  # from where they lie
    with pytest.raises(ValueError, match="names no model"):
        starting_model("zoo:bmshj2018-hyperprior/9", CodecConfig())
