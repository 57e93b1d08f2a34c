"""Refinement: latents searched for one photo, in an ordinary file; never worse than the encoder's, by its own loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import OWNER, awaken
from PIL import Image
from skimage import data
from torch import Tensor

from psic_core import bitstream, evidence, keys, reading
from psic_core.checkpoints import load_checkpoint, save_checkpoint
from psic_core.cli import main
from psic_core.codec import PSIC
from psic_core.config import RATES, CodecConfig
from psic_core.eval_sets import EvalSet
from psic_core.images import pad_to, round_to_8_bits
from psic_core.many import Work, load
from psic_core.objectives import questions_loss
from psic_core.reading import Reader
from psic_core.refinement import RefineConfig, Refiner, bits, doubted, predicted, rounded, scene_captions
from psic_core.targets import Target, load_target
from psic_core.versions import code_versions

CONFIG = CodecConfig(n=8, m=12, dim=16, hidden=8)
CAPTIONS = ["a dog on grass", "a red car", "two boats"]


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("tiny")


def small(architecture: str = "bmshj2018-hyperprior") -> PSIC:
    torch.manual_seed(0)
    model = awaken(PSIC.build(replace(CONFIG, architecture=architecture), keys.secret(OWNER)), scale=1).eval()
    with torch.no_grad():
        model.backbone.g_a[-1].weight *= 20  # latents that are not all rounded to zero
    return model


def photo(name: str = "astronaut", height: int = 64, width: int = 80) -> Tensor:
    pixels = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255
    return round_to_8_bits(torch.nn.functional.interpolate(pixels, (height, width), mode="area"))


def refiner(model: PSIC, target: Target, **fields: float) -> Refiner:
    return Refiner(model, target, RefineConfig(**{"steps": 3, "reach": 0.5, "rate": 0.01} | fields), CAPTIONS)


# --- the file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bmshj2018-hyperprior", "mbt2018-mean"])
def test_a_refined_file_is_an_ordinary_file(architecture: str, target: Target):
    model, x = small(architecture), photo()
    before = model.compress(x)
    model.refine = refiner(model, target)
    y, file = model.refine(x), model.compress(x, "my cat")
    model.refine = None  # whoever decodes knows nothing of it
    stream = bitstream.unpack(file)
    y_hat, (_, means) = model.latents(stream), predicted(model.backbone, y)
    assert stream.fingerprint == bitstream.unpack(before).fingerprint
    assert torch.allclose(y_hat, rounded(y, means), atol=1e-5)
    assert not torch.equal(y_hat, model.latents(bitstream.unpack(before)))
    full, protected = model.decompress_tensor(file, "my cat"), model.decompress_tensor(file)
    assert torch.equal(full, model.decompress_tensor(file, OWNER))
    assert not torch.equal(full, protected)


def test_the_same_picture_gives_the_same_latents_and_the_model_is_left_as_it_was(target: Target):
    model = small().train()
    model.backbone.requires_grad_(False)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    found = refiner(model, target)
    with torch.no_grad():  # as evaluation calls it
        assert torch.equal(found(photo()), found(photo()))
    assert model.training
    assert wanted == {n: p.requires_grad for n, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())


# --- the search -------------------------------------------------------------------------------------


@torch.no_grad()
def read_like(model: PSIC, target: Target, x: Tensor, y: Tensor, key: Tensor | None) -> float:
    """The cosine between what the target reads in a version and in the photo."""
    shown = round_to_8_bits(model.synthesize(y.round(), key)[..., : x.shape[-2], : x.shape[-1]])
    return float((target.encode_image(shown) * target.encode_image(x)).sum())


def test_the_target_reads_less_of_the_protected_version_and_as_much_of_the_full_one():
    model, target, x = load_checkpoint("psic-q2").eval(), load_target("lite-clip"), photo("coffee", 160, 160)
    y = model.backbone.g_a(pad_to(x, model.factor)).detach()
    found = Refiner(model, target, RefineConfig(steps=8, reach=0.3, attack=0.02), CAPTIONS)(x)
    key = model.full_condition()
    assert read_like(model, target, x, found, None) < read_like(model, target, x, y, None) - 0.1
    assert abs(read_like(model, target, x, found, key) - read_like(model, target, x, y, key)) < 0.1


def test_away_is_away_from_what_is_read_in_the_photo(target: Target):
    model, x = small(), photo()
    off = {"attack": 1.0, "drift": 0.0, "steps": 8}
    found = [refiner(model, target, away=away, **off)(x) for away in (0.0, 1e4)]
    likeness = [read_like(model, target, x, y, None) for y in found]
    assert likeness[1] < likeness[0]


@torch.no_grad()
def test_questions_are_answered_wrongly(target: Target):
    model, x, asked = small(), photo(), [("a photo of a dog", "a photo without a dog"), ("at night", "by day")]
    answers = target.encode_text([p for pair in asked for p in pair]).unflatten(0, (2, 2))
    read, losses = target.encode_image(x), []
    for weight in (0.0, 1e3):
        config = RefineConfig(steps=8, reach=1.5, rate=0.01, attack=1.0, away=0.0, drift=0.0, questions=weight)
        y = Refiner(model, target, config, CAPTIONS, asked)(x)
        shown = round_to_8_bits(model.synthesize(y.round(), None)[..., : x.shape[-2], : x.shape[-1]])
        losses.append(float(questions_loss(target.encode_image(shown), read, answers)))
    assert losses[1] < losses[0]


def test_latents_go_no_farther_than_their_reach(target: Target):
    model, x = small(), photo()
    y = model.backbone.g_a(pad_to(x, model.factor)).detach()
    for steps in (2, 12):
        gone = (refiner(model, target, steps=steps, reach=0.4, attack=10.0)(x) - y).abs().max()
        assert 0.1 < gone < 0.5


def test_a_search_is_told_from_others_by_its_words(target: Target):
    model = small()
    told = {repr(Refiner(model, target, captions=list(c))) for c in (CAPTIONS, CAPTIONS[::-1], CAPTIONS)}
    assert len(told) == 2


def test_drift_keeps_what_is_read_in_the_full_version(target: Target):
    model, x = small(), photo()
    key = model.full_condition()
    plain = round_to_8_bits(model.synthesize(model.backbone.g_a(pad_to(x, model.factor)).round(), key)[..., :64, :80])
    free = {"attack": 10.0, "steps": 12, "reach": 20.0, "lmbda": 1e-9, "rate": 0.0}
    found = [refiner(model, target, drift=drift, **free)(x) for drift in (0.0, 1e6)]
    drift = [1 - read_like(model, target, plain.detach(), y, key) for y in found]
    assert drift[1] < drift[0] / 2


def test_a_dear_rate_makes_smaller_files(target: Target):
    model, x, sizes = small(), photo(), []
    for rate in (0.0, 30.0):
        model.refine = refiner(model, target, rate=rate, steps=10)
        sizes.append(len(model.compress(x)))
    assert sizes[1] < sizes[0]


def test_the_best_latents_count_and_not_the_last(target: Target):
    model, x = small(), photo()
    y = model.backbone.g_a(pad_to(x, model.factor)).detach()
    wild = Refiner(model, target, RefineConfig(steps=2, reach=1e3, attack=0, drift=0), CAPTIONS)
    assert torch.equal(wild(x), y)  # steps that only spoil it leave the encoder's own


def test_pictures_of_a_batch_do_not_disturb_each_other(target: Target):
    model = small()
    both = torch.cat([photo("astronaut"), photo("coffee")])
    found = refiner(model, target)(both)
    alone = refiner(model, target)(both[1:])
    assert torch.allclose(found[1:], alone, atol=1e-3)


# --- its parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bmshj2018-hyperprior", "mbt2018-mean"])
def test_bits_are_compressais_at_rounded_latents(architecture: str):
    model = small(architecture)
    x = pad_to(photo(), model.factor)
    with torch.no_grad():
        y = model.backbone.g_a(x)
        expected = -model.backbone(x)["likelihoods"]["y"].log2().sum()
        scales, means = predicted(model.backbone, y)
        assert float(bits(rounded(y, means), scales, means)) == pytest.approx(float(expected), rel=1e-4)


def test_leaving_the_mean_costs_before_rounding_notices():
    model = small()
    y = torch.full((1, 12, 4, 4), 0.3, requires_grad=True)
    bits(y, *predicted(model.backbone, y)).sum().backward()
    assert (y.grad > 0).all()


def test_the_doubted_caption_is_eq_8s(target: Target):
    read, texts = target.encode_image(photo()), target.encode_text(CAPTIONS)
    e = evidence.evidence(read @ texts.T, s=1.0)  # no saturation
    assert torch.equal(doubted(read, texts), e.argmin(1))


def test_captions_are_different():
    found = scene_captions(12)
    assert 1 < len(found) == len(set(found)) <= 12


# --- what is compared, and where it is asked for ----------------------------------------------------


def test_the_plain_codec_is_compared_as_it_is(target: Target):
    model, plain, x = small(), small(), photo()
    plain.kind = "plain"
    before = code_versions(model, plain, x, model.secret)
    model.refine = refiner(model, target)
    after = code_versions(model, plain, x, model.secret)
    assert torch.equal(before.pictures["backbone"], after.pictures["backbone"])
    assert after.backbone_bytes == before.backbone_bytes
    assert not torch.equal(before.pictures["full"], after.pictures["full"])


def test_a_pass_is_not_found_again_under_another_search(target: Target, tmp_path: Path):
    model, plain = small(), small()
    plain.kind = "plain"
    data_set = EvalSet("one", 1, lambda _: photo()[0])
    reader = Reader("tiny", target, target.encode_images)
    for steps in (0, 1, 2, 2):
        model.refine = refiner(model, target, steps=steps) if steps else None
        reading.read(model, plain, data_set, [reader], tmp_path)
    assert len(list(tmp_path.glob("pass-*"))) == 3


def test_the_commands_refine(tmp_path: Path):
    checkpoint, out = tmp_path / "psic-q2.safetensors", tmp_path / "x.psic"
    model = small()
    save_checkpoint(model, checkpoint, publish_secret=True)
    assert load(Work("encode", str(checkpoint), refine=7, target="tiny")).refine.config.steps == 7
    Image.fromarray(data.coffee()).resize((48, 40)).save(tmp_path / "photo.png")
    words = ["encode", tmp_path / "photo.png", "-o", out, "--checkpoint", checkpoint, "--target", "tiny"]
    assert main([*map(str, words), "--refine", "2"]) == 0
    assert model.decompress(out.read_bytes()).size == (48, 40)


# --- refusals ---------------------------------------------------------------------------------------


def test_refusals_say_what_to_do(target: Target):
    model = small()
    model.kind = "plain"
    with pytest.raises(ValueError, match="plain codec decodes no protected version"):
        Refiner(model, target)
    with pytest.raises(ValueError, match="not of mbt2018: leave refine out"):
        Refiner(small("mbt2018"), target)
    model = small()
    model.config = replace(model.config, quality=max(RATES) + 1)
    with pytest.raises(ValueError, match="quality 5 has no lambda"):
        Refiner(model, target, captions=CAPTIONS)
    assert Refiner(model, target, RefineConfig(lmbda=0.02), CAPTIONS).lmbda == 0.02
    model = small()
    model.secret = None
    with pytest.raises(ValueError, match="does not hold its secret"):
        Refiner(model, target)
    with pytest.raises(ValueError, match="3000x2000 is too large to refine"):
        Refiner(small(), target, captions=CAPTIONS)(torch.zeros(1, 3, 2000, 3000))
    for field in ("steps", "reach", "pool"):
        with pytest.raises(ValueError, match=f"{field} is 0"):
            RefineConfig(**{field: 0})
