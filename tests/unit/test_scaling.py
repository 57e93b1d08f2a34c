"""Time and memory over the size of the picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from models import OWNER, SMALL, awaken

from psic_core import keys
from psic_core.checkpoints import save_checkpoint
from psic_core.cli import main
from psic_core.codec import PSIC
from psic_core.scaling import photo


@pytest.mark.parametrize("megapixels", [0.01, 0.1, 2.0])
def test_the_photo_has_the_size_and_no_seam(megapixels: float):
    image = np.asarray(photo(megapixels)).astype(int)
    height, width = image.shape[:2]
    assert height * width == pytest.approx(megapixels * 1e6, rel=0.01)
    assert width == pytest.approx(1.5 * height, abs=1)
    if megapixels == 2:
        assert (image[:, 1023] == image[:, 1024]).all()  # mirrored, not repeated
        assert image.std() > 40


@pytest.mark.slow
def test_the_command_measures_each_size_and_the_seams(tmp_path: Path, capsys: pytest.CaptureFixture):
    model, out = tmp_path / "psic-q2.safetensors", tmp_path / "scaling.json"
    tiny = awaken(PSIC.wrap("bmshj2018-hyperprior", keys.secret(OWNER), n=8, m=12, **SMALL))
    save_checkpoint(tiny, model, publish_secret=True)
    words = ["scaling", "--checkpoint", model, "--megapixels", 0.05, 0.2, "--tile", 128, "--seams", 0.1, "--json", out]
    assert main([str(word) for word in words]) == 0
    report = json.loads(out.read_text())
    small, large = report["rows"]
    assert large["megapixels"] == pytest.approx(0.2, rel=0.02)
    assert 100 < small["peak_mb"] < 4000
    assert small["encode_s"] > 0
    for version in ("protected", "full"):
        seams = report["seams"][version]
        assert abs(seams["psnr_whole"] - seams["psnr_tiled"]) < 0.05
        assert seams["pixels_that_differ"] < 0.01
    assert "| 0.2 |" in capsys.readouterr().out
    assert main(["scaling", "--checkpoint", str(model), "--megapixels", "0", "--json", str(out)]) == 2
    assert "above 0" in capsys.readouterr().err
