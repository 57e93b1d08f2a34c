"""Three pictures, one of 2 megapixels, under three settings: `make matrix` does the same with fifty."""

from pathlib import Path

import pytest
import torch
from portability import matrix, pictures

from psic_core.codec import PSIC
from psic_core.training.checkpoints import save_checkpoint

pytestmark = pytest.mark.slow

SETTINGS = ["as it is, 2 threads", "oldest", "oneDNN SSE4.1"]


def checkpoint(name: str, folder: Path) -> str:
    torch.manual_seed(1)
    model = PSIC.wrap(name, n=32, m=48)
    with torch.no_grad():  # latents and scales about as large as a trained codec's
        model.backbone.g_a[-1].weight.mul_(8)
        model.backbone.h_s[4].bias.fill_(0.7)
    save_checkpoint(model, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def test_every_file_opens_in_every_setting(tmp_path: Path):
    checkpoints = [checkpoint(name, tmp_path) for name in ("bmshj2018-hyperprior", "mbt2018-mean")]
    files, wrong = matrix(tmp_path, checkpoints, pictures(tmp_path, (0.02, 0.1, 2.1)), SETTINGS, writers=2)
    assert files == 6
    assert wrong == {setting: [] for setting in SETTINGS}
