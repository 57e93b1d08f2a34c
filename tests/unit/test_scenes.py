"""The embedded data set: what ships is what the scripts draw; captions and attributes that agree with the picture."""

import csv

import make_scenes
import pytest
import torch
from phrases import captions, with_article
from plans import cutouts, make_plan, scenes_dir
from render import render

from psic_core.datasets.scenes import Scenes
from psic_core.metrics import psnr

PLANS = [make_plan("train", 0, index) for index in range(242)]


@pytest.mark.parametrize(("split", "index", "decibels"), [("train", 2559, 33), ("test", 0, 48), ("test", 499, 48)])
def test_the_scripts_draw_what_ships(split: str, index: int, decibels: float) -> None:
    """Up to what WebP loses of training pictures, and to what another Pillow draws otherwise."""
    drawn = torch.from_numpy(render(split, 0, index).copy()).permute(2, 0, 1) / 255
    stored = Scenes(split, index + 1)[index]
    assert psnr(stored.image, drawn) > decibels
    assert stored.captions == make_scenes.row(split, index)["captions"]


def test_a_scene_does_not_depend_on_the_length_of_the_set() -> None:
    short, long = Scenes("test", 3, 64), Scenes("test", 300, 64)
    last = long[-298]
    assert torch.equal(short[2].image, last.image)
    assert short[2].captions == last.captions == long.captions(2)


def test_splits_share_no_picture() -> None:
    seen = {s.image.numpy().tobytes() for split in ("train", "test") for s in (Scenes(split, 25)[i] for i in range(25))}
    assert len(seen) == 50


def test_scene_has_the_promised_shapes() -> None:
    data = Scenes("train", 2, 64)
    scene = data[1]
    assert scene.image.shape == (3, 64, 64)
    assert scene.image.dtype == torch.float32
    assert 0 <= scene.image.min() < scene.image.max() <= 1
    assert len(scene.captions) == len(set(scene.captions)) == 5
    assert scene.attributes.shape == (len(data.attributes),)
    assert scene.attributes.dtype == torch.bool
    assert data.classes[scene.class_index] == scene.class_name
    assert len(data) == len(list(data)) == 2  # iteration ends


def test_captions_name_what_is_there() -> None:
    for plan in PLANS:
        main, *others = [cutouts()[item.cutout] for item in plan.objects]
        for number, caption in enumerate(captions(plan)):
            assert main.class_name in caption or main.name in caption
            if number in (0, 2):
                assert with_article(main.class_name) in caption
            assert all(with_article(other.class_name) in caption for other in others)
            assert "  " not in caption
            assert ("sky" in caption or "clouds" in caption or "sunset" in caption) >= bool(plan.sky)


def test_licence_and_provenance_are_beside_the_files() -> None:
    assert "GNU GENERAL PUBLIC LICENSE" in (scenes_dir() / "LICENSE").read_text()
    provenance = (scenes_dir() / "PROVENANCE.md").read_text()
    with (scenes_dir() / "cutouts.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert str(len(rows)) in provenance
    assert {row["package"] for row in rows} == {"tuxpaint-stamps 2022.06.04-1"}
    assert all(row["source"].endswith(".png") and "cartoon" not in row["source"] for row in rows)
    assert sum(path.stat().st_size for path in scenes_dir().iterdir()) < 32_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 3), "'dev'.*train, test"),
        (("test", 0), "n 0 .*1 to 500"),
        (("train", 2561), "n 2561 .*1 to 2560"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes(*arguments)
