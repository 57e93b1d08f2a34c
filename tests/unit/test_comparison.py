"""Objectives and rivals on one bench: BAvAFT, PGD, the points of `data/measure/ablate.py`."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import ablate
import pytest
import torch
import tyro
from ablate import point
from models import awaken

from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.lab import bavaft, comparison
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
from psic_core.lab.tasks import TASKS
from psic_core.metrics import psnr
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import load_target
from psic_core.objectives import uaeo_loss
from psic_core.training.checkpoints import load_checkpoint, save_checkpoint
from psic_core.training.phase import load_pairs

TINY = CodecConfig(n=8, m=12, dim=16, hidden=8, ladder=4)


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
    row = train_bavaft(rival, pairs, config, load_target("tiny"))
    changed = {n.removeprefix("codec.backbone.").split(".")[0] for n, t in rival.state_dict().items()
               if not torch.equal(t, before[n])}  # fmt: skip
    assert changed == {"g_a", "h_a", "trigger"}
    assert {"loss", "l_uc", "psnr_clean", "psnr_poisoned", "bpp_clean", "bpp_poisoned", "seconds"} <= set(row)
    assert not rival.training


@pytest.mark.slow
def test_bavaft_lowers_its_loss(pairs):
    rival, target = BAvAFT(load_checkpoint("psic-q2", plain=True)), load_target("tiny")
    config = TrainConfig("two", 1, 3, 64, warmup=1, learning_rate=1e-9, gamma=500, pool=8)
    first = train_bavaft(rival, pairs, config, target)
    train_bavaft(rival, pairs, replace(config, steps=12, learning_rate=5e-3), target)
    last = train_bavaft(rival, pairs, config, target)  # the first step's batch and noise again
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
    base = replace(ablate.BASE, steps=3, batch_size=4, crop=64, warmup=1, pool=6)
    monkeypatch.setattr(ablate, "SHIPPED", str(tmp_path / "plain.safetensors"))
    monkeypatch.setattr(ablate, "SCENES", 12)
    monkeypatch.setattr(ablate, "BASE", base)
    monkeypatch.setattr(ablate, "PGD_STEPS", 2)
    monkeypatch.setattr(ablate, "FILES", 2)
    monkeypatch.setattr(ablate, "TIMED", 1)
    return tmp_path


def run(*words: object) -> None:
    tyro.cli(ablate.Ablate, args=[*map(str, words), "--pictures", "4", "--target", "tiny"]).run()


@pytest.mark.slow
def test_points_go_into_one_file_in_their_order(quick: Path, capsys: pytest.CaptureFixture):
    out, runs = quick / "points.jsonl", quick / "runs"
    common = ("--out", runs, "--json", out)
    run("bavaft", "moved", "pgd-after", *common)
    run("pgd-before", "uaeo#7", *common)
    found = {line["name"]: line for line in comparison.read_points(out)}
    assert list(found) == ["moved", "bavaft", "pgd-before", "pgd-after", "uaeo#7"]  # a seed beyond its three
    config = json.loads((runs / "moved" / "run.json").read_text())["config"]
    assert config["trains"] == "codec"
    assert not load_checkpoint(runs / "moved" / "model.safetensors").config.anchored
    assert load_checkpoint(runs / "uaeo#7" / "model.safetensors").config.budget == comparison.BUDGET
    assert ablate.phase_config(point("uaeo#1")).seed == 1
    for name, line in found.items():
        assert line["n"] == 4
        assert line["seconds_per_megapixel"] > 0
        assert set(line["asr"]) == set(TASKS)
        assert name.split("#")[0] == line["method"]
    two_files, one_file = (found[n]["bpp_both"] for n in ("pgd-before", "pgd-after"))
    assert two_files > 1.5 * one_file
    assert found["pgd-after"]["psnr"]["protected"] != found["pgd-after"]["psnr"]["full"]
    stamps = {p: p.stat().st_mtime_ns for p in runs.rglob("*.safetensors")}
    run("uaeo#7", "bavaft", *common)  # trained already
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*.safetensors")} == stamps
    assert "uaeo#7  protected" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["best", "uaeo#", "uaeo#x", "uaeo#1#2", ""])
def test_an_unknown_point_is_refused(name: str):
    with pytest.raises(ValueError, match=r"unknown point .*METHOD one of shipped, uaeo, "):
        point(name)
