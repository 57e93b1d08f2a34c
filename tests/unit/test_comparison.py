"""Objectives and rivals on one bench: BAvAFT, PGD, the points of `psic ablate`, curves at equal PSNR."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import awaken
from test_tables import cells

from psic_core.app import comparison_tables
from psic_core.app.cli import main
from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.lab import ablations, bavaft, bench, comparison, frontier
from psic_core.lab.ablations import Point, point
from psic_core.lab.bavaft import (
    BLOCK,
    CHOSEN,
    BAvAFT,
    FrequencyTrigger,
    dct_matrix,
    mid_frequencies,
    train_bavaft,
)
from psic_core.lab.pgd import coded, pgd, pull_to
from psic_core.metrics import Flips, psnr
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import load_target
from psic_core.objectives import uaeo_loss
from psic_core.training.checkpoints import load_checkpoint, save_checkpoint
from psic_core.training.phase import load_pairs

TINY = CodecConfig(n=8, m=12, dim=16, hidden=8, residual=4)


def tiny(kind: str = "psic") -> PSIC:
    torch.manual_seed(0)
    model = PSIC.build(TINY)
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
    model = awaken(model).eval()
    model.kind = kind
    return model


def photos(n: int, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    """Smooth colour gradients with some grain, away from black and white."""
    rng = torch.Generator().manual_seed(seed)
    small = 0.3 + 0.4 * torch.rand(n, 3, 4, 4, generator=rng)
    x = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0.2, 0.8)
    return round_to_8_bits(x + 0.02 * torch.randn(x.shape, generator=rng))


# --- BAvAFT -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (50, 70)])
def test_the_trigger_stays_in_its_frequencies(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    trigger, x = FrequencyTrigger(), photos(2, *shape)
    assert torch.equal(trigger(x), round_to_8_bits(trigger(x)))
    monkeypatch.setattr(bavaft, "round_to_8_bits", lambda x: x)  # rounding spreads over all frequencies
    added = (trigger(x) - x).detach()
    whole = [side // BLOCK * BLOCK for side in shape]  # blocks that padding does not cut
    d, blocks = dct_matrix(), added[..., : whole[0], : whole[1]]
    blocks = blocks.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    power = torch.einsum("ui,bcrisj,vj->bcuvrs", d, blocks, d).square().mean((1, 4, 5))  # B u v
    for one in power:
        carrying = {tuple(f) for f in (one > 1e-6 * one.max()).nonzero().tolist()}
        assert len(carrying) == CHOSEN
        assert carrying <= set(mid_frequencies())


@pytest.fixture(scope="module")
def pairs():
    return load_pairs(("scenes",), None, 12, 64).with_features(load_target("tiny"))


def test_bavaft_trains_encoder_and_trigger_alone(pairs):
    rival = BAvAFT(tiny("plain"))
    before = copy.deepcopy(rival.state_dict())
    config = TrainConfig("two", 3, 4, 64, warmup=1, gamma=50, pool=8, masking=1.1)
    row = train_bavaft(rival, pairs, config, load_target("tiny"), progress=False)
    changed = {n.removeprefix("codec.backbone.").split(".")[0] for n, t in rival.state_dict().items()
               if not torch.equal(t, before[n])}  # fmt: skip
    assert changed == {"g_a", "h_a", "trigger"}
    assert {"loss", "l_uc", "psnr_clean", "psnr_poisoned", "bpp_clean", "bpp_poisoned", "seconds"} <= set(row)
    assert not rival.training


@pytest.mark.slow
def test_bavaft_lowers_its_loss(pairs):
    rival, target = BAvAFT(load_checkpoint("psic-q2", plain=True)), load_target("tiny")
    config = TrainConfig("two", 1, 6, 64, warmup=1, learning_rate=1e-9, gamma=500, pool=8)
    first = train_bavaft(rival, pairs, config, target, progress=False)
    train_bavaft(rival, pairs, replace(config, steps=12, learning_rate=5e-3), target, progress=False)
    last = train_bavaft(rival, pairs, config, target, progress=False)  # the first step's batch and noise again
    assert last["loss"] < 0.97 * first["loss"]
    assert last["l_uc"] < first["l_uc"]


def test_bavaft_wants_a_plain_codec():
    with pytest.raises(ValueError, match="plain codec; this one is of kind 'psic'"):
        BAvAFT(tiny("psic"))


# --- PGD --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [24.0, 36.0])
def test_pgd_reaches_its_level_and_lowers_the_loss(level: float):
    target, x = load_target("tiny"), photos(3)
    texts = target.encode_text(["a dog", "a boat on the sea", "two people"])
    loss = pull_to(target, texts, torch.tensor([0, 1, 2]))
    found = pgd(x, loss, level, steps=5)
    assert torch.equal(found, round_to_8_bits(found))
    assert all(psnr(a, b) > level - 0.1 for a, b in zip(found, x, strict=True))
    assert all(psnr(a, b) < level + 3 for a, b in zip(found, x, strict=True))  # the ball is used
    with torch.no_grad():
        assert (loss(found) < loss(x)).all()


def test_the_pull_is_equation_9():
    target, x = load_target("tiny"), photos(4)
    texts, chosen = target.encode_text([f"caption {k}" for k in range(5)]), torch.tensor([3, 0, 4, 1])
    with torch.no_grad():
        each = pull_to(target, texts, chosen, 0.1)(x)
        assert each.mean() == pytest.approx(float(uaeo_loss(target.encode_image(x), texts, chosen, 0.1)), rel=1e-5)


def test_the_codec_in_the_loop_gives_what_files_give_and_a_gradient():
    codec, x = tiny("plain"), photos(1, 50, 70).requires_grad_(True)
    shown = coded(codec)(x)
    file = codec.compress(x.detach())
    assert torch.allclose(shown, round_to_8_bits(codec.decompress_tensor(file)), atol=1.01 / 255)
    assert (shown - round_to_8_bits(codec.decompress_tensor(file))).abs().mean() < 1e-4
    shown.square().sum().backward()
    assert x.grad.abs().sum() > 0


# --- the bench and the points -----------------------------------------------------------------------


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_checkpoint(tiny("plain"), tmp_path / "plain.safetensors")
    monkeypatch.setattr(ablations, "SHIPPED", str(tmp_path / "plain.safetensors"))
    monkeypatch.setattr(ablations, "SCENES", 12)
    monkeypatch.setattr(ablations, "BASE", replace(ablations.BASE, steps=3, batch_size=4, crop=64, warmup=1, pool=6))
    monkeypatch.setattr(comparison, "PGD_STEPS", 2)
    monkeypatch.setattr(bench, "FILES", 2)
    monkeypatch.setattr(bench, "TIMED", 1)
    one = ablations.VARIANTS["stage-one"]
    before = replace(one.before, steps=2, batch_size=4, crop=64)
    monkeypatch.setitem(ablations.VARIANTS, "stage-one", replace(one, before=before))
    return tmp_path


def ablate(*words: object) -> None:
    assert main(["ablate", *map(str, words), "--pictures", "4", "--target", "tiny"]) == 0


@pytest.mark.slow
def test_points_go_into_one_file_in_their_order(quick: Path, capsys: pytest.CaptureFixture):
    out, runs = quick / "points.jsonl", quick / "runs"
    common = ("--out", runs, "--json", out)
    ablate("bavaft@60", "paper", "pgd-after", *common)
    ablate("pgd-through@30", "pgd-before@24", "stage-one", "uaeo@56#1", "uaeo@7", *common)
    found = {line["name"]: line for line in comparison.read_points(out)}
    assert list(found) == ["uaeo@56#1", "paper@56", "stage-one@56", "bavaft@60", "pgd-before@24", "pgd-after@36",
                           "pgd-through@30", "uaeo@7"]  # fmt: skip # the last two are in no sweep
    assert {n: line["encodings"] for n, line in found.items() if line["encodings"] == 2} == dict.fromkeys(
        ["bavaft@60", "pgd-before@24", "pgd-through@30"], 2
    )
    config = json.loads((runs / "paper@56" / "run.json").read_text())["config"]
    assert config["trains"] == "codec"
    assert json.loads((runs / "uaeo@56#1" / "run.json").read_text())["config"]["seed"] == 1
    assert (runs / "stage-one@56-before" / "model.safetensors").is_file()
    for name, line in found.items():
        assert line["n"] == 4
        assert line["bpp_both"] == pytest.approx(line["bpp"], abs=0) or line["encodings"] == 2
        assert line["seconds_per_megapixel"] > 0
        assert set(line["asr"]) == set(bench.TASKS)
        assert name.split("@")[0] == line["method"]
    assert found["pgd-after@36"]["psnr"]["protected"] != found["pgd-after@36"]["psnr"]["full"]
    stamps = {p: p.stat().st_mtime_ns for p in runs.rglob("*.safetensors")}
    ablate("uaeo@7", "bavaft@60", *common)  # trained already
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*.safetensors")} == stamps
    assert "uaeo@7  protected" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["best", "uaeo@", "uaeo#x", "uaeo@1@2", ""])
def test_an_unknown_point_is_refused(name: str):
    with pytest.raises(ValueError, match=r"unknown variant .*METHOD one of uaeo, naive"):
        point(name)


# --- curves -----------------------------------------------------------------------------------------


def line(method: str, strength: float, level: float, share: float, seed: int = 0, n: int = 200) -> dict:
    """A point whose ASR is exactly ``share`` in both of two tasks."""
    flipped = torch.zeros(n, dtype=torch.float64)
    flipped[torch.randperm(n, generator=torch.Generator().manual_seed(3))[: round(share * n)]] = 1
    flips = bench.pack_flips(Flips(torch.ones(n, dtype=torch.float64), flipped))
    return {"method": method, "strength": strength, "seed": seed, "psnr": {"protected": level},
            "flips": {"t2i": flips, "i2t": flips}}  # fmt: skip


LINES = [line("a", 10, 29.0, 0.2), line("a", 20, 28.0, 0.6), line("b", 10, 28.8, 0.3), line("b", 30, 27.8, 0.4)]


def test_success_is_linear_between_the_points():
    a = frontier.curve(LINES, "a")
    assert frontier.success(a, 28.5, ["t2i"]).value == pytest.approx(0.4)
    assert frontier.success(a, 28.0, ["t2i", "i2t"]).value == pytest.approx(0.6)
    assert frontier.success(a, 27.8, ["t2i"]).value == pytest.approx(0.6)  # within the tolerance
    assert frontier.success(a, 27.7, ["t2i"]) is None
    assert frontier.success(a, 29.3, ["t2i"]) is None


def test_a_gap_is_taken_on_the_same_pictures():
    a, b = (frontier.curve(LINES, m) for m in "ab")
    gap = frontier.gap(a, b, 28.3, ["t2i", "i2t"])
    assert gap.value == pytest.approx(0.48 - 0.35)
    assert gap.ci95[0] < gap.value < gap.ci95[1]
    same = frontier.gap(a, a, 28.3, ["t2i"])
    assert (same.value, *same.ci95) == pytest.approx((0, 0, 0))
    assert frontier.gap(a, b, 29.2, ["t2i"]) is None
    assert frontier.common_range([a, b]) == (28.0, 28.8)


def test_seeds_are_averaged_and_their_spread_is_said():
    seeds = [line("a", 10, level, share, seed) for seed, (level, share) in enumerate([(28.9, 0.2), (29.1, 0.4)])]
    a = frontier.curve([*seeds, line("a", 20, 28, 0.8)], "a")
    assert a.seeds == 2
    assert a.points[1].psnr == pytest.approx(29.0)
    assert frontier.success(a, 29.0, ["t2i"]).value == pytest.approx(0.3)
    assert frontier.spread(a, ["t2i"]) == pytest.approx(torch.tensor([0.2, 0.4]).std().item(), abs=1e-6)
    assert frontier.spread(frontier.curve(LINES, "a"), ["t2i"]) is None


# --- tables and figures -----------------------------------------------------------------------------


def record(method: str, strength: float, below: float, share: float, seed: int = 0) -> dict:
    """A whole point, ``below`` dB under a plain codec at 29 dB."""
    flips = line(method, strength, 29 + below, share, seed)["flips"]["t2i"]
    estimate = {"value": share, "ci95": [share - 0.05, share + 0.05], "n": 200}
    clean = -0.3 if method == "bavaft" else 0.0
    return {
        "name": str(Point(method, strength, seed)), "method": method, "strength": strength, "seed": seed,
        "what": f"about {method}", "n": 200, "psnr": {"full": 29 + clean, "protected": 29 + below},
        "asr": dict.fromkeys(bench.TASKS, estimate), "null": dict.fromkeys(bench.TASKS, estimate | {"value": 0.02}),
        "flips": dict.fromkeys(bench.TASKS, flips), "bpp": 0.4, "bpp_both": 0.8 if method == "bavaft" else 0.4,
        "encodings": 2 if method == "bavaft" else 1, "seconds_per_megapixel": 2.5, "training_s": 1.0,
    }  # fmt: skip


RECORDS = [
    record("uaeo", 30, -0.5, 0.5), record("uaeo", 56, -1.5, 0.7), record("uaeo", 56, -1.5, 0.8, 1),
    record("i2t", 30, -0.5, 0.6), record("i2t", 56, -1.5, 0.8),
    record("naive", 280, -0.5, 0.4), record("naive", 560, -1.5, 0.6),
    record("bavaft", 30, -0.9, 0.3), record("pool-8", 56, -1.0, 0.9), record("pgd-after", 36, -3.0, 1.0),
]  # fmt: skip


def test_claims_are_differences_at_equal_psnr():
    rows = [cells(r) for r in comparison_tables.claims_table(RECORDS).splitlines()[2:]]
    assert len(rows) == 6
    first = rows[0]
    assert first[:3] == ["PSIC, UAEO as printed (Eq. 9) − PSIC, naive", "t2i", "+6.3"]
    assert first[4].startswith("+20.0 [")
    both = next(r for r in rows if "both ways − BAvAFT" in r[0])
    assert both[1:3] == ["mean of four", "+12.9"]
    assert both[4].startswith("+32.5 [")
    assert both[5] == "7.1"  # the standard deviation of 70 and 80
