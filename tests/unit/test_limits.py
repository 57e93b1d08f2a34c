"""The threat model's suite: every level runs, and its rows say what must hold of them whatever is trained."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import limits
import purified
import pytest
import torch
from ablate import measured
from limits import DENOISERS, Limits, run_limits
from models import picture
from test_tables import cells
from torch import Tensor

from psic_core import keys
from psic_core.app.tables import limits_table as table
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.datasets.eval_sets import eval_set
from psic_core.lab.limits import LEVELS, PLAIN, Robustness
from psic_core.lab.processing import PLATFORMS, recoded
from psic_core.lab.rivals import finetune_reader
from psic_core.metrics import psnr
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import Target
from psic_core.training.checkpoints import load_checkpoint

pytestmark = pytest.mark.slow

SCENES = eval_set("scenes", limit=16)
KEEP_SIZE = set(PLATFORMS) - {"screenshot", "crop to 75 %"}


@pytest.fixture(scope="module")
def suite(lite_clip: Target, psic_q2: PSIC, plain_q2: PSIC) -> Robustness:
    return Robustness({"mine": psic_q2}, plain_q2, SCENES, lite_clip)


def pair() -> tuple[PSIC, PSIC]:
    torch.manual_seed(0)
    model = PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8, ladder=4), keys.secret("x")).eval()
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
        for trigger in model.g_s.triggers:
            trigger.cltg.w_d.weight.normal_(std=0.5)
    model.anchor()
    plain = PSIC.build(model.config)
    plain.load_state_dict(model.state_dict())
    plain.kind = "plain"
    return plain.eval(), model


@pytest.mark.parametrize("name", [*PLATFORMS, *DENOISERS])
def test_a_processing_gives_8_bit_pictures_that_still_show_the_photo(name: str):
    x = round_to_8_bits(picture(48, 72) * 0.8 + 0.1)
    changed = (PLATFORMS | DENOISERS)[name](x)
    assert torch.allclose((changed * 255).round() / 255, changed, atol=1e-6)
    assert changed.min() >= 0
    assert changed.max() <= 1
    if name in KEEP_SIZE or name in DENOISERS:
        assert changed.shape == x.shape
        assert psnr(changed, x) > 20
    assert not torch.equal(changed, x)
    assert torch.equal(changed, (PLATFORMS | DENOISERS)[name](x))  # nothing random from call to call


def test_recoding_is_what_the_codec_does():
    plain, model = pair()
    x = round_to_8_bits(picture())
    assert torch.equal(recoded(plain)(x), round_to_8_bits(plain.decompress_tensor(plain.compress(x))))
    assert not torch.equal(recoded(model)(x), recoded(plain)(x))


def test_no_attack_counts_the_shield_itself(suite: Robustness):
    suite.nothing()
    published = suite.rows[-1]
    assert published["psnr"][PLAIN] == pytest.approx(published["psnr"]["mine"], abs=1.5)  # JPEG at the same level
    own = measured(suite.bench, suite.shown["mine"])["asr"]
    assert {t: published["asr"]["mine"][t] for t in own} == own
    mean = sum(e["value"] for e in own.values()) / len(own)
    assert published["asr"]["mine"]["mean"]["value"] == pytest.approx(mean)


def test_the_null_is_the_same_processing_of_the_plain_codecs_picture(suite: Robustness):
    def erase(pictures: Tensor) -> Tensor:
        return torch.full_like(pictures, 0.5)

    grey = {v: erase(p) for v, p in suite.shown.items()}
    row = suite.add("test", "grey", grey)
    assert row["null"] == row["asr"]["mine"]
    assert row["null"]["i2t"]["value"] > 0
    undone = suite.add("test", "undone", {v: suite.shown[PLAIN] for v in suite.shown})
    assert {e["value"] for e in undone["asr"]["mine"].values()} == {0.0}


def test_a_model_over_another_encoder_is_refused(lite_clip: Target):
    plain, model = pair()
    with torch.no_grad():
        plain.backbone.g_a[0].weight.add_(0.1)
    with pytest.raises(ValueError, match="mine has another encoder"):
        Robustness({"mine": model}, plain, SCENES, lite_clip)


@pytest.fixture(scope="module")
def report() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        small = {"OWN": 8, "PURIFYING": 2, "UNSEEN": "tiny", "finetune_reader": partial(finetune_reader, steps=5)}
        small |= {"PLATFORMS": {k: limits.PLATFORMS[k] for k in ("crop to 75 %",)}}
        small |= {"DENOISERS": {k: limits.DENOISERS[k] for k in ("median 3 × 3",)}}
        for name, value in small.items():
            patch.setattr(limits, name, value)
        return run_limits(["psic-q2"], 6)


def rates(report: dict, attack: str) -> tuple[dict, dict]:
    (row,) = (r for r in report["rows"] if r["attack"] == attack)
    return row["asr"]["psic-q2"], row["null"]


def test_every_level_of_the_threat_model_is_there_in_order(report: dict):
    seen = list(dict.fromkeys(row["level"] for row in report["rows"]))
    assert seen == list(LEVELS)
    assert json.loads(json.dumps(report, allow_nan=True))["n"] == 6
    assert len({row["attack"] for row in report["rows"]}) == len(report["rows"])


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
    assert row["cosine"]["psic-q2"] > 0.9  # of 64 numbers: a wrong keyword's is 0.1 or so


def test_the_table_has_a_row_an_attack_under_its_level(report: dict):
    rows = table(report).splitlines()[2:]
    assert len(rows) == len(report["rows"]) + len(LEVELS)
    published, null = rates(report, "as published")
    shown = cells(next(r for r in rows if "as published" in r))
    assert shown[1].startswith(f"{100 * null['mean']['value']:.1f} [")
    assert shown[2].startswith(f"{100 * published['mean']['value']:.1f} [")


@pytest.mark.parametrize(
    ("names", "levels", "message"),
    [([], ("none",), "at least one checkpoint"), (["psic-q2"], ("noone",), "levels noone")],
)
def test_a_suite_of_nothing_is_refused(names: list[str], levels: tuple[str, ...], message: str):
    with pytest.raises(ValueError, match=message):
        run_limits(names, 4, levels=levels)


def test_the_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "limits.json"
    Limits(out, ("psic-q2",), levels=("none",), limit=8, side=96).run()
    assert [row["attack"] for row in json.loads(out.read_text())["rows"]] == ["as published"]
    assert json.loads(out.read_text())["side"] == 96
    assert "as published" in capsys.readouterr().out


def test_triggers_go_on_against_readers_that_purify(lite_clip: Target, monkeypatch: pytest.MonkeyPatch):
    made: list[tuple[Tensor, Tensor]] = []

    def grey(protected: Tensor, full: Tensor) -> torch.nn.Module:
        made.append((protected, full))
        return torch.nn.Hardtanh(0.5, 0.6).requires_grad_(False)

    monkeypatch.setattr(purified, "train_purifier", grey)
    monkeypatch.setattr(limits, "OWN", 4)
    x = picture(64, 64)
    purifies = purified.Purified(lite_clip, torch.nn.Hardtanh(0.5, 0.6), "lite-clip, purifier")
    assert torch.equal(purifies.encode_image(x), lite_clip.encode_image(x.clamp(0.5, 0.6)))
    model, before = load_checkpoint("psic-q3"), load_checkpoint("psic-q3").state_dict()
    config = replace(purified.CONFIG, steps=2, batch_size=2, crop=96, pool=8)
    after = purified.go_on(model, lite_clip, against=True, config=config, scenes=8).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("triggers" in name for name in changed)  # encoder and files stay
    assert len(made) == purified.ROUNDS
    (first, full), (second, same) = made
    assert torch.equal(full, same)
    assert not torch.equal(first, second)  # each purifier meets the triggers as they are then
    assert psnr(first, full) < 45
