"""WebDataset shards as img2dataset writes them, damaged members included."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from psic_core.datasets.shards import SkippedSample, read_shards, shard_files
from psic_core.recipes import load_pairs


def picture(colour: str, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, suffix)
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shard(tmp_path / "00000.tar", {"0.png": picture("red"), "0.txt": b"a red wall\n", "0.json": b"{}",
                                   "1.png": picture("green"), "1.txt": "grün".encode()})  # fmt: skip
    shard(tmp_path / "00001.tar", {"2.jpeg": picture("blue", "jpeg"), "2.txt": b"the sea"})
    return tmp_path


def test_pictures_and_captions_come_in_order(folder: Path):
    for pattern in (str(folder), f"{folder}/{{00000..00001}}.tar"):
        pictures, captions = read_shards(pattern, 24)
        assert pictures.shape == (3, 3, 24, 24)
        assert captions == [("a red wall",), ("grün",), ("the sea",)]
        assert pictures[0].float().mean((1, 2)).tolist() == [255, 0, 0]
        assert pictures[1].float().mean((1, 2)).tolist() == [0, 128, 0]


def test_a_limit_stops_reading(folder: Path):
    pictures, captions = read_shards(str(folder), 16, limit=2)
    assert len(pictures) == len(captions) == 2


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"9.png": picture("red")[:60], "9.txt": b"cut off"}, "00002.tar: 9 cannot be read"),
        ({"9.png": b"no picture", "9.txt": b"words"}, "00002.tar: 9 cannot be read"),
        ({"9.txt": b"alone"}, "00002.tar: 9 has no picture"),
        ({"9.png": picture("red")}, "00002.tar: 9 has no caption"),
        ({"9.png": picture("red"), "9.txt": b"\xff\xfe"}, "00002.tar: 9 cannot be read"),
    ],
)
def test_a_bad_member_is_named_and_the_rest_is_read(folder: Path, members: dict[str, bytes], why: str):
    shard(folder / "00002.tar", members | {"good.png": picture("black"), "good.txt": b"night"})
    with pytest.warns(SkippedSample, match=why):
        _, captions = read_shards(str(folder), 16)
    assert [c for (c,) in captions] == ["a red wall", "grün", "the sea", "night"]


def test_a_damaged_shard_does_not_stop_the_others(folder: Path):
    whole = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(whole[:520])
    with pytest.warns(SkippedSample, match="damaged"):
        _, captions = read_shards(str(folder), 16)
    assert captions[-1] == ("the sea",)


def test_nothing_but_files_is_opened(tmp_path: Path):
    for pattern in ("pipe:echo", str(tmp_path / "{0..3}.tar"), str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="no shard"):
            shard_files(pattern)


def test_shards_without_a_pair_are_refused(tmp_path: Path):
    shard(tmp_path / "0.tar", {"0.txt": b"words"})
    with pytest.warns(SkippedSample), pytest.raises(ValueError, match="no readable pair"):
        read_shards(str(tmp_path), 16)


def test_they_are_a_data_set_like_others(folder: Path):
    pairs = load_pairs([f"shards:{folder}"], size=32)
    assert len(pairs) == 3
    assert pairs.pictures.dtype == torch.uint8
    assert pairs.captions[2] == ("the sea",)
