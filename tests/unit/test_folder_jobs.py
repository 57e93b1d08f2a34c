"""Folders of photos: written by several processes, taken up where a run stopped, bad files reported."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import OWNER, SMALL, awaken
from PIL import Image
from skimage import data

from psic_core import bitstream, keys
from psic_core.app import folder_jobs
from psic_core.app.cli import main
from psic_core.app.folder_jobs import RECORD, Job, Record, Work, plan
from psic_core.codec import PSIC
from psic_core.models.images import load_image
from psic_core.training.checkpoints import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "psic-q2.safetensors"
    model = awaken(PSIC.wrap("bmshj2018-hyperprior", keys.secret(OWNER), n=8, m=12, **SMALL), scale=1)
    save_checkpoint(model, path, publish_secret=True)
    return str(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "trip/a.PNG", "trip/c.webp")):
        Image.fromarray(data.chelsea()).resize((40 + number, 30)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def run(source: Path, out: Path, work: Work, workers: int = 1, overwrite: bool = False) -> tuple:
    return folder_jobs.run(plan(source, out, work.task)[0], out, work, workers, overwrite)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != RECORD)


def test_places_keep_the_folders_and_never_meet(photos: Path, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(photos / "b.png")
    jobs, skipped = plan(photos, tmp_path / "out", "encode")
    assert [str(job.output.relative_to(tmp_path / "out")) for job in jobs] == [
        "a.psic", "b.jpg.psic", "b.png.psic", "trip/a.psic", "trip/c.psic"
    ]  # fmt: skip
    assert skipped == {".txt": 1}
    with pytest.raises(ValueError, match=r"holds no file that ends in \.psic"):
        plan(photos, tmp_path, "decode")
    for name in ("b.webp", "b.jpg.png"):
        Image.new("RGB", (8, 8)).save(photos / name)
    with pytest.raises(ValueError, match="b.jpg.psic' would be written 2 times; rename"):
        plan(photos, tmp_path / "out", "encode")


@pytest.mark.slow
def test_a_folder_goes_there_and_back(photos: Path, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(keys.COSTS, 1, 2**17)  # as the workers have it
    coded, shown = tmp_path / "coded", tmp_path / "shown"
    model = load_checkpoint(checkpoint)
    made = run(photos, coded, Work("encode", checkpoint, "my cat"), workers=2)
    assert made == ({"with a keyword": 4}, 0, {})
    assert files(coded) == ["a.psic", "b.psic", "trip/a.psic", "trip/c.psic"]
    stream = (coded / "trip/c.psic").read_bytes()
    expected = bitstream.unpack(model.compress(load_image(photos / "trip/c.webp")))
    assert bitstream.unpack(stream)._replace(slots=()) == expected
    assert run(coded, shown, Work("decode", checkpoint, "my cat"), workers=2) == ({"full": 4}, 0, {})
    assert files(shown) == ["a.png", "b.png", "trip/a.png", "trip/c.png"]
    assert load_image(shown / "trip/c.png").tobytes() == model.decompress(stream, "my cat").tobytes()


def test_what_is_there_is_left_alone(photos: Path, tmp_path: Path, checkpoint: str):
    coded, work = tmp_path / "coded", Work("encode", checkpoint)
    assert folder_jobs.run(plan(photos, coded, "encode")[0][:2], coded, work)[0].total() == 2
    before = (coded / "a.psic").stat().st_mtime_ns
    os.utime(photos / "a.png", (2**32, 2**32))  # its time alone says nothing
    assert run(photos, coded, work) == ({"without keyword": 2}, 2, {})
    for overwrite in (False, True):
        assert run(photos, coded, work, overwrite=overwrite) == ({}, 4, {})
    assert (coded / "a.psic").stat().st_mtime_ns == before


CHANGES = {
    "damaged": ("encode", 1, "was changed since it was made"),
    "photo": ("encode", 1, "made with another source"),
    "keyword": ("encode", 4, "made with another keyword"),
    "no keyword": ("encode", 4, "made with another keyword"),
    "model": ("encode", 4, "made with another checkpoint"),
    "record": ("encode", 4, "nothing says from what"),
    "version": ("decode", 4, "made with another keyword"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_there_but_not_what_is_wanted_is_refused_or_made_anew(
    change: str, photos: Path, tmp_path: Path, checkpoint: str
):
    """Full pictures do not pass for protected ones, nor files under an old keyword for those under a new one."""
    task, number, says = CHANGES[change]
    coded, shown, out = tmp_path / "coded", tmp_path / "shown", tmp_path / ("coded" if task == "encode" else "shown")
    first = Work("encode", checkpoint, None if change in ("damaged", "photo", "keyword", "record") else "my cat")
    run(photos, coded, first)
    work = replace(first, keyword={"keyword": "my cat", "no keyword": None}.get(change, first.keyword))
    if change == "version":
        run(coded, shown, replace(first, task="decode"))
        work = Work("decode", checkpoint)
    if change == "damaged":
        (coded / "a.psic").write_bytes((coded / "a.psic").read_bytes()[:-1])
    if change == "photo":
        before = (photos / "a.png").stat()
        Image.new("RGB", (40, 30)).save(photos / "a.png")
        os.utime(photos / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p does
    if change == "model":
        torch.manual_seed(7)
        other = PSIC.wrap("bmshj2018-hyperprior", keys.secret(OWNER), n=8, m=12, **SMALL)
        save_checkpoint(other, tmp_path / "other.safetensors", publish_secret=True)
        work = replace(work, checkpoint=str(tmp_path / "other.safetensors"))
    if change == "record":
        (coded / RECORD).unlink()
    where = (coded, shown) if task == "decode" else (photos, coded)
    kept = {name: (out / name).read_bytes() for name in files(out)}
    written, there, failed = run(*where, work)
    assert (written.total(), there, len(failed)) == (0, 4 - number, number)
    assert all(says in error and "--overwrite" in error for error in failed.values())
    assert {name: (out / name).read_bytes() for name in files(out)} == kept
    assert run(*where, work, overwrite=True)[0].total() == number
    assert run(*where, work) == ({}, 4, {})


def test_no_output_takes_the_place_of_a_source(photos: Path, tmp_path: Path, checkpoint: str):
    """Nor of a photo that happens to have the output's name."""
    coded, work = tmp_path / "coded", Work("encode", checkpoint)
    run(photos, coded, work)
    before = {name: (photos / name).read_bytes() for name in files(photos)}
    _, _, failed = run(coded, photos, Work("decode", checkpoint))
    assert len(failed) == 1
    assert "a.png' is there already, and nothing says from what" in next(iter(failed.values()))
    assert {name: (photos / name).read_bytes() for name in before} == before
    itself = [Job(photos / "a.png", tmp_path / "photos" / "trip" / ".." / "a.png")]
    *_, failed = folder_jobs.run(itself, photos, work, overwrite=True)
    assert "is one of the sources" in next(iter(failed.values()))
    assert (photos / "a.png").read_bytes() == before["a.png"]


