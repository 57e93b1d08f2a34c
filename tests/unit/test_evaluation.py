"""Versions and their nulls, the tasks against brute force, and a whole evaluation to one JSON."""

import json
import math
from pathlib import Path

import pytest
import torch
from models import awaken
from PIL import Image
from skimage import data
from torch import Tensor

from psic_core import bitstream
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.datasets.eval_sets import EvalSet, eval_set
from psic_core.datasets.scenes import Scenes
from psic_core.lab.evaluate import evaluate, write_json
from psic_core.lab.tasks import class_weights, retrieval, task_results
from psic_core.lab.versions import VERSIONS, Coded, code_versions, jpeg, jpeg_at
from psic_core.metrics import psnr
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import Target

TINY = CodecConfig(n=8, m=12, dim=16, hidden=8)


def build(lively: bool) -> PSIC:
    """The same random codec every time; lively triggers answer, the others are zero."""
    torch.manual_seed(0)
    model = PSIC.build(TINY)
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
    return awaken(model, scale=0.3 * lively).eval()


@pytest.fixture(scope="module")
def model() -> PSIC:
    return build(lively=True)


@pytest.fixture(scope="module")
def plain() -> PSIC:
    model = build(lively=False)
    model.kind = "plain"
    return model


def photo(name: str, size: int = 96) -> Tensor:
    pixels = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255
    return round_to_8_bits(torch.nn.functional.interpolate(pixels, (size, size), mode="area"))


# --- versions ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded(model: PSIC, plain: PSIC) -> Coded:
    return code_versions(model, plain, photo("coffee"), model.secret, seed=3)


def test_versions_are_what_real_files_decode_to(coded: Coded, model: PSIC, plain: PSIC):
    x = photo("coffee")
    file, plain_file = model.compress(x), plain.compress(x)
    assert (coded.psic_bytes, coded.plain_bytes) == (len(file), len(plain_file))
    assert torch.equal(coded.pictures["original"], x)
    assert torch.equal(coded.pictures["protected"], round_to_8_bits(model.decompress_tensor(file)))
    assert torch.equal(coded.pictures["full"], round_to_8_bits(model.decompress_tensor(file, "psic course")))
    assert torch.equal(coded.pictures["plain"], round_to_8_bits(plain.decompress_tensor(plain_file)))


def test_the_nulls_are_as_far_from_the_original_as_the_protected_version(coded: Coded):
    level = psnr(coded.pictures["protected"], coded.pictures["original"])
    assert psnr(coded.pictures["noise"], coded.pictures["original"]) == pytest.approx(level, abs=0.3)


@pytest.mark.parametrize("name", ["chelsea", "rocket"])
@pytest.mark.parametrize("level", [22.0, 27.0, 33.0])
def test_jpeg_is_the_worst_that_reaches_the_level(level: float, name: str, monkeypatch: pytest.MonkeyPatch):
    x, asked = photo(name), []
    monkeypatch.setattr("psic_core.lab.versions.jpeg", lambda x, quality: asked.append(quality) or jpeg(x, quality))
    found = jpeg_at(x, level)
    quality = asked[-1]
    assert torch.equal(found, jpeg(x, quality))
    assert psnr(found, x) >= level
    assert quality > 1
    assert psnr(jpeg(x, quality - 1), x) < level


# --- tasks against brute force ----------------------------------------------------------------------


def unit(n: int, seed: int, d: int = 16) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def versions_of(n: int) -> dict[str, Tensor]:
    return {version: unit(n, seed) for seed, version in enumerate(VERSIONS)}


CAPTIONS = [tuple(f"caption {j} of picture {i}" for j in range(3)) for i in range(7)]


def test_retrieval_is_what_a_loop_gives(target: Target):
    features = versions_of(7)
    found = retrieval(features, CAPTIONS, target)
    text = target.encode_text([c for row in CAPTIONS for c in row]).reshape(7, 3, 16)
    for version, image in features.items():
        flat = [(float(image[q] @ text[i, j]), i) for q in range(7) for i in range(7) for j in range(3)]
        best = [max(flat[q * 21 : q * 21 + 21])[1] for q in range(7)]
        assert found["i2t"][0][version].tolist() == [best[q] == q for q in range(7)]
        single, among = [], []
        for i in range(7):
            for j in range(3):
                everywhere = [float(image[g] @ text[i, j]) for g in range(7)]
                only_here = [float((image if g == i else features["plain"])[g] @ text[i, j]) for g in range(7)]
                among.append(everywhere.index(max(everywhere)) == i)
                single.append(only_here.index(max(only_here)) == i)
        assert found["t2i"][0][version].tolist() == among
        assert found["t2i_single"][0][version].tolist() == single
    assert found["t2i"][1].tolist() == [i for i in range(7) for _ in range(3)]
    assert found["i2t"][1].tolist() == list(range(7))


def test_a_shared_caption_is_right_for_all_its_pictures(target: Target):
    captions = [("a dog", "one"), (" A dog", "two"), ("a cat", "three")]
    dog, cat, one, three = target.encode_text(["a dog", "a cat", "one", "three"])
    swapped = torch.stack([dog, one, cat])  # picture 0 reads "a dog", picture 1 reads the caption of picture 0
    features = dict.fromkeys(VERSIONS, swapped)
    found = retrieval(features, captions, target)
    # "a dog" of picture 1 finds picture 0: right, because picture 0 has that caption too.
    assert found["t2i"][0]["full"].tolist()[2] is True
    assert found["i2t"][0]["full"].tolist() == [True, False, True]
    assert three.shape == (16,)


