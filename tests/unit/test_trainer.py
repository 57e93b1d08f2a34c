"""The trainer: exact resume, what each stage may change, whose turn it is, and that losses fall."""

import csv
import hashlib
import io
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import awaken
from torch import Tensor
from torch.nn import functional

from psic_core import bitstream, keys
from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.models.vlp import Target
from psic_core.objectives import wrong_conditions
from psic_core.training.batches import Batch, CachedLatents
from psic_core.training.pairs import Pairs
from psic_core.training.trainer import Trainer

TINY = CodecConfig(n=8, m=12, dim=16, hidden=8, ladder=4)
STAGES = [("plain", "plain"), ("one", "psic"), ("two", "psic"), ("two", "plain")]


@pytest.fixture(scope="module")
def pairs(target: Target) -> Pairs:
    """Twelve smooth pictures with two captions each; pictures 0 and 1 share all their words."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(12, 3, 6, 6, generator=rng)
    pictures = (functional.interpolate(coarse, size=(96, 96), mode="bilinear") * 255).to(torch.uint8)
    captions = [(f"picture number {max(i, 1)}", f"this is {max(i, 1)} again") for i in range(12)]
    return Pairs(pictures, captions).with_features(target)


def tiny(kind: str = "psic", seed: int = 0, config: CodecConfig = TINY) -> PSIC:
    torch.manual_seed(seed)
    model = PSIC.build(config)
    model.kind = kind
    return model


def lively(seed: int = 0, config: CodecConfig = TINY) -> PSIC:
    """A PSIC whose triggers already answer and whose latents are not all zero."""
    model = tiny(seed=seed, config=config)
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
    return awaken(model, seed=seed)


def fast(stage: str, **options: object) -> TrainConfig:
    """A codec of few channels learns fast, a ladder does not."""
    return replace(TrainConfig(stage=stage, learning_rate=1e-2, **{"trigger_rate": 0.2} | options).fast(), steps=6)


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differences(one: dict[str, Tensor], two: dict[str, Tensor]) -> set[str]:
    assert one.keys() == two.keys()
    return {name for name in one if not torch.equal(one[name], two[name])}


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- resume -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "kind"), STAGES)
def test_resumed_training_equals_uninterrupted_training(
    stage: str, kind: str, target: Target, pairs: Pairs, tmp_path: Path
):
    whole = tiny(kind)
    rows = Trainer(whole, pairs, fast(stage), target).fit()
    Trainer(tiny(kind), pairs, fast(stage), target, tmp_path).fit(3)
    model = tiny(kind)
    resumed = Trainer(model, pairs, fast(stage), target, tmp_path).fit()
    assert differences(weights(whole), weights(model)) == set()
    assert [r["step"] for r in resumed] == [3, 4, 5]
    numbers = ("loss", "psnr", "bpp", "grad_norm", "l_uc")
    assert [[r.get(k) for k in numbers] for r in resumed] == [[r.get(k) for k in numbers] for r in rows[3:]]


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :],
    "bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "text": lambda data: b"no state of anything",
    "pickle": lambda data: hashlib.sha256(p := pickle.dumps({"step": 1})).digest() + p,
    "former": lambda data: data[32:],  # torch's file, without the hash
    "another run's": lambda data: hashlib.sha256(p := saved({"step": 1})).digest() + p,
}


def saved(state: dict[str, int]) -> bytes:
    torch.save(state, buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_named_with_its_remedy(damage: str, pairs: Pairs, tmp_path: Path):
    run = Trainer(tiny("plain"), pairs, fast("plain"), out=tmp_path)
    run.save([])
    path = tmp_path / "resume.pt"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=r"resume\.pt.*; delete it to begin"):
        Trainer(tiny("plain"), pairs, fast("plain"), out=tmp_path).load()


@pytest.mark.parametrize("stage", ["one", "two"])
def test_a_run_that_was_killed_goes_on_from_its_last_state(
    stage: str, target: Target, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = tiny()
    Trainer(whole, pairs, fast(stage), target).fit()
    killed = Trainer(tiny(), pairs, fast(stage), target, tmp_path)
    step = killed.train_step
    monkeypatch.setattr(killed, "train_step", lambda: step() if killed.step < 5 else pytest.exit("killed"))
    with pytest.raises(pytest.exit.Exception):
        killed.fit()
    assert [int(row["step"]) for row in log_of(tmp_path)] == [0, 1, 2, 3]  # save_every is 4
    model = tiny()
    rows = Trainer(model, pairs, fast(stage), target, tmp_path).fit()
    assert [row["step"] for row in rows] == [4, 5]
    assert differences(weights(whole), weights(model)) == set()


# --- the log ----------------------------------------------------------------------------------------


def test_the_log_has_every_step_once_with_its_columns(target: Target, pairs: Pairs, tmp_path: Path):
    Trainer(tiny(), pairs, fast("one"), target, tmp_path).fit(3)
    Trainer(tiny(), pairs, fast("one"), target, tmp_path).fit()
    rows = log_of(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(6))
    assert [row["objective"] for row in rows] == ["full", "protected"] * 3
    columns = {"step", "objective", "loss", "bpp", "psnr", "grad_norm", "seconds", "l_uc", "cos_own",
               "distinct_targets", "gradient_norm_uc", "gradient_norm_mse"}  # fmt: skip
    assert set(rows[0]) == columns
    assert all(row["loss"] and row["bpp"] and row["psnr"] for row in rows)
    assert [bool(row["l_uc"]) for row in rows] == [False, True] * 3
    assert [i for i, row in enumerate(rows) if row["gradient_norm_uc"]] == [1]  # every twentieth step
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)


# --- what a stage may change ------------------------------------------------------------------------


@pytest.mark.parametrize("trains", ["triggers", "codec"])
def test_stage_two_leaves_streams_and_gives_old_files_the_new_protection(trains: str, target: Target, pairs: Pairs):
    model = lively()
    x = pairs.pictures[3:4] / 255
    before, fingerprint, start = model.compress(x), model.fingerprint(), weights(model)
    protected, full = model.decompress_tensor(before), model.decompress_tensor(before, "psic course")
    Trainer(model, pairs, fast("two", trains=trains), target).fit()
    assert model.compress(x) == before
    assert model.fingerprint() == fingerprint
    changed = differences(start, weights(model))
    assert changed
    assert all(name.startswith("g_s.") for name in changed)
    assert any(name.startswith("g_s.stages.") for name in changed) == (trains == "codec")
    assert any(name.startswith("g_s.triggers.") for name in changed)
    assert not torch.equal(model.decompress_tensor(before), protected)
    again = model.decompress_tensor(before, "psic course")
    assert torch.allclose(again, full, atol=1e-5) == (trains == "triggers")


@pytest.mark.parametrize("stage", ["one", "two"])
@pytest.mark.parametrize("trains", ["triggers", "codec"])
def test_the_full_version_of_an_anchored_model_is_the_plain_codecs(
    stage: str, trains: str, target: Target, pairs: Pairs
):
    model = lively()
    Trainer(model, pairs, fast(stage, trains=trains), target).fit()
    model.eval()
    y_hat = model.quantised_latents(pairs.pictures[:2, :, :64, :64] / 255)
    with torch.no_grad():
        plain = model.g_s.plain(y_hat)
        key = model.full_condition()
        assert torch.equal(model.synthesize(y_hat, key), plain)
        assert torch.allclose(model.synthesize(y_hat, key.expand(2, -1)), plain, atol=1e-5)  # through the triggers
        assert not torch.allclose(model.synthesize(y_hat), plain, atol=1e-3)


@pytest.mark.parametrize("stage", ["plain", "one", "two"])
def test_a_plain_model_never_touches_its_triggers(stage: str, target: Target, pairs: Pairs):
    model = tiny("plain")
    start = weights(model)
    rows = Trainer(model, pairs, fast(stage), target).fit()
    changed = differences(start, weights(model))
    assert not any("triggers" in name for name in changed)
    assert any(name.startswith("g_s.stages.") for name in changed)
    assert {row["objective"] for row in rows} == {"full"}
    assert any(name.startswith("backbone.") for name in changed) == (stage != "two")


# --- alternation and optimisers ---------------------------------------------------------------------


def steps_of(run: Trainer) -> dict[str, set[int]]:
    return {
        name: {int(state["step"]) for state in optimiser.state_dict()["state"].values()}
        for name, optimiser in run.optimisers.items()
    }


def test_objectives_take_turns_each_with_an_optimiser_of_its_own(target: Target, pairs: Pairs):
    run = Trainer(lively(), pairs, fast("one", trains="codec"), target)
    assert "".join(str(row["objective"])[0] for row in run.fit()) == "fpfpfp"
    assert steps_of(run) == {"full": {3}, "protected": {3}}


def test_the_learning_rate_warms_up_and_ends_at_its_end(target: Target, pairs: Pairs):
    config = TrainConfig(stage="one", steps=200, warmup=20, learning_rate=1e-3, final_learning_rate=1e-5,
                         crop=64, batch_size=4)  # fmt: skip
    run = Trainer(tiny(), pairs, config, target)
    rates = [run.config.rate_at(step) for step in range(201)]
    assert rates[0] == pytest.approx(1e-3 / 20)
    assert rates[19:21] == pytest.approx([1e-3, 1e-3])
    assert rates[110] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[200] == pytest.approx(1e-5)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)


# --- what a batch is --------------------------------------------------------------------------------


def window_of(picture: Tensor, crop: Tensor) -> tuple[int, int]:
    """Where a crop was taken, by search."""
    side = crop.shape[-1]
    spots = range(picture.shape[-1] - side + 1)
    return next((t, e) for t in spots for e in spots if torch.equal(picture[:, t : t + side, e : e + side], crop))


def test_cached_latents_are_those_of_real_files(target: Target, pairs: Pairs):
    model = lively()
    run = Trainer(model, pairs, fast("two"), target)
    for i in (0, 5, 11):
        stream = bitstream.unpack(model.compress(pairs.pictures[i : i + 1] / 255))
        assert torch.equal(run.latents.y_hat[i : i + 1].float(), model.latents(stream))
    assert len(run.latents.y_hat.unique()) > 10  # not merely zeros
    assert run.latents.y_hat.dtype == torch.int16


@pytest.mark.parametrize("crop", [32, 64, 96])
def test_a_crop_is_decoded_as_if_the_whole_picture_were(crop: int, target: Target, pairs: Pairs):
    model = lively()
    run = Trainer(model, pairs, replace(fast("two"), crop=crop), target)
    run.source.__dict__["latents"] = CachedLatents(
        model, pairs, torch.device("cpu"), chunk=3
    )  # padded on all four sides
    assert {start for start in run.latents.starts} == {(0, 0), (2, 0), (0, 2), (2, 2)}
    found = set()
    for run.step in range(6):
        batch = run.batch()
        assert batch.x.shape == (4, 3, crop, crop)
        with torch.no_grad():
            x_hat = batch.cut(model.synthesize(batch.y_hat))
            whole = model.synthesize(run.latents.y_hat[batch.index].float())
        for i, crop_of, decoded, canvas in zip(batch.index.tolist(), batch.x, x_hat, whole, strict=True):
            top, left = window_of(pairs.pictures[i] / 255, crop_of)
            t, e = (16 * start + n for start, n in zip(run.latents.starts[i], (top, left), strict=True))
            assert torch.allclose(decoded, canvas[:, t : t + crop, e : e + crop], atol=1e-5)
            found.add((top, left))
    assert len(found) > 2 or crop == 96


def batch_of(run: Trainer, step: int) -> Batch:
    run.step = step
    return run.batch()


def test_full_is_decoded_with_the_secret_and_protected_without(target: Target, pairs: Pairs):
    run = Trainer(lively(), pairs, fast("two", trains="codec"), target)
    seen = []
    run.model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    run.fit(2)
    assert torch.equal(seen[0], keys.condition(run.model.secret, 16))
    assert torch.equal(seen[1], wrong_conditions(4, 16, batch_of(run, 1).rng))


# --- the attack -------------------------------------------------------------------------------------


def test_the_loss_is_the_sum_of_its_logged_parts(target: Target, pairs: Pairs):
    run = Trainer(lively(), pairs, fast("one", mu=0.5, gamma=20.0), target)
    batch = run.batch()
    loss, row = run.loss_protected(batch)
    row = {name: float(value) for name, value in row.items()}
    distortion = 0.0035 * 0.5 * 255**2 * 10 ** (-row["psnr"] / 10)
    assert loss.item() == pytest.approx(distortion + row["bpp"] + 0.0035 * 20 * row["l_uc"], rel=1e-4)
    assert row["loss"] == pytest.approx(loss.item())
    loss, row = run.loss_full(batch)
    row = {name: float(value) for name, value in row.items()}
    distortion = 0.0035 * 255**2 * 10 ** (-row["psnr"] / 10)
    assert loss.item() == pytest.approx(distortion + row["bpp"], rel=1e-4)
    assert row["loss"] == pytest.approx(loss.item())


# --- it learns --------------------------------------------------------------------------------------


def test_rate_and_distortion_fall(pairs: Pairs):
    config = replace(fast("plain"), steps=30)
    losses = [row["loss"] for row in Trainer(tiny("plain"), pairs, config).fit()]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.slow
def test_stage_two_lowers_the_attack_loss(target: Target, pairs: Pairs):
    model = tiny()
    config = replace(fast("two", gamma=2000.0), steps=40)
    rows = [row for row in Trainer(model, pairs, config, target).fit() if row["objective"] == "protected"]
    losses = [row["l_uc"] for row in rows]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


# --- errors -----------------------------------------------------------------------------------------


def test_an_attack_needs_a_target_and_features(target: Target, pairs: Pairs):
    with pytest.raises(ValueError, match="stage one attacks a target"):
        Trainer(tiny(), pairs, fast("one"))
    with pytest.raises(ValueError, match="with_features"):
        Trainer(tiny(), Pairs(pairs.pictures, pairs.captions), fast("two"), target)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        ("one", {"crop": 128}, r"crop 128.*\(96, 96\)"),
        ("two", {"crop": 72}, "crop 72.*16"),
        ("one", {"crop": 80}, "crop 80.*64"),
        ("one", {"batch_size": 13}, "12 pictures.*batch of 13"),
        ("one", {"steps": 0}, "steps.*0"),
        ("one", {"batch_size": 0}, "batch_size.*0"),
        ("three", {}, "stage.*three"),
        ("one", {"objective": "uae"}, "objective.*uae"),
        ("one", {"save_every": 0}, "save_every.*0"),
        ("one", {"direction": "t2i"}, "direction.*t2i"),
    ],
)
def test_errors_name_the_value(stage: str, change: dict, says: str, target: Target, pairs: Pairs):
    with pytest.raises(ValueError, match=says):
        Trainer(tiny(), pairs, replace(fast("one"), stage=stage, **change), target)


def test_a_budget_bounds_what_stage_two_changes(target: Target, pairs: Pairs):
    """The budget falls from the phase's to the model's; the attack is trained within it."""
    model = lively(config=replace(TINY, budget=6.0))
    trainer = Trainer(model, pairs, fast("two", first_budget=24.0, grid=1.0, pool=8), target)
    rows = trainer.fit()
    assert [row["budget"] for row in rows] == pytest.approx([24 * 0.25 ** (i / 4) for i in range(5)] + [6])
    assert all(
        row["psnr"] > 10 * math.log10(255**2 / (10.5 * row["budget"])) for row in rows
    )  # colour in texture counts a tenth
