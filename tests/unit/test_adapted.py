"""Heads fine-tuned on protected pictures: better there than the shipped ones, which stay as they are."""

import pytest
import torch
from models import picture
from torch import Tensor
from torch.nn import functional

from psic_core.lab import rivals
from psic_core.lab.rivals import finetune_heads, finetune_reader
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import Target, load_target
from psic_core.training.lite_clip_heads import TowerFeatures

HEADS = {"visual.head.proj.weight", "text.proj.weight", "logit_scale"}


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("lite-clip")


def features(target: Target, n: int = 48, shift: float = 0.0, seed: int = 0) -> TowerFeatures:
    """Pictures whose features the shipped heads match with their own captions, then moved to the next one's."""
    rng = torch.Generator().manual_seed(seed)
    text = torch.randn(n, 1, 384, generator=rng)
    wanted = functional.normalize(text[:, 0] @ target.model.text.proj.weight.T, dim=1)
    image = wanted @ torch.linalg.pinv(target.model.visual.head.proj.weight).T
    moved = (1 - shift) * image + shift * image.roll(1, 0)
    noise = 0.1 * image.std() * torch.randn(2, n, 1280, generator=rng)
    return TowerFeatures(moved + noise, text, torch.arange(n)[:, None])


def recall(target: Target, found: TowerFeatures) -> float:
    with torch.no_grad():
        image = functional.normalize(target.model.visual.head(found.image[0]), dim=1)
        text = functional.normalize(target.model.text.proj(found.text[:, 0]), dim=1)
    return float(((image @ text.T).argmax(1) == torch.arange(len(text))).float().mean())


def test_adapted_heads_read_what_was_shifted_and_the_original_stays(target: Target):
    before = {k: v.clone() for k, v in target.model.state_dict().items()}
    assert recall(target, features(target)) == 1
    shifted = features(target, shift=0.8)
    assert recall(target, shifted) < 0.2
    result = finetune_heads(target, shifted, steps=60)
    assert recall(result, shifted) > 0.9
    after = target.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert {k for k, v in result.model.state_dict().items() if not torch.equal(v, before[k])} == HEADS
    assert result.name != target.name
    assert not any(p.requires_grad for p in result.parameters())


def test_learning_starts_from_the_shipped_heads(target: Target):
    result = finetune_heads(target, features(target), steps=1)
    own, new = (t.model.visual.head.proj.weight for t in (target, result))
    assert 0 < float((new - own).abs().max()) < 1e-3  # Adam's first step is its rate


def test_the_seed_decides(target: Target):
    found = features(target)
    one, two, three = (finetune_heads(target, found, 3, seed, batch=16).model.text.proj.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_equal_captions_are_no_negatives(target: Target):
    """With all captions equal there is nothing to tell apart: the heads stay, but for weight decay."""
    found = features(target)._replace(ids=torch.zeros(48, 1, dtype=torch.long))
    moved = finetune_heads(target, found, 5).model.text.proj.weight - target.model.text.proj.weight
    assert moved.abs().max() < 1e-4


def test_pictures_and_captions_go_through_the_towers(target: Target):
    pictures = round_to_8_bits(torch.cat([picture(160, 160, seed=i) for i in range(4)]))
    captions = [("a red box", "two words"), ("a blue box", "a lake"), ("a dog", "an animal"), ("a hat", "a cap")]
    result = finetune_reader(target, pictures, captions, steps=60)

    def scores(model: Target) -> Tensor:
        return model.encode_images(pictures) @ model.encode_text([c[0] for c in captions]).T

    assert scores(target).argmax(1).tolist() != [0, 1, 2, 3]
    assert scores(result).argmax(1).tolist() == [0, 1, 2, 3]
    assert result.encode_text(["a dog"]).shape == (1, 256)


def test_eight_bit_levels_reach_the_towers_as_they_are(target: Target, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(
        rivals, "tower_features", lambda _, pairs, views: seen.append((pairs, views)) or features(target)
    )
    levels = torch.arange(256).repeat(3, 3, 1)[None].to(torch.uint8)
    finetune_reader(target, levels.float() / 255, [("a ramp",)], steps=1)
    ((pairs, views),) = seen
    assert torch.equal(pairs.pictures, levels)
    assert (pairs.captions, views) == ([("a ramp",)], 1)


def test_what_has_no_two_heads_is_refused():
    with pytest.raises(ValueError, match="'tiny'.*lite-clip"):
        finetune_reader(load_target("tiny"), torch.zeros(1, 3, 8, 8), [("a",)])


def test_no_step_is_refused(target: Target):
    with pytest.raises(ValueError, match="steps 0"):
        finetune_heads(target, features(target, 2), 0)