def test_classification_is_the_nearest_mean_prompt(target: Target):
    classes, templates = ("cat", "dog", "bird"), [lambda c: f"a {c}", lambda c: f"a photo of the {c}."]
    weights = class_weights(target, classes, templates)
    mean = torch.stack([target.encode_text([t(c) for t in templates]).mean(0) for c in classes])
    assert torch.allclose(weights, mean / mean.norm(dim=1, keepdim=True), atol=1e-6)
    features, labels = versions_of(5), torch.tensor([0, 1, 2, 0, 1])
    picture = lambda _: torch.zeros(3, 8, 8)  # noqa: E731
    known = EvalSet("x", 5, picture, classes=classes, labels=labels, templates=templates)
    by, groups = task_results(features, known, target)["classification"]
    for version, image in features.items():
        assert by[version].tolist() == [int((weights @ image[i]).argmax()) == labels[i] for i in range(5)]
    assert groups.tolist() == list(range(5))


def test_attributes_compare_each_prompt_with_its_opposite(target: Target):
    prompts = (("a dark picture", "a bright picture"), ("grass", "no grass"))
    truth = torch.tensor([[True, False], [False, False], [True, True]])
    features = versions_of(3)
    known = EvalSet("x", 3, lambda _: torch.zeros(3, 8, 8), attribute_prompts=prompts, attributes=truth)
    by, groups = task_results(features, known, target)["attributes"]
    expected = []
    for i in range(3):
        for j, pair in enumerate(prompts):
            yes, no = target.encode_text(list(pair)) @ features["jpeg"][i]
            expected.append(bool((yes > no) == truth[i, j]))
    assert by["jpeg"].tolist() == expected
    assert groups.tolist() == [0, 0, 1, 1, 2, 2]


# --- the whole --------------------------------------------------------------------------------------


def scenes(order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> EvalSet:
    """Six scenes of 64 pixels, in any order."""
    found = Scenes("test", 6, 64)
    drawn = [found[i] for i in order]
    return EvalSet(
        "scenes", 6, lambda i: drawn[i].image, [s.captions for s in drawn], found.classes,
        torch.tensor([s.class_index for s in drawn]), attribute_prompts=found.attribute_prompts,
        attributes=torch.stack([s.attributes for s in drawn]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(model: PSIC, plain: PSIC, target: Target) -> dict:
    return evaluate(model, plain, scenes(), target)


def test_rate_and_fidelity_are_means_over_real_files(report: dict, model: PSIC, plain: PSIC):
    bits, values = [], []
    for i in range(6):
        x = scenes().picture(i)[None]
        file = model.compress(x)
        bits.append(bitstream.describe(file)["bpp"])
        values.append(psnr(model.decompress_tensor(file), x))
    assert report["bpp"] == pytest.approx(sum(bits) / 6)
    assert report["psnr"]["protected"] == pytest.approx(sum(values) / 6, rel=1e-5)


def test_every_asr_counts_what_the_plain_codec_gets_right(report: dict):
    samples = {"t2i": 30, "t2i_single": 30, "i2t": 6, "classification": 6, "attributes": 6 * 20}
    for task, by in report["asr"].items():
        right = {e["n"] for e in by.values()}
        assert len(right) == 1
        total = samples[task] if task != "attributes" else scenes().attributes.numel()
        assert right.pop() == round(report["score"][task]["plain"] * total)


def test_a_fresh_psic_evaluates_as_its_backbone(plain: PSIC, target: Target):
    fresh = build(lively=False)
    report = evaluate(fresh, plain, scenes(), target)
    for task, by in report["asr"].items():
        for version in ("full", "protected", "wrong keyword"):
            value = by[version]["value"]
            assert value == 0 or (math.isnan(value) and by[version]["n"] == 0), (task, version)
    assert report["psnr"]["full"] == report["psnr"]["protected"] == report["psnr"]["plain"]
    assert report["bpp"] == report["bpp_plain"]
    assert any(by["full"]["n"] > 0 for by in report["asr"].values())


def test_a_model_without_its_secret_is_refused_at_once(model: PSIC, plain: PSIC, target: Target):
    bare = build(lively=True)
    bare.secret = None
    with pytest.raises(ValueError, match="does not hold its secret"):
        evaluate(bare, plain, scenes(), target)


def test_json_knows_no_nan_and_keeps_words_that_contain_it(report: dict, tmp_path: Path):
    nothing = {"value": float("nan"), "ci95": (float("nan"), float("nan")), "n": 0}
    odd = report | {"checkpoint": "runs/NaNcy/Infinity.safetensors", "asr": {"i2t": {"full": nothing}}}
    path = tmp_path / "new" / "report.json"
    write_json(odd, path)
    found = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found["asr"]["i2t"]["full"] == {"value": None, "ci95": [None, None], "n": 0}
    assert found["checkpoint"] == "runs/NaNcy/Infinity.safetensors"
    assert found["psnr"] == pytest.approx(report["psnr"])


def test_pictures_of_any_size_are_evaluated(model: PSIC, plain: PSIC, target: Target, tmp_path: Path):
    for i in range(2):
        Image.new("RGB", (70, 50), (200, 100, 80 * i)).save(tmp_path / f"{i}.jpg")
    photos = eval_set("photos", tmp_path)
    report = evaluate(model, plain, photos, target)
    assert set(report["score"]) == {"classification"}
    assert report["score"]["classification"]["original"] == 1.0
