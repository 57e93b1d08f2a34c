"""Post-processing, and the rows that say what it leaves of a shield."""

import pytest
import torch
from models import picture
from torch import Tensor

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.datasets.eval_sets import eval_set
from psic_core.lab.processing import DENOISERS, PLATFORMS, recoded
from psic_core.lab.robustness import PLAIN, Robustness
from psic_core.metrics import psnr
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import Target

pytestmark = pytest.mark.slow

SCENES = eval_set("scenes", limit=16)
KEEP_SIZE = set(PLATFORMS) - {"three quarters, stays small", "screenshot", "crop to 90 %", "crop to 75 %"}


@pytest.fixture(scope="module")
def suite(lite_clip: Target, psic_q2: PSIC, plain_q2: PSIC) -> Robustness:
    return Robustness({"mine": psic_q2}, plain_q2, SCENES, lite_clip)


def pair() -> tuple[PSIC, PSIC]:
    torch.manual_seed(0)
    model = PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8, residual=4), keys.secret("x")).eval()
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
        for trigger in model.g_s.triggers:
            trigger.cltg.w_d.weight.normal_(std=0.5)
    model.anchor()
    plain = PSIC.build(model.config)
    plain.load_state_dict(model.state_dict())
    plain.kind = "plain"
    return plain.eval(), model


@pytest.mark.parametrize("name", [*PLATFORMS, *DENOISERS])
def test_a_processing_gives_8_bit_pictures_that_still_show_the_photo(name: str):
    x = round_to_8_bits(picture(48, 72) * 0.8 + 0.1)
    changed = (PLATFORMS | DENOISERS)[name](x)
    assert torch.allclose((changed * 255).round() / 255, changed, atol=1e-6)
    assert changed.min() >= 0
    assert changed.max() <= 1
    if name in KEEP_SIZE or name in DENOISERS:
        assert changed.shape == x.shape
        assert psnr(changed, x) > (15 if "gamma" in name or "bits" in name else 20)
    assert torch.equal(changed, x) == (name == "PNG")
    assert torch.equal(changed, (PLATFORMS | DENOISERS)[name](x))  # nothing random from call to call


def test_recoding_is_what_the_codec_does():
    plain, model = pair()
    x = round_to_8_bits(picture())
    assert torch.equal(recoded(plain)(x), round_to_8_bits(plain.decompress_tensor(plain.compress(x))))
    assert not torch.equal(recoded(model)(x), recoded(plain)(x))


def test_no_attack_counts_the_shield_itself_and_png_changes_nothing(suite: Robustness):
    suite.nothing()
    suite.process("platforms", {"PNG": PLATFORMS["PNG"]})
    published, png = suite.rows[-2:]
    assert published["asr"] == png["asr"]
    assert {e["value"] for e in png["null"].values()} == {0.0}
    assert published["psnr"][PLAIN] == pytest.approx(published["psnr"]["mine"], abs=1.5)  # JPEG at the same level
    own = suite.bench.measure(suite.shown["mine"])["asr"]
    assert {t: png["asr"]["mine"][t] for t in own} == own
    assert png["asr"]["mine"]["mean"]["value"] == pytest.approx(sum(e["value"] for e in own.values()) / len(own))


def test_the_null_is_the_same_processing_of_the_plain_codecs_picture(suite: Robustness):
    def erase(pictures: Tensor) -> Tensor:
        return torch.full_like(pictures, 0.5)

    grey = {v: erase(p) for v, p in suite.shown.items()}
    row = suite.add("test", "grey", grey)
    assert row["null"] == row["asr"]["mine"]
    assert row["null"]["i2t"]["value"] > 0
    undone = suite.add("test", "undone", {v: suite.shown[PLAIN] for v in suite.shown})
    assert {e["value"] for e in undone["asr"]["mine"].values()} == {0.0}


def test_a_model_over_another_encoder_is_refused(lite_clip: Target):
    plain, model = pair()
    with torch.no_grad():
        plain.backbone.g_a[0].weight.add_(0.1)
    with pytest.raises(ValueError, match="mine has another encoder"):
        Robustness({"mine": model}, plain, SCENES, lite_clip)
