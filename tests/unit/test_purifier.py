"""The purifier: nothing at first, then the way back from a shift it has learned, in pixels or in meaning."""

import pytest
import torch
from models import picture
from torch import Tensor

from psic_core.lab.rivals import Purifier, train_purifier
from psic_core.models.vlp import load_target

SHIFT = torch.tensor([0.1, -0.08, 0.05])[:, None, None]


def pictures(n: int, side: int = 32, first: int = 0) -> Tensor:
    """Smooth ones, with room for a shift."""
    return torch.cat([0.2 + 0.6 * picture(side, side, seed=first + i) for i in range(n)])


def mse(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (1, 2)])
def test_a_fresh_purifier_is_the_identity_at_any_size(size: tuple[int, int]):
    x = torch.rand(2, 3, *size)
    assert torch.equal(Purifier(width=8, depth=3)(x), x)


def test_what_is_purified_is_a_picture():
    purifier = Purifier(width=8, depth=3)
    torch.nn.init.constant_(purifier.layers[-1].bias, 0.7)
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(purifier(x), (x + 0.7).clamp(max=1))
    assert purifier.cleaned(x).max() > 1


@pytest.fixture(scope="module")
def trained() -> Purifier:
    full = pictures(12)
    return train_purifier(full + SHIFT, full, steps=120, batch=4, crop=16)


def test_a_shift_is_brought_back_in_pictures_that_were_not_seen(trained: Purifier):
    unseen = pictures(4, side=40, first=100)
    with torch.no_grad():
        assert mse(trained(unseen + SHIFT), unseen) < 0.05 * mse(unseen + SHIFT, unseen)
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


def test_with_a_target_the_reading_is_restored_before_the_pixels():
    """Noise cannot be undone: what is left of the picture can look right, or read right."""
    target, full = load_target("tiny"), pictures(6)
    protected = (full + 0.3 * torch.randn(full.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)

    def distance(x: Tensor) -> float:
        with torch.no_grad():
            return float((1 - (target.encode_image(x) * target.encode_image(full)).sum(1)).mean())

    options = {"steps": 40, "batch": 4, "crop": 32}
    pixels = train_purifier(protected, full, **options)(protected)
    read = train_purifier(protected, full, **options, target=target, weight=6e5)(protected)
    assert distance(read) < 0.7 * distance(pixels) < distance(protected)
    assert mse(read, full) > mse(pixels, full)


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [(4, {"batch": 5}, "4 pairs.*batch of 5"), (8, {"crop": 33}, r"crop 33 exceeds.*\(32, 32\)")],
)
def test_pairs_that_do_not_do_are_refused(n: int, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        train_purifier(pictures(n), pictures(n), **{"steps": 1, "crop": 16} | options)


@pytest.mark.usefixtures("unchecked_shapes")
def test_versions_of_different_files_are_refused():
    with pytest.raises(ValueError, match=r"protected \(3, .*full \(4, "):
        train_purifier(pictures(3), pictures(4))
