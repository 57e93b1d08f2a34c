"""Named recipes, from their phases to the model that they write."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import make_shield
import pytest
import test_webdataset
import torch
from models import OWNER, awaken, picture
from safetensors import safe_open

from psic_core import keys
from psic_core.app.cli import main
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_SECRET, CodecConfig
from psic_core.models.vlp import load_target
from psic_core.training.checkpoints import load_checkpoint, read_card, save_checkpoint
from psic_core.training.phase import copy_triggers, load_pairs, starting_model
from psic_core.training.recipes import RATES, RECIPES, phases, run_recipe
from psic_core.triggers import Additive

SMALL = CodecConfig(n=8, m=12, dim=16, hidden=8, ladder=4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes as they are, with a codec of few channels and few scenes."""
    for name, recipe in RECIPES.items():
        codec = replace(SMALL, ladder=recipe.first.codec.ladder and 4, anchored=recipe.first.codec.anchored)
        monkeypatch.setitem(
            RECIPES, name, replace(recipe, first=replace(recipe.first, codec=codec, scenes=24, size=64))
        )


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("quality", RATES)
def test_every_recipe_is_whole(name: str, quality: int):
    found = phases(name, quality, Path("runs"), "DIR")
    rates = {3 if p in RECIPES[name].shared else quality for p in RECIPES[name].phases}
    assert {config.lmbda for config, _, _ in found} == {RATES[rate] for rate in rates}
    stage, kind = ("plain", None) if name == "codec" else ("two", "psic")
    assert (found[-1][0].stage, found[-1][1].kind) == (stage, kind)
    assert all(config.crop % (16 if config.stage == "two" else 64) == 0 for config, _, _ in found)
    assert len({out for _, _, out in found}) == len(found)
    for (_, _, out), (_, phase, _) in pairwise(found):
        assert str(out / "model.safetensors") == phase.init


def test_other_rates_get_the_triggers_of_the_third():
    (_, two, trunk), (_, more, last) = phases("shield", 4, Path("runs"))
    assert [p[2] for p in phases("shield", 3, Path("runs"))] == [trunk, last]
    assert (two.init, two.codec.quality, more.codec.quality) == ("plain:psic-q3", 3, 3)
    two, _ = (p for _, p, _ in phases("shield", 1, Path("runs"), changes={"init": "my-q{quality}"}))
    assert two.init == "my-q3"
    for init in ("my-q3", "random"):
        with pytest.raises(ValueError, match=f"rate 1 needs.*{{quality}} in '{init}'"):
            phases("shield", 1, Path("runs"), changes={"init": init})


