"""Training on two processes (gloo, as torchrun starts them) equals training on one."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_processes import RUNS, STREAMED, model_for, pairs, train_all, write_shards

from psic_core.checkpoints import load_checkpoint
from psic_core.processes import Processes, started
from psic_core.trainer import Trainer

TESTS = Path(__file__).parents[1]


def launch(n: int, out: Path) -> subprocess.Popen:
    """Start the trainings in n processes."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    command += [str(TESTS / "two_processes.py"), str(out)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], dict]:
    """What (run, processes, rank) left behind."""
    folder, found = tmp_path_factory.mktemp("processes"), {}
    for n in ("1", "2"):
        (folder / n).mkdir()
        write_shards(folder / n)
    both = launch(2, folder / "2")
    train_all(folder / "1")
    said, _ = both.communicate(timeout=300)
    assert both.returncode == 0, said[-4000:]
    for name in (*RUNS, *STREAMED):
        found |= {(name, n, r): torch.load(folder / str(n) / f"{name}-{r}.pt") for n in (1, 2) for r in range(n)}
    found["files"] = {run: sorted(p.name for p in (folder / "2" / run).iterdir()) for run in ("one", "phase", "cache")}
    found["models"] = [load_checkpoint(folder / n / "phase" / "model.safetensors") for n in ("1", "2")]
    return found


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_with_half_the_batch_equal_one(name: str, ran: dict):
    one, first, second = ran[name, 1, 0], ran[name, 2, 0], ran[name, 2, 1]
    moved = 0.0
    for n, weight in one["weights"].items():
        assert torch.equal(first["weights"][n], second["weights"][n]), n  # the processes agree to the bit
        moved = max(moved, float((first["weights"][n] - weight).abs().max()))
    assert moved < 5e-5  # Adam makes steps of 1e-3 out of gradients whose last bits differ
    assert len(one["rows"]) == len(first["rows"]) == RUNS[name].steps
    for mine, theirs in zip(one["rows"], first["rows"], strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"seconds", "objective"}:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-5), key


def test_each_process_sees_its_half_and_no_picture_is_seen_twice_in_an_epoch(ran: dict):
    one, halves = ran["one-mixed", 1, 0]["seen"], [ran["one-mixed", 2, r]["seen"] for r in (0, 1)]
    for whole, *parts in zip(one, *halves, strict=True):
        assert torch.equal(whole, torch.cat(parts))
        assert [len(p) for p in parts] == [2, 2]
    assert Counter(torch.cat([*halves[0], *halves[1]]).tolist()) == Counter(range(12))  # three steps are an epoch


@pytest.mark.parametrize("name", STREAMED)
def test_streams_are_shared_and_weights_agree(name: str, ran: dict):
    first, second = ran[name, 2, 0], ran[name, 2, 1]
    for n, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][n]), n
    halves = [Counter(c for batch in run["seen"] for c in batch) for run in (first, second)]
    assert not halves[0] & halves[1]
    assert sum((halves[0] + halves[1]).values()) == 4 * STREAMED[name].steps
    assert first["rows"] != ran[name, 1, 0]["rows"]  # other batches than one process draws


def test_a_streamed_epoch_shows_every_pair_once_across_a_resumption(ran: dict):
    """Twelve pairs in batches of four: three steps an epoch, the run broke off after the third."""
    for n in (1, 2):
        seen = [c for r in range(n) for batch in ran["stream-one", n, r]["seen"][:3] for c in batch]
        assert Counter(seen) == Counter(f"pair {i}" for i in range(12))


def test_a_phase_is_written_once_whole(ran: dict):
    assert ran["files"]["one"] == ["log.csv", "resume.pt"]
    assert ran["files"]["phase"] == ["log.csv", "model.safetensors", "resume.pt", "run.json"]
    (features,) = ran["files"]["cache"]
    assert features.startswith("features-")
    one, two = ran["models"]
    assert (one.kind, one.secret) == (two.kind, two.secret)
    assert one.card["last"]["loss"] == pytest.approx(two.card["last"]["loss"], rel=1e-4)
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=5e-5)


def test_processes_that_cannot_share_a_batch_are_refused(second: Processes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("psic_core.trainer.Processes", lambda _: second)
    with pytest.raises(ValueError, match="batch_size 3 .* 2"):
        Trainer(model_for("plain"), pairs(), replace(RUNS["plain"], batch_size=3))


def test_processes_that_cannot_talk_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    with pytest.raises(RuntimeError, match="2 processes were started.*ACCELERATE_USE_CPU=1"):
        started()


@pytest.fixture
def second() -> Processes:
    """The second of two, for what needs no first."""
    found = Processes(started())
    found.count, found.rank = 2, 1
    return found


def test_rows_are_shared_in_equal_runs(second: Processes):
    assert second.own(torch.arange(6)).tolist() == [3, 4, 5]


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 4, 4), 0), ((5, 1, 48), 2)])
def test_noise_is_that_of_the_whole_batch(shape: tuple[int, ...], axis: int, second: Processes):
    whole = list(shape)
    whole[axis] *= 2
    torch.manual_seed(3)
    all_rows = torch.empty(whole).uniform_(-0.5, 0.5)
    torch.manual_seed(3)
    with second.same_noise():
        own = torch.empty(shape).uniform_(-0.5, 0.5)
    assert torch.equal(own, all_rows.chunk(2, axis)[1])
