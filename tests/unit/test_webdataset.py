"""WebDataset shards as img2dataset writes them, damaged members included."""

import io
import math
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.datasets.webdataset import Shards, SkippedSample, read_shards
from psic_core.models.vlp import load_target
from psic_core.training.trainer import Trainer


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


def test_shards_without_a_pair_are_refused(tmp_path: Path):
    shard(tmp_path / "0.tar", {"0.txt": b"words"})
    with pytest.warns(SkippedSample), pytest.raises(ValueError, match="no readable pair"):
        read_shards(str(tmp_path), 16)


# --- without end ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_shows_every_pair_and_never_ends(folder: Path, workers: int):
    shards = Shards(str(folder), 16, workers)
    assert len(shards) == 3
    seen, loader = Counter(), iter(shards.loader(4, (0, 0)))
    for _ in range(30):
        pictures, captions = next(loader)
        assert pictures.shape == (4, 3, 16, 16)
        for picture, (caption,) in zip(pictures, captions, strict=True):
            assert picture.float().mean((1, 2)).argmax() == {"a red wall": 0, "grün": 1, "the sea": 2}[caption]
            seen[caption] += 1
    assert min(seen.values()) > 10


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["plain", "one", "two"])
def test_a_phase_trains_from_a_stream(folder: Path, stage: str):
    shards, target = Shards(str(folder), 64, 0), load_target("tiny")
    torch.manual_seed(0)
    model = PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8))
    run = Trainer(model, shards, replace(TrainConfig(stage).fast(), steps=4, pool=4, schedule="sessions"), target)
    rows = run.fit()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(math.isfinite(row["loss"]) for row in rows)
    if stage == "two":
        assert all("l_uc" in row for row in rows)
