"""Folders of photos: written by several processes, taken up where a run stopped, bad files reported."""

import os
import signal
from pathlib import Path

import pytest
from models import OWNER, SMALL, awaken
from PIL import Image
from skimage import data

from psic_core import bitstream, keys
from psic_core.app import folder_jobs
from psic_core.app.cli import main
from psic_core.app.folder_jobs import Job, Work, plan, run
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


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_places_keep_the_folders_and_never_meet(photos: Path, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(photos / "b.png")
    jobs = plan(photos, tmp_path / "out", "encode")
    assert [str(job.output.relative_to(tmp_path / "out")) for job in jobs] == [
        "a.psic", "b.jpg.psic", "b.png.psic", "trip/a.psic", "trip/c.psic"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"holds no file that ends in \.psic"):
        plan(photos, tmp_path, "decode")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_goes_there_and_back(
    workers: int, photos: Path, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(keys.COSTS, 1, 2**17)  # as the workers have it
    coded, shown = tmp_path / "coded", tmp_path / "shown"
    model = load_checkpoint(checkpoint)
    assert run(plan(photos, coded, "encode"), Work("encode", checkpoint, "my cat"), workers) == (4, 0, {})
    assert files(coded) == ["a.psic", "b.psic", "trip/a.psic", "trip/c.psic"]
    stream = (coded / "trip/c.psic").read_bytes()
    expected = bitstream.unpack(model.compress(load_image(photos / "trip/c.webp")))
    assert bitstream.unpack(stream)._replace(slots=()) == expected
    assert run(plan(coded, shown, "decode"), Work("decode", checkpoint, "my cat"), workers) == (4, 0, {})
    assert files(shown) == ["a.png", "b.png", "trip/a.png", "trip/c.png"]
    assert load_image(shown / "trip/c.png").tobytes() == model.decompress(stream, "my cat").tobytes()


def test_what_is_there_is_left_alone(photos: Path, tmp_path: Path, checkpoint: str):
    coded, work = tmp_path / "coded", Work("encode", checkpoint)
    jobs = plan(photos, coded, "encode")
    assert run(jobs[:2], work).written == 2
    before = (coded / "a.psic").stat().st_mtime_ns
    assert run(jobs, work) == (2, 2, {})
    assert (coded / "a.psic").stat().st_mtime_ns == before
    assert run(jobs, work) == (0, 4, {})
    assert run(jobs, work, overwrite=True) == (4, 0, {})


@pytest.mark.parametrize("change", ["damaged", "newer photo", "keyword", "other model"])
def test_what_is_there_but_not_what_is_wanted_is_made_anew(change: str, photos: Path, tmp_path: Path, checkpoint: str):
    coded, work = tmp_path / "coded", Work("encode", checkpoint)
    jobs = plan(photos, coded, "encode")
    run(jobs, work)
    if change == "damaged":
        (coded / "a.psic").write_bytes((coded / "a.psic").read_bytes()[:-1])
    if change == "newer photo":
        os.utime(photos / "a.png", (2**32, 2**32))
    if change == "keyword":
        work = Work("encode", checkpoint, "my cat")
    if change == "other model":
        save_checkpoint(PSIC.wrap("bmshj2018-hyperprior", n=8, m=12, **SMALL), tmp_path / "other.safetensors")
        work = Work("encode", str(tmp_path / "other.safetensors"))
    assert run(jobs, work).written == (1 if change in ("damaged", "newer photo") else 4)


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_files_are_reported_and_do_not_stop_the_others(
    workers: int, photos: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture
):
    (photos / "b.jpg").write_bytes(b"no picture")
    coded = tmp_path / "coded"
    words = ["encode", str(photos), "-o", str(coded), "--checkpoint", checkpoint, "--workers", str(workers)]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "3 written, 0 there already, 1 failed" in said.out
    assert "b.jpg" in said.err.splitlines()[0]
    assert "as a picture" in said.err
    assert said.err.splitlines()[-1].startswith("psic encode: 1 files failed")
    assert files(coded) == ["a.psic", "trip/a.psic", "trip/c.psic"]
    Image.new("RGB", (20, 20)).save(photos / "b.jpg")
    assert main(words) == 0
    assert "1 written, 3 there already, 0 failed" in capsys.readouterr().out

    (coded / "a.psic").write_bytes(b"PSIC")
    assert main(["decode", str(coded), "-o", str(tmp_path / "shown"), "--checkpoint", checkpoint]) == 2
    assert "inside its header" in capsys.readouterr().err
    assert files(tmp_path / "shown") == ["b.png", "trip/a.png", "trip/c.png"]


class Killer(Path(__file__).__class__):
    """A path that kills the process that writes beside it, as the system does when memory runs out."""

    def with_name(self, name: str) -> Path:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told_and_a_later_run_goes_on(photos: Path, tmp_path: Path, checkpoint: str):
    jobs = plan(photos, tmp_path / "coded", "encode")
    (tmp_path / "coded" / "trip").mkdir(parents=True)
    bad = [jobs[0], Job(jobs[1].source, Killer(jobs[1].output)), *jobs[2:]]
    with pytest.raises(ValueError, match="a process was killed.*--tile 512"):
        run(bad, Work("encode", checkpoint), workers=2)
    outcome = run(jobs, Work("encode", checkpoint))
    assert outcome.written + outcome.skipped == 4
    assert files(tmp_path / "coded") == ["a.psic", "b.psic", "trip/a.psic", "trip/c.psic"]


def test_whatever_happens_nothing_half_written_stays(photos: Path, tmp_path: Path, checkpoint: str):
    jobs = [Job(photos / "a.png", tmp_path / "coded" / "a.psic")]
    work, model = Work("decode", checkpoint), load_checkpoint(checkpoint)
    assert folder_jobs._attempt(jobs[0], work, model).startswith("not a .psic file")
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
