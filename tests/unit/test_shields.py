"""The three shields side by side: from the command to the rows of its file, with small models."""

import json
import sys

import limits
import pytest
import shields
import torch
from test_made_for_photo import model, reader
from upkeep import shields_table, threats_table

from psic_core.training import search
from psic_core.training.checkpoints import save_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("shields")
    save_checkpoint(model(), path / "small.safetensors", publish_secret=True)
    command = ["shields.py", f"{path}/small.safetensors", "demo", "--limit", "3", f"--cache={path}", f"--out={path}"]
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (search, "readers", reader),
            (limits, "OWN", 3),
            (shields, "SEALED_OWN", 2),
            (shields, "PURIFYING", 2),
            (shields, "READERS", ("tiny",)),
        ):
            patch.setattr(module, name, value)
        patch.setattr(sys, "argv", command)
        shields.main()
        patch.setattr(shields, "measure", None)  # what was measured is kept
        shields.main()
    return json.loads((path / "shields.json").read_text(encoding="utf-8"))


def test_every_attack_is_asked_of_all_three(report: dict):
    rows = {row["attack"]: row for row in report["sets"]["demo"]["rows"]}
    assert set(rows) >= {*shields.SHOWN, *shields.LEVELS}
    for row in rows.values():
        assert set(shields.SHIELDS) <= set(row["asr"])
    for shield in ("trained", "carried"):  # what lies beside the picture can be left out
        assert rows[shields.DECODER]["asr"][shield]["mean"]["value"] == 0
    assert rows[shields.PUBLISHED]["null"]["mean"]["value"] == 0
    for table in (shields_table(report), threats_table(report)):
        assert table.startswith("| ")


def test_a_rivals_sealed_pairs_differ_by_the_shield_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "readers", reader)
    monkeypatch.setattr(shields, "SEALED_OWN", 2)
    protected, full = shields.own_sealed(model())
    side = model().config.reading_side
    assert protected.shape == full.shape == (2, 3, side, side)
    change = (protected - full).square().mean((1, 2, 3))
    assert (change > 0).all()
    assert (change < torch.var(full)).all()