ORPHAN = """
import os, sys, threading, time
from pathlib import Path
from psic_core.app import folder_jobs

def die():
    while not list(Path(sys.argv[2]).glob("*.psic")):
        time.sleep(0.05)
    os.kill(os.getpid(), 9)

if __name__ == "__main__":
    threading.Thread(target=die, daemon=True).start()
    work = folder_jobs.Work("encode", sys.argv[3], tile=64)
    out = Path(sys.argv[2])
    folder_jobs.run(folder_jobs.plan(Path(sys.argv[1]), out, "encode")[0], out, work, workers=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_workers_end_with_their_parent(tmp_path: Path, checkpoint: str):
    (photos := tmp_path / "photos").mkdir()
    for i in range(40):
        Image.effect_noise((1200, 1200), 90).convert("RGB").save(photos / f"{i}.png", compress_level=0)
    (tmp_path / "orphan.py").write_text(ORPHAN)
    command = [sys.executable, tmp_path / "orphan.py", photos, tmp_path / "out", checkpoint]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PSIC_ORPHAN": str(tmp_path)}
    ran = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    deadline = time.monotonic() + 20
    while left_over(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left_over(str(tmp_path)) == []
    assert 0 < len(files(tmp_path / "out")) < 40


def left_over(mark: str) -> list[str]:
    """Processes that run with a mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found += [folder.name] if f"PSIC_ORPHAN={mark}\0".encode() in (folder / "environ").read_bytes() else []
    return found


def test_bad_files_are_reported_and_do_not_stop_the_others(
    photos: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture
):
    (photos / "b.jpg").write_bytes(b"no picture")
    coded = tmp_path / "coded"
    words = ["encode", str(photos), "-o", str(coded), "--checkpoint", checkpoint]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "3 written (3 without keyword), 0 there already, 1 failed" in said.out
    assert "b.jpg" in said.err.splitlines()[0]
    assert "as a picture" in said.err
    assert "left out, because they do not end as pictures do that can be read: 1 .txt" in said.err
    assert said.err.splitlines()[-1].startswith("psic encode: 1 files failed")
    assert files(coded) == ["a.psic", "trip/a.psic", "trip/c.psic"]
    Image.new("RGB", (20, 20)).save(photos / "b.jpg")
    assert main(words) == 0
    assert "1 written (1 without keyword), 3 there already, 0 failed" in capsys.readouterr().out

    (coded / "a.psic").write_bytes(b"PSIC")
    assert main(["decode", str(coded), "-o", str(tmp_path / "shown"), "--checkpoint", checkpoint]) == 2
    assert "inside its header" in capsys.readouterr().err
    assert files(tmp_path / "shown") == ["b.png", "trip/a.png", "trip/c.png"]


def test_whatever_happens_nothing_half_written_stays(photos: Path, tmp_path: Path, checkpoint: str):
    job = Job(photos / "a.png", tmp_path / "coded" / "a.psic")
    work = Work("decode", checkpoint)
    known = Record(tmp_path / "coded", work)
    version, error = folder_jobs._attempt(job, work, load_checkpoint(checkpoint), known)
    assert (version, error[:16]) == ("", "not a .psic file")
    assert files(tmp_path / "coded") == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--workers 0", "workers is 0"),
        ("--quality 5", "this model has one rate"),
        ("--checkpoint nothing", "no checkpoint"),
        ("--tile -5", "side in pixels"),
    ],
)
def test_what_no_file_could_do_is_one_sentence(
    options: str, says: str, photos: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture
):
    words = ["encode", str(photos), "-o", str(tmp_path / "coded"), "--checkpoint", checkpoint, *options.split()]
    assert main(words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "coded").exists() or not files(tmp_path / "coded")


def test_a_folder_needs_a_folder(photos: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture):
    (tmp_path / "file").write_text("")
    assert main(["encode", str(photos), "-o", str(tmp_path / "file"), "--checkpoint", checkpoint]) == 2
    assert "goes into a folder" in capsys.readouterr().err
