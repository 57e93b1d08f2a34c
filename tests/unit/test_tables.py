"""The tables of README and cards say what the files say."""

import json
from pathlib import Path

import pytest
import torch

from psic_core import tables
from psic_core.checkpoints import save_checkpoint
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.evaluation import NULLS, pack_flips
from psic_core.metrics import count_flips


def report(quality: int, share: float) -> dict:
    """A data set of 40 pictures, all right on the plain codec, of which the protected version loses a share."""
    before = torch.ones(40, dtype=torch.bool)
    lost = {v: torch.arange(40) < 40 * (share if v in ("protected", "wrong_key") else 0) for v in NULLS}
    return {
        "dataset": "scenes", "n": 40, "bpp": 0.1 * quality, "bpp_backbone": 0.1 * quality,
        "psnr": {"backbone": 25.0 + quality, "full": 25.0 + quality, "protected": 24.5 + quality},
        "score": {"i2t": {"backbone": 0.5 + 0.1 * quality}},
        "asr": {"i2t": {v: {"value": float(m.float().mean()), "ci95": [0, 1], "n": 40} for v, m in lost.items()}},
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
    assert (name, task, right) == ("scenes (40)", tables.TASKS["i2t"], "65.0 %")
    assert protected.startswith("**75.0** [")
    assert wrong.startswith("75.0 [")
    assert full == jpeg == "0.0 [0.0, 0.0]"
    assert paper == "72.3"


def test_each_rate_has_its_row(folder: Path):
    rows = tables.rates_table(tables.reports(folder)).splitlines()[2:]
    assert [cells(r) for r in rows] == [
        ["scenes", "q1", "0.100", "26.00 dB", "-0.50 dB", "–", "50.0", "–", "–"],
        ["scenes", "q2", "0.200", "27.00 dB", "-0.50 dB", "–", "100.0", "–", "–"],
    ]


def test_a_full_version_that_is_not_the_plain_codecs_is_said_so(folder: Path):
    found = tables.reports(folder)
    found["scenes"][1]["psnr"]["backbone"] = 26.3
    assert "26.00 dB (full)" in tables.rates_table(found)


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
    rows = tables.history_table([str(tmp_path / f"psic-q{q}.safetensors") for q in (1, 2)]).splitlines()[2:]
    assert [cells(r)[1] for r in rows] == ["plain", "two", "two"]
    assert [cells(r)[5:7] for r in rows] == [["–", "1"], ["50.0", "1"], ["50.0", "2"]]
    assert cells(rows[0])[-1] == "01234567+"
    assert "q1" in cells(rows[0])[0]
    assert "q2" in cells(rows[0])[0]


def test_curves_and_keywords_are_put_into_words(tmp_path: Path):
    point = {"bpp": 0.5, "psnr": 30.0, "ms_ssim": 0.97}
    rd = {"points": {"runs/psic-q4.safetensors": dict.fromkeys(("plain", "full", "sealed", "protected"), point)},
          "bd_rate": {"full": 0.0, "sealed": 1.5, "protected": None},
          "bd_psnr": {"plain against published": -2.5}}  # fmt: skip
    text = tables.rd_table(rd)
    assert "| q4 | 0.500 | 30.00 dB | 30.00 dB | 0.9700 | 0.9700 |" in text
    assert "full +0.00 %, full with a keyword in the file +1.50 %, protected – %" in text
    assert text.endswith("hyperprior: -2.50 dB.")
    audit = {"keywords": 3, "n": 9, "asr": {"t2i": {"protected": 0.9, "keys": [0.8, 0.9, 1.0]}},
             "reached": 0.1, "gain": 0.8}  # fmt: skip
    assert cells(tables.keywords_table({2: audit}).splitlines()[-1]) == [
        "q2", "3 × 9", "90.0", "90.0", "80.0", "at most 10 % of 0.80 dB"
    ]  # fmt: skip
    speed = {"a step": {"ours_s": 0.5, "theirs_s": 1.0, "ratio": 0.5}, "provenance": {"hardware": "CPU"}}
    assert "| a step | 0.500 s | 1.000 s | 0.50 |" in tables.speed_table(speed)
    (tmp_path / "tried.csv").write_text(
        "variant,what,psnr_full,psnr_protected,asr_t2i,asr_i2t,asr_classification,asr_attributes,null_i2t,"
        "null_classification,n,seconds\nbase,as shipped,29.1,28.0,60,70,80,40,0.0,0.0,120,150\n"
    )
    assert cells(tables.tried_table(tmp_path / "tried.csv").splitlines()[-1])[:4] == [
        "`base`", "as shipped", "29.1", "28.0"
    ]  # fmt: skip
