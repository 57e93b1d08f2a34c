"""The checkpoints that ship do what their card says."""

import pytest
import skimage.data
import torch
from torch import Tensor
from torch.nn import functional

from psic_core import bitstream
from psic_core.codec import PSIC
from psic_core.config import data_dir
from psic_core.datasets.scenes import Scenes
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import load_target
from psic_core.training.checkpoints import load_checkpoint

pytestmark = pytest.mark.slow

NAMES = sorted(p.stem.removeprefix("psic-") for p in (data_dir() / "checkpoints").glob("psic-q*.safetensors"))


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[PSIC, PSIC]:
    return load_checkpoint(f"psic-{request.param}"), load_checkpoint(f"psic-{request.param}", plain=True)


def photo() -> Tensor:
    pixels = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1)[None].float() / 255
    return functional.interpolate(pixels, (512, 768), mode="bilinear", antialias=True).clamp(0, 1)


def test_there_are_four_rates():
    assert NAMES == ["q1", "q2", "q3", "q4"]


def test_full_is_the_plain_codecs_picture_from_the_same_file(pair: tuple[PSIC, PSIC]):
    model, plain = pair
    file = model.compress(photo(), "words")
    assert plain.fingerprint() == model.fingerprint()
    assert torch.equal(model.decompress_tensor(file, "words"), plain.decompress_tensor(file))
    assert (model.decompress_tensor(file) - plain.decompress_tensor(file)).abs().mean() > 1e-3


def test_files_are_within_two_percent_of_the_likelihoods(pair: tuple[PSIC, PSIC]):
    model, _ = pair
    x = photo()
    file = model.compress(x)
    with torch.no_grad():
        likelihoods = model.backbone(x)["likelihoods"]
    size = -sum(float(p.double().log2().sum()) for p in likelihoods.values()) / 8 + bitstream.header_bytes(2)
    assert abs(len(file) / size - 1) < 0.02


def test_protected_scenes_stay_near_for_people_and_move_away_for_the_model(pair: tuple[PSIC, PSIC]):
    model, _ = pair
    target = load_target()
    x = torch.stack([scene.image for scene in (Scenes("test", 12)[i] for i in range(12))])
    with torch.no_grad():
        y_hat = model.quantised_latents(pad_to(x, model.backbone.downsampling_factor))
        full, protected = (round_to_8_bits(model.picture(y_hat, (160, 160), c)) for c in (model.full_condition(), None))
        original, *seen = (target.encode_images(v) for v in (x, full, protected))
    assert 255**2 * (protected - full).square().mean() < 3 * model.config.budget  # texture counts less
    likeness = [float((original * features).sum(1).mean()) for features in seen]
    assert likeness[1] < likeness[0] - 0.3


def test_the_protection_is_not_stronger_at_the_edges(pair: tuple[PSIC, PSIC]):
    """An edge that training never saw would be: it once held fifteen times the energy."""
    model, _ = pair
    x = photo()
    y_hat, size = model.quantised_latents(pad_to(x, model.factor)), (x.shape[-2], x.shape[-1])
    change = (model.picture(y_hat, size) - model.picture(y_hat, size, model.full_condition())).square().mean((0, 1))
    b = min(size) // 12
    inside = change[2 * b : -2 * b, 2 * b : -2 * b].mean()
    for edge in (change[:b], change[-b:], change[:, :b], change[:, -b:]):
        assert edge.mean() < 2 * inside
