"""Targets: pictures in [0, 1] go in, unit features and gradients come out, nothing of the target changes."""

from pathlib import Path

import open_clip
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors.torch import load_file, save_file
from skimage import data
from torch import Tensor
from torchvision.transforms import Compose

from psic_core.models import vlp
from psic_core.models.images import to_pil
from psic_core.models.lite_clip import LITE_HEADS, LITE_SIZE, fold_batch_norms, lite_clip_towers, load_lite_clip
from psic_core.models.vlp import Target, load_target


@pytest.fixture(scope="module")
def towers() -> Target:
    return lite_clip_towers()


@pytest.fixture(scope="module")
def towers2() -> Target:
    return lite_clip_towers("lite2-clip")


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def photo(name: str) -> Tensor:
    return torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255


# --- pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 16), (33, 97), (200, 40), (1, 1), (3, 50)])
def test_any_size_gives_unit_features(size: tuple[int, int], target: Target):
    features = target.encode_image(noise(2, 3, *size))
    assert features.shape == (2, 16)
    assert torch.allclose(features.norm(dim=1), torch.ones(2))


def test_normalisation_is_inside(target: Target):
    x = noise(1, 3, 32, 32)
    mean = torch.tensor(open_clip.constants.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.constants.OPENAI_DATASET_STD)[:, None, None]
    assert torch.allclose(target.preprocess(x), (x - mean) / std, atol=1e-6)
    direct = target.model.encode_image((x - mean) / std)
    assert torch.allclose(target.encode_image(x), direct / direct.norm(dim=1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (48, 100), (20, 26)])
def test_preprocessing_is_open_clips_own(size: tuple[int, int], target: Target):
    """Pillow works on 8 bits, hence the tolerance: a level is 1/255, divided by a deviation of 0.27."""
    smooth = torch.nn.functional.interpolate(noise(1, 3, 5, 5), size=size, mode="bicubic").clamp(0, 1)
    own: Compose = open_clip.transform.image_transform(32, is_train=False, resize_mode="shortest")
    own.transforms[-1] = torch.nn.Identity()  # its normalisation is tested above
    levels = target.preprocess(smooth) * target.std + target.mean
    assert (levels[0] - own(to_pil(smooth))).abs().max() < 3 / 255


def test_gradients_reach_every_part_of_the_picture(target: Target):
    x = (0.1 + 0.8 * noise(1, 3, 50, 50)).requires_grad_()
    target.encode_image(x)[0, 0].backward()
    assert x.grad.isfinite().all()
    assert (x.grad.abs().sum(1) > 0).float().mean() > 0.95


def test_nothing_of_a_target_learns_or_changes_its_mode(target: Target):
    assert not any(p.requires_grad for p in target.parameters())
    torch.nn.ModuleList([target]).train()
    assert not any(module.training for module in target.modules())
    assert not target.train().training


def test_many_pictures_in_bytes_or_floats_give_the_same(target: Target):
    pictures = (noise(33, 3, 40, 40) * 255).to(torch.uint8)
    found = target.encode_images(pictures)
    assert torch.allclose(found, target.encode_image(pictures.float() / 255), atol=1e-6)
    assert torch.allclose(found, target.encode_images(pictures.float() / 255), atol=1e-6)
    assert not found.requires_grad


# --- texts ------------------------------------------------------------------------------------------


def test_texts_give_unit_features_whatever_the_batch(target: Target):
    texts = [f"number {i} of a few" for i in range(7)]
    features = target.encode_text(texts, batch_size=3)
    assert features.shape == (7, 16)
    assert torch.allclose(features.norm(dim=1), torch.ones(7))
    assert torch.allclose(features[5:6], target.encode_text(texts[5:6]), atol=1e-6)
    assert not features.requires_grad


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("texts", ["a cat", []])
def test_texts_come_as_a_list(texts: object, target: Target):
    with pytest.raises(ValueError, match="list of at least one text"):
        target.encode_text(texts)


# --- lite-clip --------------------------------------------------------------------------------------

