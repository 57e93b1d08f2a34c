"""Rivals with the codec: a purifier, a reader whose heads learn on, the codec itself without its triggers."""

import pytest
import torch
from models import SMALL, awaken, backbone, picture
from torch import Tensor
from torch.nn import functional

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.lab.rivals import Purifier, finetune_heads, finetune_reader, stripped, train_purifier
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.lite_clip import LITE_HEADS
from psic_core.models.vlp import Target, load_target
from psic_core.training.lite_clip_heads import TowerFeatures

SHIFT = torch.tensor([0.1, -0.08, 0.05])[:, None, None]


def mse(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())


# --- the codec itself -------------------------------------------------------------------------------


def test_the_full_version_comes_back_without_a_secret():
    x = pad_to(torch.cat([picture(64, 128, seed=i) for i in range(2)]), 64)
    model = awaken(PSIC.wrap(backbone("bmshj2018-hyperprior"), keys.secret("owner"), **SMALL)).eval()
    with torch.no_grad():
        last, x_hat = model.g_s.stages[-1][-1], model.synthesize(model.quantised_latents(x))
        last.weight.mul_(0.15 / x_hat.std())  # pictures that are neither black nor white
        last.bias.copy_((last.bias - x_hat.mean()) * 0.15 / x_hat.std() + 0.5)
        y_hat = model.quantised_latents(x)
        protected = round_to_8_bits(model.synthesize(y_hat)[..., :60, :101])
    model.secret = None
    found = stripped(model, protected, batch=1)
    assert found.shape == protected.shape
    assert torch.equal(round_to_8_bits(found), found)
    with torch.no_grad():
        again = model.quantised_latents(pad_to(protected, model.factor))
    assert torch.equal(found, round_to_8_bits(model.g_s.plain(again)[..., :60, :101]))


# --- a purifier -------------------------------------------------------------------------------------


def pictures(n: int, side: int = 32, first: int = 0) -> Tensor:
    """Smooth ones, with room for a shift."""
    return torch.cat([0.2 + 0.6 * picture(side, side, seed=first + i) for i in range(n)])


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (1, 2)])
def test_a_fresh_purifier_is_the_identity_at_any_size(size: tuple[int, int]):
    x = torch.rand(2, 3, *size)
    assert torch.equal(Purifier(width=8, depth=3)(x), x)


@pytest.mark.slow
def test_a_shift_is_brought_back_in_pictures_that_were_not_seen():
    full, unseen = pictures(12), pictures(4, side=40, first=100)
    trained = train_purifier(full + SHIFT, full, steps=120, batch=4, crop=16)
    assert mse(trained(unseen + SHIFT), unseen) < 0.05 * mse(unseen + SHIFT, unseen)
    assert trained(unseen + 10).max() <= 1  # what is purified is a picture
    assert not any(p.requires_grad for p in trained.parameters())


def test_the_seed_decides_and_the_global_generator_neither_decides_nor_moves():
    full, losses = pictures(6), []
    for start, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(start)
        before = torch.random.get_rng_state()
        seen = []
        train_purifier(full + SHIFT, full, 3, 2, 16, seed, progress=lambda step, loss, seen=seen: seen.append(loss))
        assert torch.equal(before, torch.random.get_rng_state())
        losses.append(seen)
    assert len(losses[0]) == 3
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("n", "of", "options", "message"),
    [
        (4, 4, {"batch": 5}, "4 pairs.*batch of 5"),
        (8, 8, {"crop": 33}, r"crop 33 exceeds.*\(32, 32\)"),
        (3, 4, {}, r"protected \(3, .*full \(4, "),
    ],
)
def test_pairs_that_do_not_do_are_refused(n: int, of: int, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        train_purifier(pictures(n), pictures(of), **{"steps": 1, "crop": 16} | options)


# --- a reader that learns ---------------------------------------------------------------------------


def features(target: Target, n: int = 48, shift: float = 0.0) -> TowerFeatures:
    """Pictures whose features the shipped heads match with their own captions, then moved to the next one's."""
    rng = torch.Generator().manual_seed(0)
    text = torch.randn(n, 1, 384, generator=rng)
    head = target.model.visual.head.proj
    with torch.no_grad():
        wanted = functional.normalize(target.model.text.proj(text[:, 0]), dim=1)
        image = (wanted - head.bias) @ torch.linalg.pinv(head.weight).T
    moved = (1 - shift) * image + shift * image.roll(1, 0)
    noise = 0.1 * image.std() * torch.randn(2, *image.shape, generator=rng)
    return TowerFeatures(moved + noise, text, torch.arange(n)[:, None])


def recall(target: Target, found: TowerFeatures) -> float:
    with torch.no_grad():
        image = functional.normalize(target.model.visual.head(found.image[0]), dim=1)
        text = functional.normalize(target.model.text.proj(found.text[:, 0]), dim=1)
    return float(((image @ text.T).argmax(1) == torch.arange(len(text))).float().mean())


@pytest.mark.slow
def test_adapted_heads_read_what_was_shifted_and_the_original_stays(lite_clip: Target):
    before = {k: v.clone() for k, v in lite_clip.model.state_dict().items()}
    assert recall(lite_clip, features(lite_clip)) == 1
    shifted = features(lite_clip, shift=0.8)
    assert recall(lite_clip, shifted) < 0.2
    result = finetune_heads(lite_clip, shifted, steps=60, rate=3e-3)
    assert recall(result, shifted) > 0.9
    after = lite_clip.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert {k for k, v in result.model.state_dict().items() if not torch.equal(v, before[k])} == set(LITE_HEADS)
    assert result.name != lite_clip.name
    assert not any(p.requires_grad for p in result.parameters())


def test_learning_starts_from_the_shipped_heads_and_the_seed_decides(lite_clip: Target):
    found = features(lite_clip)
    own = lite_clip.model.visual.head.proj.weight
    one, two, three = (
        finetune_heads(lite_clip, found, 1, seed, batch=16).model.visual.head.proj.weight for seed in (0, 0, 1)
    )
    assert 0 < float((one - own).abs().max()) < 1e-3  # Adam's first step is its rate
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


@pytest.mark.slow
def test_pictures_and_captions_go_through_the_towers(lite_clip: Target):
    own = round_to_8_bits(torch.cat([picture(160, 160, seed=i) for i in range(4)]))
    captions = [("a red box", "two words"), ("a blue box", "a lake"), ("a dog", "an animal"), ("a hat", "a cap")]
    result = finetune_reader(lite_clip, own, captions, steps=60)

    def scores(model: Target) -> Tensor:
        return model.encode_images(own) @ model.encode_text([c[0] for c in captions]).T

    assert scores(lite_clip).argmax(1).tolist() != [0, 1, 2, 3]
    assert scores(result).argmax(1).tolist() == [0, 1, 2, 3]


def test_what_cannot_learn_is_refused(lite_clip: Target):
    with pytest.raises(ValueError, match="'tiny'.*lite-clip"):
        finetune_reader(load_target("tiny"), torch.zeros(1, 3, 8, 8), [("a",)])
    with pytest.raises(ValueError, match="steps 0"):
        finetune_heads(lite_clip, features(lite_clip, 2), 0)
