"""Shards as a stream: every pair once an epoch over all processes, damage reported, exact resumption."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_trainer import differences, fast, lively, tiny, weights
from two_processes import write_shards

from psic_core.checkpoints import read_card
from psic_core.config import TrainConfig
from psic_core.datasets.shards import SkippedSample
from psic_core.datasets.streaming import Shards, Stream
from psic_core.evidence import caption_ids
from psic_core.pairs import Pairs
from psic_core.recipes import Phase, run_phase, streamed
from psic_core.streams import _numbers
from psic_core.targets import Target, load_target
from psic_core.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pairs of 96 pixels in four shards."""
    path = tmp_path_factory.mktemp("shards")
    write_shards(path, 24, 4)
    return path


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("tiny")


def captions(stream: Stream, batch: int = 4) -> list[str]:
    return [c for loaded in stream.loader(batch) for (c,) in loaded.captions]


def damage(shard: Path, key: str) -> None:
    """Cut a picture off in the middle, the tar file itself stays whole."""
    whole = shard.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        member = tar.getmember(key)
    middle = member.offset_data + 20
    shard.write_bytes(whole[:middle] + bytes(member.size - 20) + whole[member.offset_data + member.size :])


def test_ten_thousand_pairs_are_seen_once_an_epoch_by_two_processes_but_for_a_damaged_one(tmp_path: Path):
    write_shards(tmp_path, 10_000, 10, side=8)
    damage(tmp_path / "00003.tar", "000000123.jpg")
    shards, halves = Shards(str(tmp_path), 8, workers=0), []
    with pytest.warns(SkippedSample) as said:
        halves = [captions(Stream(shards, rank, 2, epochs=1), 64) for rank in (0, 1)]
    assert len(said) == 1
    assert "00003.tar: 000000123 cannot be read" in str(said[0].message)
    assert "skipped" in str(said[0].message)
    assert Counter(halves[0] + halves[1]) == Counter(f"pair {i}" for i in range(10_000) if i != 123)
    assert abs(len(halves[0]) - len(halves[1])) == 1
    near = sum(abs(int(a.split()[1]) - int(b.split()[1])) <= 10 for a, b in zip(halves[0], halves[0][1:], strict=False))
    assert near < 100  # neighbours in a shard no longer are


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_reading_processes_share_their_process_s_pairs(folder: Path):
    shards = Shards(str(folder), 16, workers=2, buffer=5)
    seen = [captions(Stream(shards, rank, 2, epochs=1), 2) for rank in (0, 1)]
    assert Counter(seen[0] + seen[1]) == Counter(f"pair {i}" for i in range(24))
    assert Stream(shards, 0, 2).readers == 2
    assert Stream(shards, 0, 4).readers == 1  # no reader without a shard


