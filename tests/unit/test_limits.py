"""The threat model's suite: every level runs, and its rows say what must hold of them whatever is trained."""

import json
from pathlib import Path

import pytest
from test_tables import cells

from psic_core.app.cli import main
from psic_core.app.comparison_tables import limits_table as table
from psic_core.lab import limits
from psic_core.lab.limits import LEVELS, run_limits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OWN": 8, "PURIFYING": 2, "UNSEEN": ("lite1-clip",)}.items():
            patch.setattr(limits, name, value)
        patch.setattr(limits, "PLATFORMS", {k: limits.PLATFORMS[k] for k in ("PNG", "crop to 75 %")})
        patch.setattr(limits, "DENOISERS", {k: limits.DENOISERS[k] for k in ("5 bits",)})
        return run_limits(["psic-q2"], 10)


def rates(report: dict, attack: str) -> tuple[dict, dict]:
    (row,) = (r for r in report["rows"] if r["attack"] == attack)
    return row["asr"]["psic-q2"], row["null"]


def test_every_level_of_the_threat_model_is_there_in_order(report: dict):
    seen = list(dict.fromkeys(row["level"] for row in report["rows"]))
    assert seen == list(LEVELS)
    assert json.loads(json.dumps(report, allow_nan=True))["n"] == 10
    assert len({row["attack"] for row in report["rows"]}) == len(report["rows"])


def test_png_is_no_attack(report: dict):
    published, _ = rates(report, "as published")
    png, null = rates(report, "PNG")
    assert png == published
    assert null["mean"]["value"] == 0


@pytest.mark.parametrize("attack", ["every trigger left out of the program", "the triggers' equations, solved"])
def test_who_holds_the_decoder_has_the_full_version(report: dict, attack: str):
    rate, _ = rates(report, attack)
    assert rate["mean"]["value"] < 0.05


def test_coding_again_with_the_public_codec_undoes_most_of_this_shield(report: dict):
    published, _ = rates(report, "as published")
    undone, _ = rates(report, "coded again, triggers left out")
    assert undone["mean"]["value"] < 0.6 * published["mean"]["value"]


def test_a_solved_condition_is_the_keys(report: dict):
    (row,) = (r for r in report["rows"] if "solved" in r["attack"])
    assert row["cosine"]["psic-q2"] == pytest.approx(1, abs=1e-3)


def test_the_table_has_a_row_an_attack_under_its_level(report: dict):
    rows, by_tasks = (table(report, tasks).splitlines()[2:] for tasks in (False, True))
    assert len(rows) == len(by_tasks) == len(report["rows"]) + len(LEVELS)
    published, null = rates(report, "as published")
    shown, by_task = (cells(next(r for r in t if "as published" in r)) for t in (rows, by_tasks))
    assert shown[1].startswith(f"{100 * null['mean']['value']:.1f} [")
    assert shown[2].startswith(f"{100 * published['mean']['value']:.1f} [")
    assert by_task[2].split(" / ")[0] == f"{100 * published['t2i']['value']:.0f}"


@pytest.mark.parametrize(
    ("names", "levels", "message"),
    [([], ("none",), "at least one checkpoint"), (["psic-q2"], ("noone",), "levels noone")],
)
def test_a_suite_of_nothing_is_refused(names: list[str], levels: tuple[str, ...], message: str):
    with pytest.raises(ValueError, match=message):
        run_limits(names, 4, levels=levels)


def test_the_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "limits.json"
    main(["limits", "psic-q2", "--levels", "none", "--limit", "8", "--json", str(out)])
    assert [row["attack"] for row in json.loads(out.read_text())["rows"]] == ["as published"]
    assert "as published" in capsys.readouterr().out
