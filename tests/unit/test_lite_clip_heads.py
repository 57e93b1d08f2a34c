"""lite-clip's training: cached features are what the towers say, and the heads learn from them."""

import make_lite_clip
import pytest
import torch
from make_lite_clip import (
    HeadConfig,
    TowerFeatures,
    tower_features,
    train_heads,
)
from torch import Tensor
from torch.nn import functional

from psic_core.models.lite_clip import LITE_HEADS, contrastive, lite_clip_towers
from psic_core.models.vlp import Target
from psic_core.training.pairs import Pairs


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
    assert found.image.shape == (1, 3, towers.model.visual.trunk.num_features)
    assert found.text.shape == (3, 2, 384)
    with torch.no_grad():
        image = functional.normalize(towers.model.visual.head(found.image[0].float()), dim=1)
        text = functional.normalize(towers.model.text.proj(found.text[1, 0].float()), dim=0)
    assert torch.allclose(image, towers.encode_images(pairs.pictures), atol=1e-3)  # they are kept in float16
    assert torch.allclose(text, towers.encode_text(["a blue box"])[0], atol=1e-3)
    assert not found.image.requires_grad
    assert found.ids[0, 0] == found.ids[2, 0]
    assert found.ids[0, 1] == found.ids[1, 1]
    assert len(found.ids.unique()) == 4


# --- the heads --------------------------------------------------------------------------------------

NAMES = ("cat", "dog", "espresso", "lemon", "volcano")


@pytest.fixture
def few_classes(towers: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five class names instead of a thousand, whose texts would take a minute."""
    monkeypatch.setattr(make_lite_clip, "IMAGENET_CLASSNAMES", NAMES)
    monkeypatch.setattr(make_lite_clip, "CLASS_PROMPTS", [lambda name: f"a photo of a {name}"])
    head, small = towers.model.visual.trunk.classifier, torch.nn.Linear(1280, 5).requires_grad_(False)
    small.load_state_dict({"weight": head.weight[:5], "bias": head.bias[:5]})
    monkeypatch.setitem(towers.model.visual.trunk._modules, "classifier", small)
    monkeypatch.setitem(towers.model.visual.head._modules, "proj", torch.nn.Linear(1305, 384))


def synthetic(n: int, seed: int) -> TowerFeatures:
    """Pictures and captions of eight kinds, each kind a direction in either tower."""
    rng, directions = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    kind = torch.arange(n) % 8
    image = torch.randn(8, 1300, generator=directions).clamp(min=0)[kind] + 0.1 * torch.rand(2, n, 1300, generator=rng)
    opinion = torch.rand(2, n, 5, generator=rng).softmax(-1).sqrt()
    text = torch.randn(8, 384, generator=directions)[kind][:, None] + 0.1 * torch.randn(n, 2, 384, generator=rng)
    return TowerFeatures(torch.cat([image, opinion], -1), text, 2 * kind[:, None] + torch.arange(2))


@pytest.mark.usefixtures("few_classes")
def test_the_heads_learn_and_go_into_the_target(towers: Target):
    features = [synthetic(64, 0), synthetic(32, 1)]
    config = HeadConfig(epochs=12, batch_size=16, learning_rate=3e-3, imagined=8, uncaptioned=8, dropout=0.1)
    before = {k: v.clone() for k, v in towers.model.state_dict().items()}
    losses = train_heads(towers, features, synthetic(16, 2).image[0], config)
    assert losses[-1] < 0.7 * losses[0]
    after = towers.model.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == set(LITE_HEADS)  # the towers are locked
    unseen = synthetic(8, 5)
    image = functional.normalize(towers.model.visual.head(unseen.image[0]), dim=1)
    text = functional.normalize(towers.model.text.proj(unseen.text[:, 0]), dim=1)
    assert (image @ text.T).argmax(1).tolist() == list(range(8))
    again = train_heads(towers, features, synthetic(16, 2).image[0], config)
    assert losses == again


@pytest.mark.usefixtures("few_classes")
def test_too_few_pairs_for_a_batch_are_refused(towers: Target):
    with pytest.raises(ValueError, match="32 pairs.*batch of 512"):
        train_heads(towers, [synthetic(32, 0)])


def unit(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_contrastive_loss_by_hand():
    a, b, scale = unit((1, 0), (0, 1)), unit((1, 0), (0, 1)), torch.tensor(0.0)
    expected = torch.log(1 + torch.exp(torch.tensor(-1.0)))
    assert contrastive(a, b, torch.eye(2, dtype=torch.bool), scale).item() == pytest.approx(expected.item())
    # Equal captions are no negatives of each other: nothing is left to tell apart.
    assert contrastive(a, b, torch.ones(2, 2, dtype=torch.bool), scale).item() == pytest.approx(0.0)
