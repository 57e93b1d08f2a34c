"""What a reader's card says: beliefs calibrated on held-out pairs, and shares read through a codec."""

from pathlib import Path

import make_lite_clip
import pytest
import torch
from make_lite_clip import calibrate, decoded, scores, what_it_reads
from models import fresh, picture
from torch import Tensor
from torch.nn import functional

from psic_core import bitstream
from psic_core.datasets.eval_sets import eval_set
from psic_core.models.vlp import Target, load_target
from psic_core.training.pairs import Pairs


@pytest.fixture
def tiny() -> Target:
    return load_target("tiny")


def test_a_reader_that_errs_more_often_is_less_sure(tiny: Target, monkeypatch: pytest.MonkeyPatch):
    rng = torch.Generator().manual_seed(0)
    image = functional.normalize(torch.randn(200, 16, generator=rng), dim=1)
    pairs = Pairs(torch.zeros(200, 3, 8, 8, dtype=torch.uint8), [("a",)] * 200)
    monkeypatch.setattr(tiny, "encode_images", lambda _: image)
    sure = []
    for noise in (0.15, 0.3):
        text: Tensor = functional.normalize(image + noise * torch.randn(200, 16, generator=rng), dim=1)
        monkeypatch.setattr(tiny, "encode_text", lambda _, text=text: text)
        sure.append(calibrate(tiny, pairs))
        assert tiny.model.logit_scale.exp().item() == pytest.approx(sure[-1])
    assert 5 < sure[1] < sure[0] < 50


@torch.no_grad()
def test_a_decoded_picture_is_the_files():
    model, x = fresh("bmshj2018-hyperprior"), picture(50, 70)
    stream = bitstream.unpack(model.compress(x))
    full = model.picture(model.latents(stream), (50, 70), model.full_condition())
    assert (decoded(model, x) - full).abs().max() < 1 / 254  # 8 bits


def test_scores_name_every_version(tiny: Target):
    found = scores(tiny, eval_set("scenes", limit=4), {"small": fresh("bmshj2018-hyperprior")})
    assert {"t2i", "i2t", "classification", "attributes, balanced"} == set(found)
    for by in found.values():
        assert set(by) == {"original", "small"}
        assert all(0 <= share <= 1 for share in by.values())


def test_sets_that_are_not_there_are_left_out(
    tiny: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(make_lite_clip, "CODECS", ())
    monkeypatch.setattr(make_lite_clip, "SETS", {"flickr8k": 2, "scenes": 2})
    found = what_it_reads(tiny, str(tmp_path))
    assert set(found) == {"scenes t2i", "scenes i2t", "scenes classification", "scenes attributes, balanced"}
    assert "flickr8k is left out" in capsys.readouterr().out