def test_unknown_names_and_rates_are_refused():
    with pytest.raises(ValueError, match="'best'.*shield"):
        phases("best", 2, Path("runs"))
    with pytest.raises(ValueError, match="quality 9.*1, 2, 3, 4"):
        phases("paper", 9, Path("runs"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_papers_recipe_runs_on_shards(small: None, tmp_path: Path):
    """Additive triggers alone, the whole codec moved; here with a target and shards of our own making."""
    for k in range(2):
        members = {}
        for i in range(6):
            colour = ("red", "green", "blue", "gray", "gold", "pink")[i]
            members |= {f"{k}{i}.png": test_webdataset.picture(colour), f"{k}{i}.txt": f"{colour} {k}".encode()}
        test_webdataset.shard(tmp_path / f"{k}.tar", members)
    changes = {"dataset": (f"shards:{tmp_path}/{{0..1}}.tar",), "target": "tiny"}
    (path,) = run_recipe("paper", 1, tmp_path, dry_run=True, changes=changes)
    model = load_checkpoint(path)
    assert not model.config.anchored
    assert {type(trigger) for trigger in model.g_s.triggers} == {Additive}
    assert model.config.quality == 1
    log = (path.parent / "paper-q1-two" / "log.csv").read_text()
    assert ",full," in log
    assert ",protected," in log


# --- where a phase starts from ----------------------------------------------------------------------


def test_a_phase_starts_from_the_plain_codec_in_a_psic(tmp_path: Path):
    """With fresh triggers of its own sizes, and the history of what made the codec."""
    model, path = awaken(PSIC.build(SMALL, PUBLIC_SECRET)), tmp_path / "psic-q3.safetensors"
    card = {"history": [{"config": {"stage": stage}} for stage in ("plain", "two")]}
    save_checkpoint(model, path, card, publish_secret=True)
    fresh, x = starting_model(f"plain:{path}", replace(SMALL, ladder=6)), picture()
    assert (fresh.config.n, fresh.config.ladder, fresh.kind) == (8, 6, "plain")
    assert fresh.card == {"history": card["history"][:1]}
    fresh.kind = "psic"
    wrong = keys.condition(keys.secret("another's"), 16)
    with torch.no_grad():
        y_hat = model.quantised_latents(x)
        assert torch.equal(fresh.eval().synthesize(y_hat, wrong), model.g_s.plain(y_hat))
        assert not torch.equal(model.synthesize(y_hat, wrong), model.g_s.plain(y_hat))
    assert starting_model(str(path), SMALL).card == card  # without the word it goes on with the triggers


def test_a_start_without_a_plain_codec_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no checkpoint 'psic-q9'"):
        starting_model("plain:psic-q9", SMALL)
    path = tmp_path / "moved.safetensors"
    save_checkpoint(PSIC.build(replace(SMALL, anchored=False)), path)
    with pytest.raises(ValueError, match="not anchored"):
        starting_model(f"plain:{path}", SMALL)
    with pytest.raises(ValueError, match="ladder=4.*do not fit.*ladder=6"):
        copy_triggers(PSIC.build(SMALL), PSIC.build(replace(SMALL, ladder=6)))


@pytest.mark.slow
def test_the_codecs_recipe_feeds_the_shields_and_does_nothing_twice(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture
):
    common, made = ["-o", str(tmp_path), "--dry-run", "--dataset", "scenes"], tmp_path / "dry-run"
    for quality in ("3", "4"):
        assert main(["recipe", "codec", "--quality", quality, *common]) == 0
    own = str(made / "codec-q{quality}.safetensors")
    command = ["recipe", "shield", "--quality", "4", *common, "--target", "tiny", "--init", own]
    assert main(command) == 0
    third, fourth, psic = (load_checkpoint(made / f"{n}.safetensors") for n in ("codec-q3", "codec-q4", "psic-q4"))
    assert psic.fingerprint() == fourth.fingerprint() != third.fingerprint()
    assert [p["config"]["stage"] for p in psic.card["history"]] == ["plain"] * 3 + ["two"] * 2
    lent = load_checkpoint(made / "shield-more" / "model.safetensors").g_s.triggers.state_dict()
    assert all(torch.allclose(p, lent[k], atol=1e-3) for k, p in psic.g_s.triggers.state_dict().items())
    before = {p: safe_open(p, "pt").metadata() for p in made.glob("*.safetensors")}  # their hashes among it
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count("is finished") == 2
    assert before == {p: safe_open(p, "pt").metadata() for p in made.glob("*.safetensors")}


@pytest.mark.slow
def test_the_clip_recipe_runs_without_a_network(small: None, tmp_path: Path):
    """Random weights in the place of CompressAI's and of CLIP's."""
    command = ["recipe", "clip", "-o", str(tmp_path), "--dry-run", "--init", "random", "--target", "tiny",
               "--dataset", "scenes"]  # fmt: skip
    assert main(command) == 0
    card = read_card(tmp_path / "dry-run" / "psic-q2.safetensors")["card"]
    assert [(p["init"], p["target"], p["config"]["first_budget"]) for p in card["history"]] == [(None, "tiny", 14)]


@pytest.mark.slow
def test_one_set_of_triggers_learns_from_all_codecs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(make_shield, "CONFIG", replace(make_shield.CONFIG, batch_size=4))
    monkeypatch.setattr(make_shield, "time", Clock(9))
    target = load_target("tiny+tiny")
    pairs = load_pairs(["scenes"], None, 8, 64).with_features(target)
    codecs = [PSIC.build(SMALL, keys.secret(OWNER)) for _ in range(2)]
    before = [c.fingerprint() for c in codecs]
    run = make_shield.Run(codecs, pairs, target, torch.device("cpu"))
    assert run.train(200) > 10
    assert [c.fingerprint() for c in codecs] == before  # the codecs themselves stay
    for model in codecs:
        assert model.g_s.triggers is codecs[0].g_s.triggers
        y = model.quantised_latents(picture())
        plain = model.g_s.plain(y)
        assert torch.allclose(model.synthesize(y, model.full_condition()[None]), plain, atol=1e-6)
        assert (model.synthesize(y, torch.zeros(1, SMALL.dim)) - plain).abs().max() > 1e-4


class Clock:
    """Time that passes when it is looked at: every step takes as long."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def time(self) -> float:
        """Seconds."""
        self.now += self.seconds
        return self.now
