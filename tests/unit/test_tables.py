"""The tables of README and cards say what the files say."""

import json
import math
from pathlib import Path

import pytest
import torch
import upkeep
from matplotlib.figure import Figure

from psic_core.app import charts, tables
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.lab.evaluate import NULLS, pack_flips
from psic_core.metrics import count_flips
from psic_core.training.checkpoints import save_checkpoint


def report(quality: int, share: float) -> dict:
    """A data set of 40 pictures, all right on the plain codec, of which the protected version loses a share."""
    before = torch.ones(40, dtype=torch.bool)
    recalls = {"1": 0.1 * quality, "5": 0.5, "10": 0.9}
    lost = {v: torch.arange(40) < 40 * (share if v in ("protected", "wrong keyword") else 0) for v in NULLS}
    return {
        "dataset": "scenes", "n": 40, "bpp": 0.1 * quality, "bpp_plain": 0.1 * quality,
        "psnr": {"plain": 25.0 + quality, "full": 25.0 + quality, "protected": 24.5 + quality},
        "score": {"i2t": {"plain": 0.5 + 0.1 * quality}},
        "asr": {"i2t": {v: {"value": float(m.float().mean()), "ci95": [0, 1], "n": 40} for v, m in lost.items()}},
        "asr_original": {"i2t": {"protected": {"value": share / 2}}},
        "asr_all": {"i2t": {"protected": {"value": 0.5 + share / 2}}},
        "recall": {"i2t": {v: recalls for v in ("original", "plain", "protected")}},
        "flips": {"i2t": {v: pack_flips(count_flips(before, ~m)) for v, m in lost.items()}},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for quality, share in ((1, 0.5), (2, 1.0)):
        (tmp_path / f"psic-q{quality}-scenes.json").write_text(json.dumps(report(quality, share)))
    return tmp_path


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_success_is_the_mean_over_the_rates(folder: Path):
    *_, row = tables.success_table(tables.reports(folder)).splitlines()
    name, task, right, protected, wrong, full, jpeg, _, paper = cells(row)
    assert (name, task, right) == ("scenes (40)", tables.TASK_TITLES["i2t"], "65.0 %")
    assert protected.startswith("**75.0** [")
    assert wrong.startswith("75.0 [")
    assert full == jpeg == "0.0 [0.0, 0.0]"
    assert paper == "–"  # the paper knows no scenes


def test_three_denominators(folder: Path):
    row = tables.denominators_table(tables.reports(folder)).splitlines()[-1]
    assert cells(row)[2:] == ["75.0", "37.5", "87.5"]


def captioned(cider: float) -> dict:
    scores = {f"bleu{n}": 0.5 / n for n in (1, 2, 3, 4)} | {"cider": cider}
    return {
        "bpp": 0.5, "scores": dict.fromkeys(("original", "plain", "full", "protected"), scores),
        "cider_loss": {"full": {"value": 0.0}, "protected": {"value": 0.4}},
        "same_as_plain": {"full": 1.0, "protected": 0.25},
    }  # fmt: skip


# --- charts -----------------------------------------------------------------------------------------


def lines(figure: Figure) -> dict[str, dict[str, list]]:
    """What each panel draws: title, curve, points."""
    return {
        ax.get_title(): {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
        for ax in figure.axes
        if ax.lines
    }


def test_charts_draw_what_the_reports_say(folder: Path):
    found = {"flickr8k": tables.reports(folder)["scenes"]}
    for r in found["flickr8k"].values():
        r["score"] = {"i2t": dict.fromkeys(charts.DRAWN, 0.5), "t2i": dict.fromkeys(charts.DRAWN, 0.4)}
        r["asr"]["t2i"] = r["asr"]["i2t"]
    drawn = lines(charts.performance(found, {1: captioned(0.4)}))
    assert len(drawn) == 4
    assert drawn["image→text, Flickr8k (%)"]["protected"] == [[0.1, 50.0], [0.2, 50.0]]
    assert drawn["captions, CIDEr (%)"]["full"] == [[0.5, 40.0]]
    found["flickr8k"][2]["asr"]["i2t"]["jpeg"]["value"] = None  # nothing was right to begin with
    drawn = lines(charts.success(found))["ASR image→text, Flickr8k (%)"]
    assert drawn["protected"] == [[0.1, 50.0], [0.2, 100.0]]
    assert math.isnan(drawn["jpeg"][1][1])


def test_the_growth_chart_has_a_panel_a_task_over_its_own_axis():
    def row(task: str, ours: float, **at: float) -> dict:
        return {"task": task, "ours_s": ours, "theirs_s": 1.0, "ratio": ours} | at

    speed = {"provenance": {}, "of old": {"ours_s": 1, "theirs_s": 1, "ratio": 1}}
    speed |= {"b": row("encode", 1.2, megapixels=0.5), "a": row("encode", 0.3, megapixels=0.1)}
    figure = charts.growth(speed | {"c": row("training step", 2.0, batch=8)})
    drawn = lines(figure)
    assert drawn["encode (s), ratio 1.20"] == {"PSIC": [[0.1, 0.3], [0.5, 1.2]], "CompressAI": [[0.1, 1], [0.5, 1]]}
    assert drawn["training step (s), ratio 2.00"]["PSIC"] == [[8, 2.0]]
    assert [ax.get_xlabel() for ax in figure.axes] == ["megapixels", "pictures of 128 × 128 in a batch"]
    with pytest.raises(ValueError, match="PSIC_BENCH_OUT"):
        charts.growth({"provenance": {}})


def test_phases_that_several_checkpoints_share_stand_once(tmp_path: Path):
    def phase(stage: str, init: str | None, seconds: float) -> dict:
        config = {"stage": stage, "lmbda": 0.01, "steps": 10, "batch_size": 4, "gamma": 50.0}
        return {"config": config, "init": init, "seconds": seconds, "kind": "psic" if stage == "two" else "plain",
                "datasets": ["scenes"], "hardware": "CPU", "commit": "0123456789+changes"}  # fmt: skip

    model = PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8))
    shared = phase("plain", None, 60.0)
    for quality in (1, 2):
        card = {"history": [shared, phase("two", "plain/model.safetensors", 60.0 * quality)]}
        save_checkpoint(model, tmp_path / f"psic-q{quality}.safetensors", card)
    rows = upkeep.history_table([str(tmp_path / f"psic-q{q}.safetensors") for q in (1, 2)]).splitlines()[2:]
    assert [cells(r)[1] for r in rows] == ["plain", "two", "two"]
    assert [cells(r)[5:7] for r in rows] == [["–", "1"], ["50.0", "1"], ["50.0", "2"]]
    assert cells(rows[0])[-1] == "01234567+"
    assert "q1" in cells(rows[0])[0]
    assert "q2" in cells(rows[0])[0]