CATS = {"tabby cat", "tiger cat", "Egyptian Mau", "Persian cat", "Siamese cat"}
CUPS = {"espresso", "cup", "coffee mug"}


@pytest.mark.parametrize(("name", "wanted"), [("chelsea", CATS), ("coffee", CUPS)])
@torch.no_grad()
def test_the_image_towers_are_imagenets_and_different(name: str, wanted: set[str], towers: Target, towers2: Target):
    pooled = []
    for target in (towers, towers2):
        tower = target.model.visual.trunk
        features = tower(target.preprocess(photo(name)))
        assert features.shape == (1, tower.num_features)
        local, opinion = features[:, 1280:2280], features[:, -1000:]
        assert torch.allclose(opinion.norm(dim=1), torch.ones(1), atol=1e-5)  # roots of probabilities
        assert IMAGENET_CLASSNAMES[int(opinion.argmax())] in wanted
        assert opinion.max() ** 2 > 0.2
        assert IMAGENET_CLASSNAMES[int(local.argmax())] in wanted
        pooled.append(features[:, :1280])
    assert torch.cosine_similarity(*pooled).abs() < 0.5
    assert (towers2.name, towers2.size) == ("lite2-clip", LITE_SIZE)


def test_the_statistics_of_a_flat_picture_have_finite_gradients(towers: Target):
    x = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    towers.model.visual.trunk(towers.preprocess(x)).sum().backward()
    assert x.grad.isfinite().all()


def test_padding_does_not_change_a_text(towers: Target):
    short = "a cat"
    alone = towers.encode_text([short])
    padded = towers.encode_text([short, "a long caption that has many more words than the first one has"])
    assert torch.allclose(alone[0], padded[0], atol=1e-5)
    whole = towers.model.encode_text(towers.tokenizer([short]))  # all 64 places
    assert torch.allclose(alone[0], whole[0] / whole[0].norm(), atol=1e-5)


def heads(towers: Target) -> dict[str, Tensor]:
    state = towers.model.state_dict()
    return {name: torch.full_like(state[name], 0.5) for name in LITE_HEADS}


def test_heads_are_loaded_from_a_file(towers: Target, tmp_path: Path):
    path = tmp_path / "heads.safetensors"
    save_file({name: tensor.half() for name, tensor in heads(towers).items()}, path)
    target = load_lite_clip("lite-clip", path)
    assert target.name == "lite-clip"
    assert all((target.model.state_dict()[name] == 0.5).all() for name in LITE_HEADS)
    assert target.model.visual.head.proj.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"visual.head.proj.weight": None}, "visual.head.proj.weight"),
        ({"backdoor": torch.zeros(1)}, "backdoor"),
        ({"text.proj.weight": torch.zeros(2, 2)}, "text.proj.weight"),
    ],
)
def test_heads_that_do_not_fit_are_refused(change: dict, says: str, towers: Target, tmp_path: Path):
    path = tmp_path / "heads.safetensors"
    save_file({k: v for k, v in (heads(towers) | change).items() if v is not None}, path)
    with pytest.raises(ValueError, match=says):
        load_lite_clip("lite-clip", path)


def test_absent_heads_say_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vlp, "data_dir", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="lite-clip.safetensors.*make_lite_clip"):
        load_target("lite-clip")
    with pytest.raises(FileNotFoundError, match="no lite2-clip heads.*make_lite_clip"):
        load_target("lite2-clip")


# --- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "nonsense", "nonsense/openai", "ViT-B-32", "ViT-B-32/", "/openai", "lite9-clip"])
def test_an_unknown_name_says_which_there_are(name: str):
    with pytest.raises(ValueError, match="unknown target '.*lite-clip, lite1-clip, lite2-clip, tiny"):
        load_target(name)


def test_unknown_weights_of_a_known_architecture_are_refused():
    with pytest.raises(ValueError, match="ViT-B-32/nonsense"):
        load_target("ViT-B-32/nonsense")


