"""Rate-distortion curves: from the command to the figures in its file."""

import io
import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import limits
import pytest
import shields
import torch
from models import awaken
from open_clip import IMAGENET_CLASSNAMES
from rate_distortion import CURVES, PUBLISHED, RIVALS, RateDistortion, ldr_flip, rate_distortion
from sizes import Sizes
from test_made_for_photo import model, reader

from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.datasets.eval_sets import EvalSet, eval_set
from psic_core.datasets.scenes import Scenes
from psic_core.lab.evaluate import pack_flips, unpack_flips
from psic_core.metrics import attack_success_rate, bd_psnr, bd_rate, count_flips, flip_rate, psnr
from psic_core.models.images import round_to_8_bits, to_pil, to_tensor
from psic_core.models.vlp import load_target
from psic_core.training import search
from psic_core.training.checkpoints import load_checkpoint, save_checkpoint

TINY = CodecConfig(n=8, m=12, dim=16, hidden=8, ladder=4)


def build(quality: int, scale: float = 0.3) -> PSIC:
    torch.manual_seed(quality)
    model = PSIC.build(replace(TINY, quality=quality))
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(10 * quality)
    return awaken(model, scale).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rates, each with its plain codec, and a data root with two 'Kodak' pictures."""
    path = tmp_path_factory.mktemp("models")
    for quality in (1, 2):
        model = build(quality)
        save_checkpoint(model, path / f"psic-q{quality}.safetensors", publish_secret=True)
        model.kind = "plain"
        save_checkpoint(model, path / f"plain-q{quality}.safetensors")
    scenes = Scenes("test", 2)
    (path / "kodak").mkdir()
    for i in range(2):
        to_pil(scenes[i].image[None]).resize((176, 170)).save(path / "kodak" / f"{i}.png")
    return path


# --- one interval over several measurements ---------------------------------------------------------


def flags(n: int, share: float, seed: int) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share


def test_the_mean_over_rates_has_the_interval_of_the_same_pictures():
    before, after = flags(300, 0.7, 0), flags(300, 0.5, 1)
    one = count_flips(before, before & after)
    alone = attack_success_rate(before, before & after)
    assert flip_rate([one]) == alone
    thrice = flip_rate([one, one, one])  # tells nothing new
    assert (thrice.value, *thrice.ci95) == pytest.approx((alone.value, *alone.ci95))
    other = count_flips(before, before & flags(300, 0.5, 2))
    both = flip_rate([one, other])
    assert both.value == pytest.approx((alone.value + flip_rate([other]).value) / 2)
    assert both.ci95[1] - both.ci95[0] < alone.ci95[1] - alone.ci95[0]
    assert both.n == 2 * alone.n


def test_flips_survive_their_packing():
    groups = torch.arange(50).repeat_interleave(5)
    flips = count_flips(flags(250, 0.7, 3), flags(250, 0.4, 4), groups)
    packed = pack_flips(flips)
    assert all(len(text) == 100 for text in packed.values())
    again = unpack_flips(packed)
    assert torch.equal(again.right, flips.right)
    assert torch.equal(again.flipped, flips.flipped)


# --- rate and distortion ----------------------------------------------------------------------------


def test_psnr_plus_d_is_a_bd_psnr_of_d():
    raised = {"bpp": PUBLISHED["bpp"], "psnr": [p + 0.7 for p in PUBLISHED["psnr"]]}
    assert bd_psnr(PUBLISHED, raised) == pytest.approx(0.7)
    assert bd_rate(PUBLISHED, raised) < 0


@pytest.mark.slow
def test_rd_measures_real_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    names = [folder / f"psic-q{q}.safetensors" for q in (1, 2)]
    out = tmp_path / "rd.json"
    RateDistortion("kodak", out, tuple(map(str, names)), str(folder)).run()
    report = json.loads(out.read_text())
    assert "BD-PSNR of plain against published" in capsys.readouterr().out
    point, model = report["points"][str(names[1])], build(2)
    data = eval_set("kodak", folder)
    files = [model.compress(data.picture(i)[None]) for i in range(2)]
    assert point["full"]["bpp"] == pytest.approx(sum(8 * len(f) / (176 * 170) for f in files) / 2)
    protected = [psnr(round_to_8_bits(model.decompress_tensor(f)), data.picture(i)[None]) for i, f in enumerate(files)]
    assert point["protected"]["psnr"] == pytest.approx(sum(protected) / 2, abs=1e-4)
    assert point["full"] == point["plain"] != point["protected"]
    assert set(point) == set(CURVES)
    assert 0 < point["full"]["ms_ssim"] < 1
    assert report["published"]["bpp"] == list(PUBLISHED["bpp"])
    options, qualities = RIVALS["jpeg"]
    sizes = [len(file_bytes(data.picture(i), "jpeg", quality=qualities[1], **options)) for i in range(2)]
    assert report["rivals"]["jpeg"][1]["bpp"] == pytest.approx(sum(8 * n / (176 * 170) for n in sizes) / 2)
    assert [p["psnr"] for p in report["rivals"]["webp"]] == sorted(p["psnr"] for p in report["rivals"]["webp"])
    assert set(report["bd_psnr"]) == {*CURVES[1:], *(f"plain against {c}" for c in ("jpeg", "webp", "published"))}


def file_bytes(x: torch.Tensor, kind: str, **options: int) -> bytes:
    to_pil(x[None]).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def test_small_pictures_have_no_ms_ssim(folder: Path):
    small = EvalSet("small", 1, lambda i: torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(i)))
    model, plain = build(1), build(1)
    plain.kind = "plain"
    report = rate_distortion({"1": (model, plain)}, small)
    flip = {"ldr_flip"} if find_spec("flip_evaluator") else set()  # it has no wheel for some machines
    assert set(report["points"]["1"]["full"]) == {"bpp", "psnr", "ssimulacra2"} | flip
    assert report["bd_rate"]["full"] is None
    assert set(rate_distortion({"1": (plain, plain)}, small)["points"]["1"]) == {"plain"}
    pytest.importorskip("flip_evaluator")
    x = small.picture(0)[None]
    assert 0 == ldr_flip(x, x) < ldr_flip((x + 0.02).clamp(0, 1), x) < ldr_flip(1 - x, x) <= 1


# --- photos by size ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_labels_are_counted_at_every_size_that_a_photo_has(folder: Path, tmp_path: Path):
    command = Sizes(
        tmp_path / "sizes.json", ("kodak",), str(folder / "psic-q2.safetensors"), "tiny", side=(96, 172, 0),
        budget=(4, 300), cache=tmp_path / "cache", data_root=str(folder),
    )  # fmt: skip
    command.run()
    report = json.loads((tmp_path / "sizes.json").read_text())
    rows = {(row["side"], row["budget"]): row for row in report["rows"]}
    assert set(rows) == {(side, budget) for side in (96, 0) for budget in (4, 300)}  # none is 172 pixels high
    for side in (96, 0):
        small, large = rows[side, 4], rows[side, 300]
        assert small["n"] == large["n"] == 2
        assert small["change"] > large["change"] + 3  # dB
        assert small["psnr"]["full"] == large["psnr"]["full"] > large["psnr"]["protected"]
    model, plain = (load_checkpoint(folder / "psic-q2.safetensors", plain=plain) for plain in (False, True))
    model.config = replace(model.config, budget=300.0)
    target = load_target("tiny")
    names = target.encode_text([f"a photo of a {name}" for name in dict.fromkeys(IMAGENET_CLASSNAMES)])
    changed = []
    for i in range(2):
        x = eval_set("kodak", folder).picture(i)[None]
        seen = [target.encode_image(to_tensor(m.decompress(m.compress(x)))) for m in (plain, model)]
        changed.append(len({int((f @ names.T).argmax()) for f in seen}) == 2)
    by = rows[0, 300]["flips"]["as published"]
    assert unpack_flips(by["protected"]).flipped.bool().tolist() == changed
    assert unpack_flips(by["full"]).flipped.sum() == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    replace(command, json=tmp_path / "again.json").run()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files
    assert json.loads((tmp_path / "again.json").read_text())["rows"] == report["rows"]


# --- three shields side by side ---------------------------------------------------------------------


@pytest.mark.slow
def test_every_attack_is_asked_of_all_three_shields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(model(), tmp_path / "small.safetensors", publish_secret=True)
    monkeypatch.setattr(search, "readers", reader)
    monkeypatch.setattr(limits, "OWN", 3)
    for name, value in {"SEALED_OWN": 2, "PURIFYING": 2, "READERS": ("tiny",)}.items():
        monkeypatch.setattr(shields, name, value)
    options = ("demo", "--limit=2", f"--cache={tmp_path}", f"--out={tmp_path}")
    monkeypatch.setattr(sys, "argv", ["", f"{tmp_path}/small.safetensors", *options])
    shields.main()
    monkeypatch.setattr(shields, "measure", None)
    shields.main()  # what was measured is kept
    rows = {row["attack"]: row for row in json.loads((tmp_path / "shields.json").read_text())["sets"]["demo"]["rows"]}
    assert set(rows) >= {*shields.SHOWN, *shields.LEVELS}
    assert all(set(shields.SHIELDS) <= set(row["asr"]) for row in rows.values())
    beside = (rows[shields.DECODER]["asr"][shield] for shield in ("trained", "carried"))  # the picture: can be left out
    assert [rate["mean"]["value"] for rate in beside] == [0, 0]
