"""Pairs: what a target makes of pictures and captions, computed once and cached by content."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from psic_core.models.vlp import Target, load_target
from psic_core.training.pairs import PROMPTS, Pairs

CAPTIONS = [("A cat", "one"), ("a dog", "two"), (" a CAT ", "three"), ("a bird", "Two")]


def pictures(n: int = 4, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, 64, 64), generator=rng, dtype=torch.uint8)


def pairs(seed: int = 0) -> Pairs:
    return Pairs(pictures(seed=seed), CAPTIONS)


def test_features_are_those_of_the_target_in_the_order_of_the_pairs(target: Target):
    found = pairs().with_features(target)
    assert torch.allclose(found.image_features[2], target.encode_image(pictures()[2:3] / 255)[0], atol=1e-6)
    assert found.text_features.shape == (4, 2, 16)
    assert torch.allclose(found.text_features[3, 1], target.encode_text(["Two"])[0], atol=1e-6)
    assert torch.allclose(found.image_features.norm(dim=1), torch.ones(4))
    assert torch.allclose(found.text_features.norm(dim=2), torch.ones(4, 2))


def test_captions_equal_but_for_case_and_outer_space_have_one_id(target: Target):
    ids = pairs().with_features(target).caption_ids
    assert ids[0, 0] == ids[2, 0]
    assert ids[1, 1] == ids[3, 1]
    assert len(ids.unique()) == 6


# --- the cache --------------------------------------------------------------------------------------


def test_the_cache_gives_what_was_computed_and_asks_no_target(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = pairs().with_features(target, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(Target, "encode_images", lambda *_: pytest.fail("the cache was not read"))
    again = pairs().with_features(target, tmp_path / "cache")
    assert torch.equal(again.image_features, first.image_features)
    assert torch.equal(again.text_features, first.text_features)
    assert torch.equal(again.caption_ids, first.caption_ids)


def test_other_pictures_captions_or_targets_are_cached_apart(target: Target, tmp_path: Path):
    pairs().with_features(target, tmp_path)
    pairs(seed=1).with_features(target, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    Pairs(pictures(), [("a", "b")] * 4).with_features(target, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    other = load_target("tiny")
    with torch.no_grad():
        other.model.text_projection.add_(1)
    found = pairs().with_features(other, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert not torch.equal(found.text_features, pairs().with_features(target, tmp_path).text_features)


# --- joining and errors -----------------------------------------------------------------------------


def test_joined_pairs_stand_one_after_the_other(target: Target):
    both = pairs().with_features(target) + pairs(seed=1)
    assert len(both) == 8
    assert torch.equal(both.pictures[4:], pictures(seed=1))
    assert list(both.captions) == CAPTIONS + CAPTIONS
    assert both.image_features is None  # of the first half only: dropped


@pytest.mark.parametrize(("n", "kept"), [(4, [0, 1, 2, 3]), (9, [0, 1, 2, 3]), (3, [0, 2, 3]), (2, [0, 3]), (1, [0])])
def test_thinned_pairs_are_no_more_than_asked_for(n: int, kept: list[int], target: Target):
    found = pairs().with_features(target).thin(n)
    whole = pairs().with_features(target)
    assert list(found.captions) == [CAPTIONS[i] for i in kept]
    assert torch.equal(found.pictures, whole.pictures[kept])
    assert torch.equal(found.image_features, whole.image_features[kept])
    assert torch.equal(found.text_features, whole.text_features[kept])
    assert torch.equal(found.caption_ids, whole.caption_ids[kept])
    assert pairs().thin(n).image_features is None


def test_every_picture_needs_its_captions():
    with pytest.raises(ValueError, match="4 pictures but 3"):
        Pairs(pictures(), CAPTIONS[:3])


def test_pictures_of_two_sizes_cannot_be_joined():
    small = Pairs(pictures(1)[..., :32, :32], [()])
    with pytest.raises(ValueError, match=r"64.*32"):
        Pairs(pictures(1), [()]) + small


def test_a_picture_without_captions_gets_the_label_that_is_read_in_it(target: Target, tmp_path: Path):
    silent = pairs().captions[0], (), pairs().captions[2], ()
    read = Pairs(pictures(), silent).with_features(target, tmp_path)
    assert read.captions[0] == silent[0]
    label = read.captions[1]
    assert len(label) == 2
    assert set(label) < set(PROMPTS)
    fits = read.image_features[1] @ target.encode_text(list(PROMPTS)).T
    assert PROMPTS[int(fits.argmax())] == label[0]
    assert torch.allclose(read.text_features[1], target.encode_text(list(label)), atol=1e-6)
    assert read.caption_ids[1].unique().numel() == 1
    again = Pairs(pictures(), silent).with_features(target, tmp_path)
    assert again.captions == read.captions
    assert all(set(row) < set(PROMPTS) for row in Pairs(pictures(), [()] * 4).with_features(target).captions)
