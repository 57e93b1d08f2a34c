"""lite-clip's training: cached features are what the towers say, and the heads learn from them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from psic_core.models.lite_clip import lite_clip_towers
from psic_core.models.vlp import Target
from psic_core.training import lite_clip_heads
from psic_core.training.lite_clip_heads import HeadConfig, Heads, TowerFeatures, tower_features, train_heads
from psic_core.training.pairs import Pairs

NAMES = ("cat", "dog", "espresso", "lemon", "volcano")


@pytest.fixture(scope="module")
def towers() -> Target:
    return lite_clip_towers()


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (3, 3, 160, 160), generator=rng, dtype=torch.uint8)
    return Pairs(pictures, [("A red box", "two words"), ("a blue box", "Two words "), ("a red box", "a third thing")])


# --- features of the towers -------------------------------------------------------------------------


def test_features_are_those_before_the_heads(towers: Target, pairs: Pairs):
    found = tower_features(towers, pairs, views=1)
    assert found.image.shape == (1, 3, 1280)
    assert found.text.shape == (3, 2, 384)
    with torch.no_grad():
        image = torch.nn.functional.normalize(towers.model.visual.head(found.image[0].float()), dim=1)
        text = torch.nn.functional.normalize(towers.model.text.proj(found.text[1, 0].float()), dim=0)
    assert torch.allclose(image, towers.encode_images(pairs.pictures), atol=1e-3)  # they are kept in float16
    assert torch.allclose(text, towers.encode_text(["a blue box"])[0], atol=1e-3)
    assert not found.image.requires_grad


def test_equal_captions_have_one_id(towers: Target, pairs: Pairs):
    ids = tower_features(towers, pairs, views=1).ids
    assert ids[0, 0] == ids[2, 0]
    assert ids[0, 1] == ids[1, 1]
    assert len(ids.unique()) == 4


def test_views_are_other_looks_at_the_same_pictures(towers: Target, pairs: Pairs):
    image = tower_features(towers, pairs, views=2).image
    assert torch.equal(image, tower_features(towers, pairs, views=2).image)  # always the same ones
    assert not torch.allclose(image[0], image[1], atol=1e-2)


def test_the_cache_is_read_and_gives_what_the_first_call_gave(
    towers: Target, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "new" / "towers.safetensors"
    first = tower_features(towers, pairs, 2, path)
    monkeypatch.setattr(lite_clip_heads, "_image_features", lambda *_: pytest.fail("the cache was not read"))
    again = tower_features(towers, pairs, 2, path)
    assert torch.equal(first.image, again.image)  # or a second run would train other heads than the first
    assert torch.equal(first.text, again.text)
    assert torch.equal(first.ids, again.ids)


def test_a_cache_of_other_pairs_is_not_taken_for_these(towers: Target, pairs: Pairs, tmp_path: Path):
    path = tmp_path / "towers.safetensors"
    tower_features(towers, pairs, 1, path)
    other = Pairs(pairs.pictures.flip(0), [("x", "y")] * 3)
    found = tower_features(towers, other, 1, path)
    assert torch.allclose(found.image, tower_features(towers, other, 1).image, atol=5e-3)
    assert found.ids.unique().tolist() == [0, 1]
    assert tower_features(towers, other, 2, path).image.shape[0] == 2


# --- the heads --------------------------------------------------------------------------------------


def synthetic(n: int, seed: int) -> TowerFeatures:
    """Pictures and captions of eight kinds, each kind a direction in either tower."""
    rng = torch.Generator().manual_seed(seed)
    kind = torch.arange(n) % 8
    directions = torch.Generator().manual_seed(99)
    image = torch.randn(8, 1280, generator=directions).clamp(min=0)[kind] + 0.1 * torch.rand(2, n, 1280, generator=rng)
    text = torch.randn(8, 384, generator=directions)[kind][:, None] + 0.1 * torch.randn(n, 2, 384, generator=rng)
    return TowerFeatures(image, text, 2 * kind[:, None] + torch.arange(2))


@pytest.fixture
def few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distil five class names instead of a thousand: a thousand texts take half a minute."""
    monkeypatch.setattr(lite_clip_heads, "IMAGENET_CLASSNAMES", NAMES)
    head = lite_clip_heads.lite_classifier()
    small = torch.nn.Linear(1280, 5)
    small.load_state_dict({"weight": head.weight[:5], "bias": head.bias[:5]})
    monkeypatch.setattr(lite_clip_heads, "lite_classifier", lambda _: small.requires_grad_(False))