def test_every_epoch_has_an_order_of_its_own_and_every_pair_once(folder: Path):
    shards = Shards(str(folder), 16, workers=0, buffer=100)
    three = captions(Stream(shards, epochs=3))
    epochs = [three[k : k + 24] for k in (0, 24, 48)]
    assert all(Counter(e) == Counter(f"pair {i}" for i in range(24)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert captions(Stream(shards, epochs=1)) == epochs[0]
    assert captions(Stream(shards, epochs=1, seed=1)) != epochs[0]


def test_a_stream_goes_on_where_it_stood(folder: Path):
    shards = Shards(str(folder), 16, workers=0, buffer=7)
    whole = list(islice(Stream(shards), 60))
    for n in (1, 10, 24, 31):
        on = list(islice(Stream(shards, places=[whole[n - 1].place]), 60 - n))
        assert [s.caption for s in on] == [s.caption for s in whole[n:]]


def test_pairs_are_counted_by_img2dataset_or_by_headers(folder: Path, tmp_path: Path):
    assert len(Shards(str(folder), 16)) == 24
    write_shards(tmp_path, 4, 1, side=8)
    (tmp_path / "00000_stats.json").write_text(json.dumps({"successes": 3}))
    assert len(Shards(str(tmp_path), 16)) == 3


@pytest.mark.parametrize("stage", ["plain", "one", "two"])
def test_a_streamed_run_that_is_resumed_equals_one_that_was_not(
    stage: str, folder: Path, target: Target, tmp_path: Path
):
    shards = Shards(str(folder), 96, workers=0, buffer=5)
    model_of = tiny if stage == "plain" else lively
    whole, model = model_of(), model_of()
    rows = Trainer(whole, shards, fast(stage), target).fit()
    Trainer(model_of(), shards, fast(stage), target, tmp_path).fit(4)
    resumed = Trainer(model, shards, fast(stage), target, tmp_path).fit()
    assert differences(weights(whole), weights(model)) == set()
    assert [r["loss"] for r in resumed] == [r["loss"] for r in rows[4:]]


def test_the_pool_is_the_batch_and_then_the_latest_pairs(folder: Path, target: Target):
    shards = Shards(str(folder), 96, workers=0)
    run = Trainer(lively(), shards, replace(fast("two"), pool=10), target)
    texts = []
    for k in (4, 8, 10, 10):
        pool = run.source.pool(run._batch())
        texts = [c for (c,) in run.source.now.captions] + texts
        assert torch.allclose(pool.text, target.encode_text(texts[:k]), atol=1e-5)
        assert torch.equal(pool.image[:4], target.encode_images(run.source.now.pictures))
        assert len(pool.ids.unique()) == k


def test_equal_captions_have_equal_numbers_wherever_they_are_read():
    said = ["A dog", " a DOG ", "a cat", "A dog."]
    ids, ours = caption_ids(said), _numbers(said)
    assert torch.equal(ids[:, None] == ids, ours[:, None] == ours)


def test_what_does_not_fit_is_said(folder: Path, tmp_path: Path, target: Target):
    with pytest.raises(ValueError, match="4 shards cannot be shared by 5 processes"):
        Stream(Shards(str(folder), 16), 0, 5)
    with pytest.raises(ValueError, match=r"crop 64 exceeds.*\(48, 48\)"):
        Trainer(tiny(), Shards(str(folder), 48), fast("plain"))
    with pytest.raises(ValueError, match="attacks a target"):
        Trainer(tiny(), Shards(str(folder), 96), fast("one"))
    run = Trainer(lively(), Shards(str(folder), 96), fast("one"), target)
    with pytest.raises(ValueError, match="had 3 readers, this one has 2"):
        run.source.load({"taken": 1, "places": torch.zeros(3, 2, dtype=torch.int64), "earlier": None})
    with pytest.raises(ValueError, match="in memory"):
        run.source.load({})
    in_memory = Trainer(tiny("plain"), Pairs(torch.zeros(4, 3, 96, 96, dtype=torch.uint8), [()] * 4), fast("plain"))
    with pytest.raises(ValueError, match="streamed its pictures.*--stream yes"):
        in_memory.source.load(run.source.state())
    (tmp_path / "0.tar").write_bytes((folder / "00000.tar").read_bytes()[:700])
    with pytest.warns(SkippedSample), pytest.raises(ValueError, match=r"no readable pair.*0\.tar"):
        next(iter(Stream(Shards(str(tmp_path), 16, workers=0))))


def test_which_sets_are_streamed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    name = f"shards:{folder}"
    assert streamed(Phase((name,))) is None  # small
    assert streamed(Phase((name,), stream=True, workers=3)) == Shards(str(folder), 160, 3)
    monkeypatch.setattr("psic_core.recipes.STREAM_ABOVE", 1000)
    assert streamed(Phase((name,))) is not None
    assert streamed(Phase((name,), stream=False)) is None
    assert streamed(Phase((name, "scenes"))) is None
    with pytest.raises(ValueError, match="only one set of shards.*scenes"):
        streamed(Phase(("scenes",), stream=True))
    with pytest.raises(ValueError, match="thinned to 5"):
        streamed(Phase((name,), stream=True, pictures=5))
    with pytest.raises(ValueError, match="-1 workers"):
        streamed(Phase((name,), stream=True, workers=-1))


def test_a_phase_trains_from_a_stream(folder: Path, tmp_path: Path):
    config = replace(TrainConfig("plain").fast(), steps=2)
    phase = Phase((f"shards:{folder}",), size=96, stream=True, workers=0)
    run_phase(config, phase, tmp_path / "run")
    assert read_card(tmp_path / "run" / "model.safetensors")["card"]["history"][-1]["stream"] is True
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stream"] is True
