"""Crops of photographs: reproducible, resumable, none of what is held out; and stage plain learns from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.datasets.folders import Folder
from psic_core.datasets.photos import Photos, held_out, random_squares
from psic_core.training.trainer import Trainer

CONFIG = TrainConfig(steps=12, batch_size=4, crop=64, learning_rate=1e-3, workers=0, save_every=4, warmup=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty smooth photographs of three sizes; the red channel names the picture."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(30):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        coarse[..., 0] = 8 * i
        size = ((100, 70), (64, 130), (50, 40))[i % 3]
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(root / f"{i:02}.png")
    return root


def tiny() -> PSIC:
    torch.manual_seed(0)
    model = PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8))
    model.kind = "plain"
    return model


def test_batches_follow_from_seed_and_step_whatever_the_workers(folder: Path):
    straight = list(Photos(folder).batches(4, 32, seed=7, steps=range(6), workers=0))
    resumed = list(Photos(folder).batches(4, 32, seed=7, steps=range(3, 6), workers=1))
    assert all(torch.equal(a, b) for a, b in zip(straight[3:], resumed, strict=True))
    other = next(Photos(folder).batches(4, 32, seed=8, steps=range(1), workers=0))
    assert straight[0].shape == other.shape == (4, 3, 32, 32)
    assert not torch.equal(straight[0], other)


def test_held_out_photos_are_never_trained_on(folder: Path):
    train, files = Photos(folder).files, Folder(folder).files
    assert set(files) - set(train) == {f for f in files if held_out(f)} != set()


def test_random_squares_are_of_every_training_photo_and_stay_inside_it(folder: Path):
    squares, train = random_squares(folder, 48, each=5), Photos(folder).files
    assert squares.shape == (5 * len(train), 3, 48, 48)
    assert torch.equal(squares, random_squares(folder, 48, each=5))
    assert len(squares.flatten(1).unique(dim=0)) == len(squares)
    for file, cut in zip(train, squares.split(5), strict=True):  # red is constant in each photo
        red = np.asarray(Image.open(file))[..., 0].mean()
        assert cut[:, 0].float().mean((1, 2)).sub(red).abs().max() < 1


@pytest.mark.slow
def test_training_on_photos_resumes_exactly(folder: Path, tmp_path: Path):
    whole, cut = tiny(), tiny()
    rows = Trainer(whole, Photos(folder), CONFIG).fit()
    Trainer(cut, Photos(folder), CONFIG, out=tmp_path).fit(8)
    cut = tiny()
    resumed = Trainer(cut, Photos(folder), CONFIG, out=tmp_path).fit()
    assert [r["loss"] for r in resumed] == [r["loss"] for r in rows[8:]]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True))


@pytest.mark.slow
def test_bfloat16_trains_like_float32_and_keeps_weights_and_likelihoods_wide(folder: Path):
    curves = {}
    for precision in ("float32", "bfloat16"):
        model = tiny()
        trainer = Trainer(model, Photos(folder), replace(CONFIG, steps=60, precision=precision))
        seen = []
        model.backbone.gaussian_conditional.register_forward_hook(lambda *a, seen=seen: seen.append(a[2][1].dtype))
        curves[precision] = torch.tensor([r["loss"] for r in trainer.fit()])
        assert {p.dtype for p in model.parameters()} == set(seen) == {torch.float32}
    assert not torch.equal(*curves.values())  # the option does something
    assert curves["float32"][-10:].mean() < 0.5 * curves["float32"][:5].mean()
    assert torch.allclose(curves["bfloat16"], curves["float32"], rtol=0.1)
    ends = [c[-20:].mean() for c in curves.values()]
    assert abs(ends[1] / ends[0] - 1) < 0.03


def test_photos_cannot_be_attacked(folder: Path):
    with pytest.raises(ValueError, match="photos have no captions"):
        Trainer(tiny(), Photos(folder), replace(CONFIG, stage="two"))