@pytest.mark.slow
@pytest.mark.usefixtures("few_classes")
def test_the_heads_learn_and_go_into_the_target(towers: Target):
    features = [synthetic(64, 0), synthetic(32, 1)]
    config = HeadConfig(epochs=12, batch_size=16, learning_rate=3e-3)
    before = {k: v.clone() for k, v in towers.model.state_dict().items()}
    state, losses = train_heads(towers, features, config)
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]
    assert set(state) == {"visual.head.proj.weight", "text.proj.weight", "logit_scale"}
    after = towers.model.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == set(state)  # the towers are locked
    assert all(torch.equal(after[k], v) for k, v in state.items())
    unseen = synthetic(8, 5)
    image, text = unseen.image[0] @ state["visual.head.proj.weight"].T, unseen.text[:, 0] @ state["text.proj.weight"].T
    scores = torch.nn.functional.normalize(image, dim=1) @ torch.nn.functional.normalize(text, dim=1).T
    assert scores.argmax(1).tolist() == list(range(8))


@pytest.mark.usefixtures("few_classes")
def test_training_is_repeatable(towers: Target):
    config = HeadConfig(epochs=2, batch_size=16)
    one, losses = train_heads(towers, [synthetic(32, 0)], config)
    two, again = train_heads(towers, [synthetic(32, 0)], config)
    assert losses == again
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.usefixtures("few_classes")
def test_too_few_pairs_for_a_batch_are_refused(towers: Target):
    with pytest.raises(ValueError, match="32 pairs.*batch of 512"):
        train_heads(towers, [synthetic(32, 0)], HeadConfig())


@pytest.mark.slow
def test_every_model_has_its_own_cache_and_lite_clips_keeps_its_names(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    monkeypatch.setattr(lite_clip_heads, "tower_features", lambda t, p, v, path: seen.append((t.name, path.name)))
    monkeypatch.setattr(lite_clip_heads, "train_heads", lambda *_: ({}, []))
    for name in ("lite-clip", "lite2-clip"):
        lite_clip_heads.train_lite_clip([pairs], HeadConfig(), tmp_path, name)
    assert seen == [("lite-clip", "towers-0-3.safetensors"), ("lite2-clip", "towers2-0-3.safetensors")]


def unit(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_contrastive_loss_by_hand():
    heads = Heads(2, dropout=0.0)
    heads.embed = lambda features, head: features  # two dimensions, to be computed by hand
    with torch.no_grad():
        heads.logit_scale.fill_(0.0)
    a, b = unit((1, 0), (0, 1)), unit((1, 0), (0, 1))
    distinct = torch.eye(2, dtype=torch.bool)
    expected = torch.log(1 + torch.exp(torch.tensor(-1.0)))
    assert heads.contrastive(a, b, distinct).item() == pytest.approx(expected.item())
    # Equal captions are no negatives of each other: nothing is left to tell apart.
    assert heads.contrastive(a, b, torch.ones(2, 2, dtype=torch.bool)).item() == pytest.approx(0.0)


def test_distillation_is_least_where_both_agree():
    heads = Heads(2, dropout=0.0)
    heads.embed = lambda features, head: features
    image, classes = unit((1, 0), (0, 1)), unit((1, 0), (0, 1), (-1, 0))
    logits = heads.logit_scale.exp() * image @ classes.T
    own = heads.distillation(image, classes, logits.softmax(1).detach())
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    assert own.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert heads.distillation(image, classes, torch.full((2, 3), 1 / 3)) > own
