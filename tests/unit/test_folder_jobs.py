"""Folders of photos: what is there is left, bad files reported."""

from pathlib import Path

import pytest
from models import OWNER, SMALL, awaken
from PIL import Image
from skimage import data

from psic_core import bitstream, keys
from psic_core.app.cli import main
from psic_core.app.folder_jobs import plan
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
    assert [str(output.relative_to(tmp_path / "out")) for _, output in jobs] == [
        "a.psic", "b.jpg.psic", "b.png.psic", "trip/a.psic", "trip/c.psic"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"holds no file that ends in \.psic"):
        plan(photos, tmp_path, "decode")
    for name in ("b.webp", "b.jpg.png"):
        Image.new("RGB", (8, 8)).save(photos / name)
    with pytest.raises(ValueError, match="would be written to one; rename"):
        plan(photos, tmp_path / "out", "encode")


def test_a_folder_goes_there_and_back(photos: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture):
    coded, shown, model = tmp_path / "coded", tmp_path / "shown", load_checkpoint(checkpoint)
    options = ["--checkpoint", checkpoint, "--keyword", "my cat"]
    assert main(["encode", str(photos), "-o", str(coded), *options]) == 0
    assert "4 written (4 with a keyword), 0 there already, 0 failed" in capsys.readouterr().out
    assert files(coded) == ["a.psic", "b.psic", "trip/a.psic", "trip/c.psic"]
    stream = (coded / "trip/c.psic").read_bytes()
    expected = bitstream.unpack(model.compress(load_image(photos / "trip/c.webp")))
    assert bitstream.unpack(stream)._replace(slots=()) == expected
    assert main(["decode", str(coded), "-o", str(shown), *options]) == 0
    assert "4 written (4 full), 0 there already, 0 failed" in capsys.readouterr().out
    assert files(shown) == ["a.png", "b.png", "trip/a.png", "trip/c.png"]
    assert load_image(shown / "trip/c.png").tobytes() == model.decompress(stream, "my cat").tobytes()


def test_what_is_there_is_left_and_told(photos: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture):
    """No photo is lost either that happens to have an output's name."""
    coded, own = tmp_path / "coded", ["--checkpoint", checkpoint]
    (coded / "trip").mkdir(parents=True)
    (coded / "trip" / "a.psic").write_text("mine")
    before = {name: (photos / name).read_bytes() for name in files(photos)}
    assert main(["encode", str(photos), "-o", str(coded), *own]) == 0
    said = capsys.readouterr()
    assert "3 written (3 without keyword), 1 there already, 0 failed" in said.out
    assert "what was there stays, whatever it was made from and how; --overwrite makes it anew" in said.err
    assert (coded / "trip" / "a.psic").read_text() == "mine"
    assert main(["encode", str(photos), "-o", str(coded), *own, "--overwrite"]) == 0
    assert "4 written (4 without keyword), 0 there already" in capsys.readouterr().out
    assert main(["decode", str(coded), "-o", str(photos), *own]) == 0
    assert "3 written (3 protected), 1 there already" in capsys.readouterr().out  # a.png, a photo
    assert {name: (photos / name).read_bytes() for name in before} == before


def test_bad_files_are_reported_and_do_not_stop_the_others(
    photos: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture
):
    (photos / "b.jpg").write_bytes(b"no picture")
    coded = tmp_path / "coded"
    words = ["encode", str(photos), "-o", str(coded), "--checkpoint", checkpoint]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "3 written (3 without keyword), 0 there already, 1 failed" in said.out
    assert any("b.jpg" in line and "as a picture" in line for line in said.err.splitlines())
    assert said.err.splitlines()[-1].startswith("psic encode: 1 files failed")
    assert files(coded) == ["a.psic", "trip/a.psic", "trip/c.psic"]  # nothing half-written
    Image.new("RGB", (20, 20)).save(photos / "b.jpg")
    assert main(words) == 0
    assert "1 written (1 without keyword), 3 there already, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--checkpoint nothing", "no checkpoint"),
        ("--tile -5", "side in pixels"),
        ("-o {photos}/notes.txt", "goes into a folder"),
    ],
)
def test_what_no_file_could_do_is_one_sentence(
    options: str, says: str, photos: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture
):
    words = ["encode", str(photos), "-o", str(tmp_path / "coded"), "--checkpoint", checkpoint]
    assert main([*words, *options.format(photos=photos).split()]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "coded").exists() or not files(tmp_path / "coded")
