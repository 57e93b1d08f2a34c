"""The embedded data set: same seed, same pixels; captions and attributes that agree with the picture."""

import csv
import hashlib
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psic_core.datasets.phrases import captions, with_article
from psic_core.datasets.plans import cutouts, make_plan, scenes_dir
from psic_core.datasets.render import render
from psic_core.datasets.scenes import Scenes

REFERENCE = Path(__file__).parent / "reference" / "scene.png"
HASH = "d139c8a782f6e2e6bce26b1428008c2fabf34c962e501e978343c1c5f9a5decb"
PLANS = [make_plan("train", 0, index) for index in range(1210)]


def test_same_seed_same_pixels_on_this_platform() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the hash holds on x86-64 Linux; the reference picture is compared everywhere")
    digest = hashlib.sha256()
    for index in range(24):
        digest.update(render("test", 0, index, 96).tobytes())
    assert digest.hexdigest() == HASH


def test_reference_picture_within_tolerance_everywhere() -> None:
    expected = np.asarray(Image.open(REFERENCE).convert("RGB"), np.int16)
    made = np.concatenate([render("test", 0, index, 128) for index in range(4)], axis=1)
    assert np.abs(made.astype(np.int16) - expected).mean() < 0.5


def test_scene_does_not_depend_on_length_or_order() -> None:
    short, long = Scenes("val", 3, 64), Scenes("val", 300, 64)
    last = long[-298]
    assert last.key == "val-0-2"
    assert torch.equal(short[2].image, last.image)
    assert short[2].captions == last.captions == long.captions(2)


def test_splits_share_no_picture() -> None:
    seen = {render(split, 0, i, 32).tobytes() for split in ("train", "val", "test") for i in range(25)}
    assert len(seen) == 3 * 25


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
    assert sum(path.stat().st_size for path in scenes_dir().iterdir()) < 6_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 3), "'dev'.*train, val, test"),
        (("train", 0), "n 0 .*at least 1"),
        (("train", 3, 8), "size 8 .*32"),
        (("train", 3, 5000), "size 5000 .*1024"),
        (("train", 3, 160, -1), "seed -1 .*at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes(*arguments)
