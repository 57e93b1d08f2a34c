"""Large pictures in windows: the same file and the same picture as computed whole."""

import copy

import pytest
import torch
from compressai.layers import GDN, AttentionBlock
from models import OWNER, awaken, fresh, picture
from torch import nn

from psic_core import bitstream
from psic_core.models import tiles


@pytest.mark.parametrize(
    ("layer", "expected"),
    [(nn.Conv2d(4, 4, 1), 0), (nn.Conv2d(4, 4, 7, padding=3), 3), (GDN(4), 0), (AttentionBlock(4), 3)],
    ids=["1x1", "7x7", "GDN", "attention"],
)
def test_reach_is_the_receptive_field(layer: nn.Module, expected: int):
    assert tiles.reach(layer, 4, 1) == expected


@pytest.mark.parametrize("name", ["bmshj2018-hyperprior", "cheng2020-attn", "elic2022-official"])
def test_nothing_beyond_the_reach_changes_an_output(name: str):
    """By another measure than NaN: random values there, and a gradient from the middle."""
    ours = fresh(name)
    far = tiles.reach(ours.g_s.plain, ours.config.m, 1)
    side = 2 * far + 7
    y = torch.randn(1, ours.config.m, side, side, requires_grad=True)
    middle = 16 * (side // 2)
    ours.g_s.plain(y)[..., middle : middle + 16, middle : middle + 16].sum().backward()
    touched = y.grad[0].abs().sum(0).nonzero() - side // 2
    assert touched.abs().max() <= far
    assert touched.abs().max() >= 2


def test_what_is_not_local_is_refused():
    with pytest.raises(ValueError, match="further than 32 latents"):
        tiles.reach(lambda x: x - x.mean((2, 3), keepdim=True), 2, 1)


@pytest.mark.parametrize(("cells", "tile", "context"), [(1, 4, 2), (8, 4, 2), (9, 4, 20), (17, 5, 1)])
def test_windows_with_their_context_give_the_whole(cells: int, tile: int, context: int):
    x = torch.rand(1, 2, 2 * cells, 2 * cells + 6)
    near, each = torch.nn.AvgPool2d(3, 1, 1), torch.nn.Upsample(scale_factor=2)
    found = tiles.tiled(lambda part: each(near(part)), x, (2, 4), tile, context, "windows")
    assert torch.equal(found, each(near(x)))


@pytest.mark.parametrize("name", ["bmshj2018-hyperprior", "cheng2020-anchor-checkerboard"])
@pytest.mark.parametrize("keyword", [None, OWNER])
def test_tiled_files_and_pictures_are_the_whole_ones(name: str, keyword: str | None):
    ours = awaken(copy.deepcopy(fresh(name)), scale=1)
    x = picture(300, 460)
    whole, cut = ours.compress(x, tile=0), ours.compress(x, tile=64)
    a, b = (ours.latents(bitstream.unpack(file)) for file in (whole, cut))
    assert (a != b).float().mean() < 1e-3  # rounding of sums in another order
    seen = ours.decompress_tensor(whole, keyword, tile=0)
    assert torch.allclose(ours.decompress_tensor(whole, keyword, tile=100), seen, atol=1e-4)
    assert seen.std() > 1e-2


def test_large_pictures_are_tiled_of_themselves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "WHOLE", 100 * 100)
    monkeypatch.setattr(tiles, "TILE", 64)
    ours, seen = copy.deepcopy(fresh("bmshj2018-hyperprior")), []
    ours.backbone.g_a.register_forward_hook(lambda module, inputs, y: seen.append(inputs[0].shape[-2:]))
    ours.compress(picture(100, 100))
    assert seen == [(128, 128)]
    seen.clear()
    file = ours.compress(picture(101, 300))
    assert len(seen) == 2 * 5
    assert max(max(shape) for shape in seen) == 64 + 2 * 16 * ours.coder.context
    shown: list[torch.Size] = []
    ours.g_s.stages[0].register_forward_hook(lambda module, inputs, y: shown.append(inputs[0].shape[-2:]))
    ours.context = 4
    assert ours.decompress(file, OWNER).size == (300, 101)
    assert len(shown) == 2 * 5


@pytest.mark.parametrize("tile", [-1, 1.5, True, "64"])
def test_a_bad_tile_gets_a_sentence(tile: object, unchecked_shapes: None):
    with pytest.raises(ValueError, match="side in pixels"):
        fresh("bmshj2018-hyperprior").compress(picture(), tile=tile)
