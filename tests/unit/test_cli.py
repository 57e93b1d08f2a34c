"""The command line, from a photo to its versions and from pictures to a trained and measured model."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import awaken
from PIL import Image
from skimage import data

from psic_core.app.cli import main
from psic_core.codec import PSIC
from psic_core.config import CodecConfig, NoSuchDeviceError, device
from psic_core.training.checkpoints import load_checkpoint, read_card, save_checkpoint
from psic_core.training.phase import publish
from psic_core.training.trainer import Trainer

TINY = CodecConfig(n=8, m=12, quality=3, dim=16, hidden=8)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a PSIC whose versions differ visibly, its plain codec, and a copy without its secret."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    model = PSIC.build(TINY)
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
    awaken(model)
    save_checkpoint(model, folder / "psic-q3.safetensors", publish_secret=True)
    save_checkpoint(model, folder / "psic-private.safetensors")
    model.kind = "plain"
    save_checkpoint(model, folder / "plain-q3.safetensors", publish_secret=True)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "my cat.png"
    Image.fromarray(data.chelsea()).resize((90, 60)).save(path)
    return path


def psic(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.size, image.mode, image.tobytes()


# --- one photo --------------------------------------------------------------------------------------


def test_a_photo_goes_through_all_its_versions(
    photo: Path, shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    model, file = shipped / "psic-q3.safetensors", tmp_path / "cat.psic"
    psic("encode", photo, "-o", file, "--keyword", "my cat", "--checkpoint", model)
    said = capsys.readouterr()
    assert f"{file.stat().st_size} bytes" in said.out
    assert "90x60, with a keyword" in said.out
    assert said.err.count("whoever has the model decodes its files in full, whatever the keyword") == 1

    psic("info", file, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["width"], facts["height"], facts["quality"], facts["keywords"]) == (90, 60, 3, 1)
    assert facts["bytes"]["total"] == file.stat().st_size
    psic("info", file)
    assert "keywords: 1" in capsys.readouterr().out

    out = {name: tmp_path / f"{name}.png" for name in ("protected", "full", "owner", "wrong")}
    psic("decode", file, "-o", out["protected"], "--checkpoint", model)
    psic("decode", file, "-o", out["full"], "--keyword", "my cat", "--checkpoint", model)
    psic("decode", file, "-o", out["owner"], "--keyword", "psic course", "--checkpoint", model)
    psic("decode", file, "-o", out["wrong"], "--keyword", "my dog", "--checkpoint", model)
    said = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    wrong = "protected version: the keyword is not the one of this file"
    assert said == ["protected version", "full version", "full version", wrong]
    shown = {name: pixels(path) for name, path in out.items()}
    assert shown["full"] == shown["owner"]
    assert len({shown["protected"], shown["full"], shown["wrong"]}) == 3
    assert shown["full"][:2] == ((90, 60), "RGB")
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_is_overwritten(photo: Path, shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    model, file, before = ("--checkpoint", shipped / "psic-q3.safetensors"), tmp_path / "cat.psic", photo.read_bytes()
    psic("encode", photo, "-o", file, *model)
    (link := tmp_path / "link.png").hardlink_to(photo)
    for words, says in (
        (("encode", photo, "-o", photo, "--overwrite"), "is the source itself"),
        (("encode", photo, "-o", link, "--overwrite"), "is the source itself"),
        (("encode", photo, "-o", file), "is there already; pass --overwrite"),
        (("decode", file, "-o", photo), "is there already; pass --overwrite"),
        (("encode", photo, "-o", tmp_path / "new.psic", "--keyword", ""), "what follows --keyword is blank"),
        (("encode", photo, "-o", tmp_path / "new.psic", "--keyword", " "), "the keyword is blank"),
        (("encode", photo, "-o", tmp_path / "new.psic", "--max-megapixels", 0.005), "60 x 90 pixels are more than"),
        (("decode", file, "-o", tmp_path / "new.png", "--max-megapixels", 0.005), "60 x 90 pixels are more than"),
    ):
        capsys.readouterr()
        assert main([str(w) for w in (*words, *model)]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
    assert photo.read_bytes() == before
    assert not list(tmp_path.glob("new*"))
    psic("decode", file, "-o", link, *model, "--overwrite")
    assert photo.read_bytes() == before  # a new file takes the link's name


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "too little memory"),
        (TypeError("an argument"), 2, "TypeError: an argument"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
    ],
)
def test_whatever_happens_is_one_sentence(
    error: BaseException, code: int, says: str, photo: Path, shipped: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(PSIC, "compress", fails)
    words = ["encode", str(photo), "-o", str(tmp_path / "x.psic"), "--checkpoint", str(shipped / "psic-q3.safetensors")]
    assert main(words) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("psic encode: ")
    assert says in last
    assert not list(tmp_path.glob("x*"))
    monkeypatch.setenv("PSIC_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(words)


def test_a_private_model_seals_with_its_passphrase(photo: Path, shipped: Path, tmp_path: Path):
    private, file = shipped / "psic-private.safetensors", tmp_path / "cat.psic"
    sealed = ("--keyword", "cat", "--passphrase", "psic course", "--checkpoint", private)
    psic("encode", photo, "-o", file, *sealed)
    for words in ("cat", "psic course"):
        psic("decode", file, "-o", tmp_path / f"{words}.png", "--keyword", words, "--checkpoint", private)
    assert pixels(tmp_path / "cat.png") == pixels(tmp_path / "psic course.png")


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("encode NOWHERE -o {tmp}/x.psic --checkpoint {model}", "no file 'NOWHERE'"),
        ("encode {model} -o {tmp}/x.psic --checkpoint {model}", "as a picture"),
        ("encode {photo} -o {tmp}/x.psic --checkpoint {tmp}/none", "no checkpoint"),
        ("encode {photo} -o {tmp}/no/where/x.psic --checkpoint {model}", "no/where"),
        ("encode {photo} -o {tmp}/x.psic --keyword cat --checkpoint {private}", "--passphrase"),
        ("decode {photo} -o {tmp}/x.png --checkpoint {model}", "not a .psic file"),
        ("decode {tmp}/none.psic -o {tmp}/x.png --checkpoint {model}", "no file"),
        ("decode {file} -o {tmp}/x --checkpoint {model}", "end its name in .png"),
        ("decode {file} -o {tmp}/x.png --checkpoint {other}", "load the checkpoint that wrote the file"),
        ("info {photo}", "not a .psic file"),
        (
            "encode {photo} -o {tmp}/x.psic --keyword cat --passphrase wrong --checkpoint {private}",
            "does not open this model",
        ),
        ("evaluate --checkpoint {private} --dataset scenes --limit 1 --json {tmp}/r.json", "does not hold its secret"),
        ("evaluate --checkpoint {model} --dataset scenes --limit 0 --json {tmp}/r.json", "limit 0"),
        ("evaluate --checkpoint {model} --dataset photos --json {tmp}/r.json", "--data-root"),
        ("evaluate --checkpoint {model} --dataset scenes --limit 1 --target x --json {tmp}/r.json", "unknown target"),
        ("train -o {tmp}/run --dataset {tmp}/nothing", "no folder"),
        ("train -o {tmp}/run --dataset scenes --scenes 4 --batch-size 4 --crop 999", "crop 999"),
    ],
)
def test_errors_are_one_sentence_and_status_two(
    words: str, says: str, photo: Path, shipped: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.delenv("PSIC_DATA_ROOT", raising=False)
    model, other, file = shipped / "psic-q3.safetensors", tmp_path / "other.safetensors", tmp_path / "cat.psic"
    if "{file}" in words:
        file.write_bytes(load_checkpoint(model).compress(Image.open(photo)))
        save_checkpoint(PSIC.build(TINY), other)
    places = {"tmp": tmp_path, "photo": photo, "model": model, "other": other, "file": file,
              "private": shipped / "psic-private.safetensors"}  # fmt: skip
    command = [word.format(**places) for word in words.split(" ")]
    before = sorted(tmp_path.rglob("x*"))
    assert main(command) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"psic {command[0]}: ")
    assert says in said
    assert "Traceback" not in said
    assert sorted(tmp_path.rglob("x*")) == before  # no half-written output


@pytest.mark.parametrize(
    "words", [[], ["encrypt"], ["encode"], ["evaluate", "--dataset", "nowhere"], ["train", "-o", "x", "--steps", "ten"],
              ["train", "-o", "x", "--stage", "three"], ["train", "-o", "x", "--objective", "uae"],
              ["decode", "x", "-o", "y", "--nosuch", "1"]],
)  # fmt: skip
def test_wrong_words_are_one_sentence(words: list[str], capsys: pytest.CaptureFixture):
    assert main(words) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert re.fullmatch(r"psic: .*; psic (encode |evaluate |train |decode )?--help says more", said)
    assert all(word in said for word in words[-1:] if word not in ("encode", "1"))


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device().type == "cpu"
    monkeypatch.setenv("PSIC_DEVICE", "cuda")
    with pytest.raises(NoSuchDeviceError, match="no device 'cuda': this machine has cpu; name one, or none") as caught:
        device()
    assert caught.value._render_traceback_() == [str(caught.value)]  # all that Jupyter shows


# --- measuring and training -------------------------------------------------------------------------


def test_evaluate_prints_a_table_and_writes_json(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "results" / "scenes.json"
    model = shipped / "psic-q3.safetensors"
    psic("evaluate", "--checkpoint", model, "--dataset", "scenes", "--limit", 4, "--target", "tiny", "--json", out)
    report = json.loads(out.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (report["n"], report["dataset"], report["target"]) == (4, "scenes", "tiny")
    assert report["checkpoint"] == str(model)
    assert {"t2i", "i2t", "classification", "attributes"} <= set(report["asr"])
    said = capsys.readouterr().out
    assert "| scenes (4) | text→image retrieval, R@1 |" in said
    assert "| scenes | q3 |" in said


def test_publish_sets_the_rate_and_keeps_the_secret(shipped: Path, photo: Path, tmp_path: Path):
    model = load_checkpoint(publish(shipped / "psic-q3.safetensors", 4, tmp_path))
    assert (model.kind, model.config.quality) == ("psic", 4)
    file = model.compress(Image.open(photo), "words")
    assert not torch.equal(model.decompress_tensor(file), model.decompress_tensor(file, "words"))


def steps_of(run: Path) -> list[int]:
    with (run / "log.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


SHORT = ("--scenes", 4, "--batch-size", 2, "--crop", 64, "--steps", 4, "--warmup", 1, "--save-every", 1)


@pytest.mark.slow
def test_training_resumes_where_it_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    psic("train", "-o", whole, "--stage", "plain", *SHORT)
    with monkeypatch.context() as cut:
        fit = Trainer.fit
        cut.setattr(Trainer, "fit", lambda self: [fit(self, 2), sys.exit(9)])
        with pytest.raises(SystemExit):
            main([str(w) for w in ("train", "-o", parts, "--stage", "plain", *SHORT)])
    assert steps_of(parts) == [0, 1]
    assert not (parts / "model.safetensors").exists()
    psic("train", "-o", parts, "--stage", "plain", *SHORT)
    assert steps_of(parts) == [0, 1, 2, 3]
    one, two = load_checkpoint(whole / "model.safetensors"), load_checkpoint(parts / "model.safetensors")
    assert one.kind == "plain"
    assert one.fingerprint() == two.fingerprint()
    assert all(torch.equal(a, b) for (_, a), (n, b) in zip(
        one.named_parameters(), two.named_parameters(), strict=True) if "triggers" not in n)  # fmt: skip
    card = read_card(whole / "model.safetensors")["card"]
    assert card["history"][0]["config"]["steps"] == 4
    assert card["last"]["step"] == 3


def test_a_run_is_not_continued_with_other_options(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    run, init = tmp_path / "run", shipped / "plain-q3.safetensors"
    psic("train", "-o", run, "--init", init, *SHORT)
    for change in (("--lmbda", "0.01"), ("--scenes", "6")):
        assert main([str(w) for w in ("train", "-o", run, "--init", init, *SHORT, *change)]) == 2
        assert "choose another --out" in capsys.readouterr().err


# --- as a program -----------------------------------------------------------------------------------


def test_the_module_runs_and_helps_without_waiting_for_pytorch():
    code = "import sys; sys.argv = ['psic', '--help']\n"
    code += "try:\n import psic_core.__main__\nexcept SystemExit as stop: print('code', stop.code)\n"
    code += "print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Privacy-Shielded Image Compression" in ran.stdout
    for command in ("encode", "decode", "info", "train", "evaluate"):
        assert command in ran.stdout
    assert ran.stdout.splitlines()[-2:] == ["code 0", "False"]
    ran = subprocess.run([sys.executable, "-m", "psic_core", "train", "--help"], capture_output=True, text=True)
    assert ran.returncode == 0
    words = " ".join(re.sub(r"[│╭╮╰╯─|]| -{3,}", " ", ran.stdout).split())
    for option in ("--stage {plain,one,two}", "--gamma", "--save-every", "--no-anchored", "--dataset"):
        assert option in words
    assert "--eot FLOAT share of protected pictures" in words  # the comment beside the field
