"""The tables of README and cards say what the files say."""

import json
from pathlib import Path

import pytest
import torch
import upkeep
from matplotlib.figure import Figure
from sizes import SHOWN

from psic_core.app import figures, tables
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.lab.evaluate import NULLS, pack_flips
from psic_core.lab.tasks import TASKS
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
        "recall": {"i2t": {v: recalls for v in ("original", "plain", "protected")}},
        "flips": {"i2t": {v: pack_flips(count_flips(before, ~m)) for v, m in lost.items()}},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for quality, share in ((1, 0.5), (2, 1.0)):
        (tmp_path / f"psic-q{quality}.json").write_text(json.dumps(report(quality, share)))
    return tmp_path


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_success_is_the_mean_over_the_rates(folder: Path):
    *_, row = tables.success_table(tables.reports(folder)).splitlines()
    name, task, right, protected, full, jpeg, _, wrong, above, _, paper = cells(row)
    assert (name, task, right) == ("scenes (40)", tables.TASK_TITLES["i2t"], "65.0 %")
    assert protected.startswith("**75.0 [")
    assert wrong.startswith("75.0 [")
    assert full == jpeg == "0.0 [0.0, 0.0]"
    assert above == "+75.0"  # protected minus noise
    assert paper == "–"  # the paper knows no scenes


def captioned(cider: float) -> dict:
    scores = {f"bleu{n}": 0.5 / n for n in (1, 2, 3, 4)} | {"cider": cider}
    return {
        "bpp": 0.5, "scores": dict.fromkeys(("original", "plain", "full", "protected"), scores),
        "cider_loss": {"full": {"value": 0.0}, "protected": {"value": 0.4}},
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
        r["score"] = {"i2t": dict.fromkeys(tables.DRAWN, 0.5), "t2i": dict.fromkeys(tables.DRAWN, 0.4)}
    drawn = lines(figures.against_rate(upkeep.score_panels(found, {1: captioned(0.4)})))
    assert len(drawn) == 4
    assert drawn["image→text retrieval, R@1, flickr8k (%)"]["protected"] == [[0.1, 50.0], [0.2, 50.0]]
    assert drawn["captions, cider (%)"]["full"] == [[0.5, 40.0]]


def point(method: str, below: float, share: float, seed: int = 0) -> dict:
    """A line of `points.jsonl`, ``below`` dB under a plain codec at 29 dB."""
    return {
        "method": method, "seed": seed, "psnr": {"plain": 29, "full": 29, "protected": 29 + below},
        "asr": {t: {"value": share} for t in TASKS}, "null": {t: {"value": 0.02} for t in TASKS},
        "bpp_both": 0.4, "seconds_per_megapixel": 2.5,
    }  # fmt: skip


def test_claims_are_differences_of_means_beside_the_seeds_bands():
    points = [point("uaeo", -0.7, 0.5), point("uaeo", -0.8, 0.75, 1)]
    points += [point("naive", -0.5, 0.4), point("bavaft", -1.0, 0.3)]
    rows = [cells(r) for r in tables.claims_table(points).splitlines()[2:]]
    assert rows[0] == ["UAEO − naive", "t2i", "+6.3", "+22.5", "62.5 [50.0, 75.0]", "40.0", "-0.25 dB"]
    assert rows[2][:4] == ["UAEO − bavaft", "mean of four", "+12.9", "+32.5"]
    assert len(tables.claims_table(points[:3]).splitlines()) == 2 + 2  # no BAvAFT yet
    table = tables.ablations_table(points).splitlines()
    assert len(table) == 2 + 3
    assert cells(table[2])[1:7] == ["2", "-0.75 dB", *["62.5 [50.0, 75.0]"] * 3, "2.0"]
    assert cells(table[3])[1:4] == ["1", "-0.50 dB", "40.0"]


def test_the_frontier_has_a_dot_for_each_seed():
    drawn = lines(figures.frontier({"uaeo": [(-0.7, 0.5), (-0.8, 0.6)], "naive": [(-0.5, 0.4)]}))[""]
    assert drawn == {"uaeo": [[-0.7, 50], [-0.8, 60]], "naive": [[-0.5, 40]]}


def test_the_size_curve_counts_the_photos_of_all_sets():
    def row(dataset: str, side: int, lost: int, n: int = 10) -> dict:
        flags = {v: torch.arange(n) >= (lost if v == "protected" else 0) for v in SHOWN}
        flips = {v: pack_flips(count_flips(torch.ones(n, dtype=torch.bool), f)) for v, f in flags.items()}
        means = {"change": 40.0 - lost, "likeness": 0.5}
        return means | {"dataset": dataset, "side": side, "budget": 8.0, "n": n, "flips": {"as published": flips}}

    found = {"rows": [row("kodak", 160, 4), row("kodak", 0, 9), row("camera", 160, 10, 30)]}
    first, second = (cells(r) for r in tables.sizes_table(found).splitlines()[2:])
    assert first[:5] == ["160 px", "8", "40", "31.50 dB", "0.50"]
    assert first[5].startswith("**35.0 [")
    assert first[6] == "0.0 [0.0, 0.0]"
    assert second[0] == "as they are"
    assert cells(upkeep.platforms_table(found).splitlines()[2]) == ["as published", "35.0 (0.0)", "90.0 (0.0)"]
    drawn = lines(figures.against_rate(upkeep.sizes_panels(found, found), ""))
    assert drawn[upkeep.BY_SIDE]["protected"] == [[0, 35.0], [1, 90.0]]
    assert drawn[upkeep.BY_COST]["protected"] == [[31.5, 35.0], [31.0, 90.0]]


def test_phases_that_several_checkpoints_share_stand_once(tmp_path: Path):
    def phase(stage: str, init: str | None, seconds: float) -> dict:
        config = {"stage": stage, "lmbda": 0.01, "steps": 10, "batch_size": 4, "first_budget": 12}
        return {"config": config, "init": init, "seconds": seconds, "kind": "psic" if stage == "two" else "plain",
                "datasets": ["scenes"], "hardware": "CPU", "commit": "0123456789+changes"}  # fmt: skip

    model = PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8, budget=8.0))
    shared = phase("plain", None, 60.0)
    for quality in (1, 2):
        card = {"history": [shared, phase("two", "plain/model.safetensors", 60.0 * quality)]}
        save_checkpoint(model, tmp_path / f"psic-q{quality}.safetensors", card)
    rows = upkeep.history_table([str(tmp_path / f"psic-q{q}.safetensors") for q in (1, 2)]).splitlines()[2:]
    assert [cells(r)[1] for r in rows] == ["plain", "two", "two"]
    assert [cells(r)[5:7] for r in rows] == [["–", "1"], ["12 to 8", "1"], ["12 to 8", "2"]]
    assert cells(rows[0])[-1] == "01234567+"
    assert cells(rows[0])[0] == "q1 q2"
