"""Every image architecture of CompressAI under PSIC: found by structure, identical while fresh, whole in real files."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from compressai.models import CompressionModel, ScaleHyperprior
from compressai.models.vbr import ScaleHyperpriorVbr
from models import OWNER, SMALL, awaken, backbone, fresh, picture, sizes
from torch import Tensor, nn

from psic_core import bitstream, keys
from psic_core.bitstream import ARCHITECTURES, BitstreamError
from psic_core.codec import PSIC
from psic_core.models.entropy import SCALES
from psic_core.models.images import pad_to
from psic_core.training.checkpoints import load_checkpoint, save_checkpoint

SECRET = keys.secret(OWNER)
#: `make check` leaves out what takes seconds to build.
ALL = [pytest.param(n, marks=[pytest.mark.slow] * n.startswith(("cheng", "elic"))) for n in ARCHITECTURES]


@functools.cache
def theirs(name: str) -> CompressionModel:
    """Not to be changed by a test."""
    model = backbone(name)
    model.update(scale_table=SCALES, force=True)
    return model


# --- all thirteen -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_wrapping_tells_architecture_and_sizes(name: str):
    config = fresh(name).config
    cheng = name.startswith("cheng")
    assert config.architecture == name
    assert (config.n, config.m) == (8, 8 if cheng else sizes(name)["m"])
    stages = fresh(name).g_s.stages
    assert sum(map(len, stages)) == len(theirs(name).g_s)
    assert len(stages) == (5 if cheng or name.startswith("elic") else 4)


@pytest.mark.parametrize("name", ALL)
def test_forward_has_compressais_shapes_and_numbers(name: str):
    """The assertions of CompressAI's own tests, and bit for bit the backbone's values."""
    ours, own, x = fresh(name), theirs(name), picture(64, 128)
    with torch.no_grad():
        got, expected = ours(x, torch.randn(16)), own(x)
    assert got["x_hat"].shape == x.shape
    m = ours.config.m
    assert got["likelihoods"]["y"].shape == (1, m, 4, 8)
    if "factorized" not in name:
        assert got["likelihoods"]["z"].shape == (1, 8, 1, 2)
    assert all(((p > 0) & (p <= 1)).all() for p in got["likelihoods"].values())
    assert torch.equal(got["x_hat"], expected["x_hat"])
    assert got["likelihoods"].keys() == expected["likelihoods"].keys()
    assert all(torch.equal(p, expected["likelihoods"][k]) for k, p in got["likelihoods"].items())


@pytest.mark.parametrize("name", ALL)
def test_fresh_files_hold_and_show_what_the_plain_codec_does(name: str):
    ours, own, x = fresh(name), theirs(name), picture(40, 100)
    file = ours.compress(x)
    with torch.no_grad():
        coded = own.compress(pad_to(x, ours.factor))
        shown = own.decompress(coded["strings"], coded["shape"])["x_hat"][..., :40, :100]
    stream = bitstream.unpack(file)
    lengths = [len(string) for (string,) in coded["strings"]]
    assert [len(string) for string in stream.strings] == pytest.approx(lengths, abs=4)  # tables differ by a count
    assert ours.latents(stream).unique().numel() > 8
    assert shown.std() > 1e-3
    atol = 1e-3 if name == "mbt2018-mean" else 0  # whose means are rounded to 2^-12
    assert torch.allclose(ours.decompress_tensor(file), shown, rtol=0, atol=atol)
    assert torch.equal(ours.decompress_tensor(file, OWNER), ours.decompress_tensor(file))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_trained_triggers_show_and_survive_a_checkpoint(name: str, tmp_path: Path):
    ours = awaken(copy.deepcopy(fresh(name)), scale=1)
    file = ours.compress(x := picture(30, 50), "my cat")
    assert bitstream.unpack(file)._replace(slots=()) == bitstream.unpack(fresh(name).compress(x))
    protected, full = ours.decompress_tensor(file), ours.decompress_tensor(file, "my cat")
    assert protected.shape == full.shape == (1, 3, 30, 50)
    assert not torch.allclose(protected, full, atol=1e-2)
    assert torch.equal(full, fresh(name).decompress_tensor(file))
    save_checkpoint(ours, tmp_path / "model.safetensors", publish_secret=True)
    again = load_checkpoint(tmp_path / "model.safetensors")
    assert again.compress(x) == ours.compress(x)
    assert torch.equal(again.decompress_tensor(file), protected)
    assert torch.equal(again.decompress_tensor(file, OWNER), full)


def test_a_codec_of_many_rates_is_held_at_the_one_of_its_quality(tmp_path: Path):
    x, lengths = picture(40, 100), []
    for quality in (1, 4):
        ours = PSIC.wrap(backbone("mbt2018-mean-vbr"), SECRET, quality=quality, **SMALL).eval()
        lengths.append(len(file := ours.compress(x)))
        save_checkpoint(ours, tmp_path / "model.safetensors")
        assert load_checkpoint(tmp_path / "model.safetensors").compress(x) == file
    assert lengths[0] < lengths[1]
    with pytest.raises(ValueError, match="quality 9 of a codec with the rates 1 to 8"):
        PSIC.wrap("mbt2018-vbr", quality=9)


# --- stages and sizes by structure ------------------------------------------------------------------


class OneBigDecoder(ScaleHyperprior):
    """A decoder in sequences within sequences."""

    def __init__(self):
        super().__init__(8, 12)
        self.g_s = nn.Sequential(nn.Sequential(*self.g_s[:3]), nn.Sequential(self.g_s[3], nn.Sequential(*self.g_s[4:])))


def test_nested_sequences_are_looked_into(tmp_path: Path):
    ours = awaken(PSIC.wrap(OneBigDecoder(), SECRET, **SMALL), scale=1).eval()
    assert ours.g_s.channels == (12, 8, 8, 8)
    assert (ours.config.architecture, ours.config.n, ours.config.m) == ("custom", 8, 12)
    file = ours.compress(picture(30, 30))
    save_checkpoint(ours, tmp_path / "own.safetensors")
    again = load_checkpoint(tmp_path / "own.safetensors", OneBigDecoder())
    assert torch.equal(again.decompress_tensor(file), ours.decompress_tensor(file))
    with pytest.raises(ValueError, match="'custom'"):
        load_checkpoint(tmp_path / "own.safetensors")


class TwoArguments(nn.Module):
    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        return x * gain


class Unsequenced(nn.Module):
    def __init__(self, g_s: nn.Module):
        super().__init__()
        self.inner = g_s

    def forward(self, y: Tensor) -> Tensor:
        return self.inner(y)


def unsuitable(kind: str) -> nn.Module:
    model = ScaleHyperprior(8, 12)
    if kind == "layer":
        model.g_s = nn.Sequential(TwoArguments(), *model.g_s)
    if kind == "no sequence":
        model.g_s = Unsequenced(model.g_s)
    if kind == "grey":
        model.g_s[-1] = nn.ConvTranspose2d(8, 1, 5, 2, 2, 1)
    if kind == "no g_s":
        del model.g_s
    if kind == "gains":
        model = ScaleHyperpriorVbr(8, 12, vr_entbttlnck=True)
    return nn.Conv2d(3, 3, 1) if kind == "no codec" else model


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("layer", r"layer 0 of g_s, TwoArguments.*features alone"),
        ("no sequence", r"g_s is a Unsequenced; PSIC needs an nn.Sequential"),
        ("grey", r"pictures of 3 channels"),
        ("no g_s", r"ScaleHyperprior has no g_s.*image codecs"),
        ("gains", r"ScaleHyperpriorVbr has tables for each gain"),
        ("no codec", r"Conv2d is no compressai CompressionModel"),
    ],
)
def test_an_unsuitable_model_gets_a_sentence_and_stays_whole(kind: str, says: str, unchecked_shapes: None):
    model = unsuitable(kind)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=says):
        PSIC.wrap(model, **SMALL)
    assert list(model.state_dict()) == before


# --- streams stay readable --------------------------------------------------------------------------


def test_masked_weights_do_not_change_the_fingerprint_when_first_used():
    """After a training step the masked weights are not zero; the next forward pass makes them so."""
    ours = copy.deepcopy(fresh("mbt2018"))
    with torch.no_grad():
        ours.backbone.context_prediction.weight.add_(0.1)
    file = ours.compress(picture(40, 40))
    ours(picture())
    assert ours.compress(picture(40, 40)) == file
    assert ours.decompress(file).size == (40, 40)


@pytest.mark.parametrize("name", ALL)
def test_forged_strings_are_a_bitstream_error(name: str):
    ours = fresh(name)
    honest = bitstream.unpack(ours.compress(picture(40, 40)))
    assert len(honest.strings[0]) > 8
    forged = [honest.strings[:-1], (*honest.strings, b"more"), (b"\xff" * 3000, *honest.strings[1:])]
    forged.append((bytes(b ^ 0x5A for b in honest.strings[0]), *honest.strings[1:]))
    forged.append((*honest.strings[:-1], b"\x00\xff" * 40))
    for strings in forged:
        with pytest.raises(BitstreamError):
            ours.decompress(bitstream.pack(honest._replace(strings=strings)))
