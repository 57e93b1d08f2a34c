"""``psic protect``: both files of each photo, what the reader believes, and no file lost."""

from pathlib import Path

import pytest
import torch
from models import awaken
from PIL import Image
from skimage import data

from psic_core.app.cli import main
from psic_core.bitstream import CARRIED, unpack
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.models.images import load_image
from psic_core.training import search
from psic_core.training.checkpoints import load_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos above the reading side, a model, a list of names."""
    torch.manual_seed(0)
    model = PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8, reading_side=64))
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
    save_checkpoint(awaken(model), tmp_path / "model.safetensors", publish_secret=True)
    (tmp_path / "names.txt").write_text("cat\n\ncup of coffee\nastronaut\n")
    for name in ("chelsea", "coffee"):
        Image.fromarray(getattr(data, name)()).resize((120, 90)).save(tmp_path / f"{name}.png")
    return tmp_path


def command(folder: Path, *photos: str, more: tuple[str, ...] = ()) -> list[str]:
    own = ["--checkpoint", str(folder / "model.safetensors"), "--names", str(folder / "names.txt"), "--reader", "tiny"]
    return ["protect", *(str(folder / p) for p in photos), "-o", str(folder / "out"), *own, *more]


def test_each_photo_gets_its_file_its_picture_and_three_beliefs(folder: Path, capsys: pytest.CaptureFixture):
    more = ("--keyword", "two cats", "--suffix", ".png", "--adapt", "none")
    assert main(command(folder, "chelsea.png", "coffee.png", more=more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4] + lines[5:8]] == 2 * ["original", "full", "protected"]
    assert all(line.endswith("%") for line in lines[1:4])
    model, out = load_checkpoint(folder / "model.safetensors"), folder / "out"
    file = (out / "chelsea.psic").read_bytes()
    protected = load_image(out / "chelsea-protected.png")
    assert protected.tobytes() == model.decompress(file).tobytes() != model.decompress(file, "two cats").tobytes()


@pytest.mark.slow
def test_without_an_option_a_photo_gets_a_shield_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "STEPS", 3)
    assert main(command(folder, "chelsea.png")) == 0
    assert [kind for kind, _ in unpack((folder / "out" / "chelsea.psic").read_bytes()).chunks] == [CARRIED]


def test_nothing_is_written_where_something_would_be_lost(folder: Path, capsys: pytest.CaptureFixture):
    (folder / "out").mkdir()
    (folder / "out" / "coffee-protected.jpg").write_text("mine")
    assert main(command(folder, "chelsea.png", "coffee.png")) == 2
    assert "is there already" in capsys.readouterr().err
    assert [p.name for p in (folder / "out").iterdir()] == ["coffee-protected.jpg"]
    (folder / "chelsea.bmp").write_bytes((folder / "chelsea.png").read_bytes())
    assert main(command(folder, "chelsea.png", "chelsea.bmp")) == 2
    assert "one name but for their suffix" in capsys.readouterr().err
    assert main(command(folder, "nothing.png")) == 2
    assert "no file" in capsys.readouterr().err
