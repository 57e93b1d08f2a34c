"""Rivals with the codec: a purifier, a reader whose heads learn on, the codec itself without its triggers."""

import pytest
import torch
from limits import Purifier, train_purifier
from models import SMALL, awaken, backbone, picture
from torch import Tensor

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.lab.rivals import finetune_reader, stripped
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.lite_clip import LITE_HEADS
from psic_core.models.vlp import Target, load_target

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
    found = stripped(model, protected)
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
    assert torch.equal(Purifier()(x), x)


@pytest.mark.slow
def test_a_shift_is_brought_back_in_pictures_that_were_not_seen():
    full, unseen = pictures(12), pictures(4, side=40, first=100)
    trained = train_purifier(full + SHIFT, full, steps=120)
    assert mse(trained(unseen + SHIFT), unseen) < 0.05 * mse(unseen + SHIFT, unseen)
    assert trained(unseen + 10).max() <= 1  # what is purified is a picture
    assert not any(p.requires_grad for p in trained.parameters())


def test_the_global_generator_neither_decides_nor_moves():
    full, found = pictures(6), []
    for start in (1, 2):
        torch.manual_seed(start)
        before = torch.random.get_rng_state()
        found.append(train_purifier(full + SHIFT, full, 3)(full))
        assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(*found)


# --- a reader that learns ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reader_learns_and_the_original_stays(lite_clip: Target):
    own = round_to_8_bits(torch.cat([picture(160, 160, seed=i) for i in range(4)]))
    captions = [("a red box", "two words"), ("a blue box", "a lake"), ("a dog", "an animal"), ("a hat", "a cap")]
    before = {k: v.clone() for k, v in lite_clip.model.state_dict().items()}
    result, again = (finetune_reader(lite_clip, own, captions, steps=150) for _ in range(2))

    def scores(model: Target) -> Tensor:
        return model.encode_images(own) @ model.encode_text([c[0] for c in captions]).T

    assert scores(lite_clip).argmax(1).tolist() != [0, 1, 2, 3]
    assert scores(result).argmax(1).tolist() == [0, 1, 2, 3]
    assert torch.equal(scores(result), scores(again))
    after = lite_clip.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert {k for k, v in result.model.state_dict().items() if not torch.equal(v, before[k])} == set(LITE_HEADS)
    assert result.name != lite_clip.name
    assert not any(p.requires_grad for p in result.parameters())


def test_what_cannot_learn_is_refused():
    with pytest.raises(ValueError, match="'tiny'.*lite-clip"):
        finetune_reader(load_target("tiny"), torch.zeros(1, 3, 8, 8), [("a",)])
