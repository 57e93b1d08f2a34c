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
from psic_core.datasets.webdataset import Shards
from psic_core.models.vlp import Target
from psic_core.training.trainer import Trainer

# WebDataset leaves its files to the garbage collector, and tells of what it skips by a warning.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
SAYS = {"a red wall": 0, "grün": 1, "the sea": 2}


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
def pattern(tmp_path: Path) -> str:
    shard(tmp_path / "00000.tar", {"0.png": picture("red"), "0.txt": b"a red wall\n", "0.json": b"{}",
                                   "1.png": picture("green"), "1.txt": "grün".encode()})  # fmt: skip
    shard(tmp_path / "00001.tar", {"2.jpeg": picture("blue", "jpeg"), "2.txt": b"the sea"})
    return f"{tmp_path}/{{00000..00001}}.tar"


def test_a_stream_shows_every_pair_and_never_ends(pattern: str):
    seen, batches = Counter(), Shards(pattern, 16, 0).batches(4, 0)
    for _ in range(30):
        pictures, captions = next(batches)
        assert pictures.shape == (4, 3, 16, 16)
        for shown, (caption,) in zip(pictures, captions, strict=True):
            assert shown.float().mean((1, 2)).argmax() == SAYS[caption]
            seen[caption] += 1
    assert min(seen.values()) > 10


def test_what_is_damaged_is_told_and_skipped(pattern: str, tmp_path: Path):
    bad = {"cut.png": picture("red")[:60], "cut.txt": b"cut off", "alone.txt": b"alone", "mute.png": picture("red"),
           "odd.png": picture("red"), "odd.txt": b"\xff\xfe"}  # fmt: skip
    shard(tmp_path / "00002.tar", bad)
    shard(tmp_path / "00003.tar", {"9.png": picture("red"), "9.txt": b"cut"}).write_bytes(b"no tar" * 200)
    stream = Shards(pattern.replace("00001}", "00003}"), 16, 0).batches(4, 0)
    with pytest.warns(UserWarning, match="skipped") as told:
        words = {caption for _ in range(3) for (caption,) in next(stream)[1]}
    assert words == set(SAYS)
    said = " ".join(str(warning.message) for warning in told)
    assert all(why in said for why in ("cannot read", "UnicodeDecodeError", "00003.tar"))


def test_shards_that_are_not_there_are_named(pattern: str):
    with pytest.raises(FileNotFoundError, match="no shard .*00002.tar"):
        Shards(pattern.replace("00001}", "00002}"), 16).batches(4, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), [("plain", 1), ("one", 0), ("two", 0)])
def test_a_phase_trains_from_a_stream(pattern: str, stage: str, workers: int, target: Target):
    torch.manual_seed(0)
    model = PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8))
    config = replace(TrainConfig(stage).fast(), steps=4, pool=4)
    rows = Trainer(model, Shards(pattern, 64, workers), config, target).fit()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(math.isfinite(row["loss"]) for row in rows)
    if stage == "two":
        assert all("l_uc" in row for row in rows)