@pytest.mark.parametrize("failure", [LocalEntryNotFoundError("not in the local cache"), OSError("no route to host")])
def test_without_a_network_the_papers_target_says_so(failure: Exception, monkeypatch: pytest.MonkeyPatch):
    """What the libraries raise offline, raised where they would go to the network."""

    def offline(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    with pytest.raises(FileNotFoundError, match="weights of ViT-B-32/openai are neither cached nor reachable"):
        load_target("ViT-B-32/openai")


@pytest.mark.parametrize("quick", [True, False])
def test_any_open_clip_model_is_wrapped_as_its_weights_were_trained(
    quick: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Size, normalisation and activation come with the weights; CLIP's own were trained with QuickGELU."""
    vision = {"image_size": 40, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Test-40", config)
    tag = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "quick_gelu": quick, "url": "http://localhost/none"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Test-40", {"mine": tag})
    weights = tmp_path / "weights.safetensors"
    save_file(open_clip.create_model("Test-40").state_dict(), weights)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(weights))
    target = load_target("Test-40/mine")
    assert (target.size, target.name) == (40, "Test-40/mine")
    assert torch.allclose(target.mean.flatten(), torch.tensor(tag["mean"]))
    assert torch.allclose(target.std.flatten(), torch.tensor(tag["std"]))
    activation = target.model.visual.transformer.resblocks[0].mlp.gelu
    assert isinstance(activation, open_clip.transformer.QuickGELU) == quick
    assert not any(p.requires_grad for p in target.parameters())
    assert target.encode_text(["a cat"]).shape == target.encode_image(noise(1, 3, 50, 60)).shape == (1, 16)


@pytest.mark.skipif(
    not (vlp.data_dir() / "checkpoints" / "lite-clip.safetensors").is_file(), reason="no lite-clip heads yet"
)
def test_the_shipped_heads_know_a_cat_from_a_cup_of_coffee():
    target = load_target()
    assert set(load_file(vlp.data_dir() / "checkpoints" / "lite-clip.safetensors")) == set(LITE_HEADS)
    texts = target.encode_text(["a photo of a cat", "a cup of coffee", "a photo of a dog", "a red car"])
    for index, name in enumerate(("chelsea", "coffee")):
        with torch.no_grad():
            scores = target.encode_image(photo(name)) @ texts.T
        assert int(scores.argmax()) == index, name


@torch.no_grad()
@pytest.mark.parametrize("network", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_folded_batch_norms_change_nothing(network: str):
    torch.manual_seed(0)
    trunk = timm.create_model(network).eval()
    for norm in (m for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 64, 64)
    before = trunk(x)
    fold_batch_norms(trunk)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in trunk.modules())
    assert torch.allclose(trunk(x), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


# --- ensembles --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ensemble() -> vlp.Ensemble:
    members = [load_target("tiny"), load_target("tiny")]
    with torch.no_grad():
        for p in members[1].model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return vlp.Ensemble(members)


def test_an_ensembles_cosine_is_the_mean_of_its_members(ensemble: vlp.Ensemble):
    x, texts = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(2)), ["a cat", "a cup of coffee"]
    image, text = ensemble.encode_image(x), ensemble.encode_text(texts)
    assert torch.allclose(image.norm(dim=1), torch.ones(3), atol=1e-5)
    own = [m.encode_image(x) @ m.encode_text(texts).T for m in ensemble.members]
    assert not torch.allclose(*own, atol=1e-3)
    assert torch.allclose(image @ text.T, (own[0] + own[1]) / 2, atol=1e-5)
    believed = [m.probabilities(m.encode_image(x), m.encode_text(texts)) for m in ensemble.members]
    assert torch.allclose(ensemble.probabilities(image, text), torch.stack(believed).mean(0), atol=1e-5)


def test_a_plus_joins_targets_by_name():
    joined = load_target("tiny+tiny")
    assert isinstance(joined, vlp.Ensemble)
    assert joined.name == "tiny+tiny"
    with pytest.raises(ValueError, match="unknown target 'nobody'"):
        load_target("tiny+nobody")
