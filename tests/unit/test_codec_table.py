"""The table of architectures: true rows for what works, and a row that says so where something does not."""

import json
from pathlib import Path

import pytest
from models import sizes

from psic_core import codec_table
from psic_core.cli import main
from psic_core.codec import PSIC

NAMES = ("bmshj2018-factorized", "mbt2018-mean-vbr")


def small(name: str) -> tuple[int, int]:
    return sizes(name)["n"], sizes(name)["m"]


def test_rows_say_what_was_compared_and_timed():
    report = codec_table.codec_table(NAMES, small, side=80, rounds=3)
    assert [row["architecture"] for row in report["rows"]] == list(NAMES)
    for row in report["rows"]:
        assert row["wraps"]
        assert row["same_strings"]
        assert row["zero_init_identical"]
        assert row["round_trips"]
        assert row["stages"] == 4
        assert row["bytes"] > 100
        assert 0 < row["synthesis_ms"] < row["decode_ms"]
        assert row["triggers_percent_of_synthesis"] == pytest.approx(100 * row["triggers_ms"] / row["synthesis_ms"])
        assert row["trigger_parameters"] > 1000
    assert "| mbt2018-mean-vbr | 8, 12 | yes | yes |" in codec_table.table(report)


def test_a_picture_that_differs_is_not_called_identical(monkeypatch: pytest.MonkeyPatch):
    synthesize = PSIC.synthesize
    monkeypatch.setattr(PSIC, "synthesize", lambda *args: synthesize(*args) + 1e-3)
    (row,) = codec_table.codec_table(NAMES[:1], small, side=64, rounds=1)["rows"]
    assert not row["zero_init_identical"]
    assert "| NO |" in codec_table.table({"rows": [row]})


def test_the_command_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(codec_table.codec_table, "__defaults__", (NAMES, small, 64, 1))
    assert main(["codecs", NAMES[0], "--rounds", "1", "--json", str(tmp_path / "codecs.json")]) == 0
    written = json.loads((tmp_path / "codecs.json").read_text())
    assert [row["architecture"] for row in written["rows"]] == [NAMES[0]]
    assert NAMES[0] in capsys.readouterr().out
    assert main(["codecs", "jpeg", "--json", str(tmp_path / "codecs.json")]) == 2
    assert "'jpeg' is none of" in capsys.readouterr().err
