"""Data sets by name, each built small in a temporary folder, and what is known of their pictures."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from psic_core.config import data_dir
from psic_core.datasets import DATASETS
from psic_core.datasets.eval_sets import eval_set, face_prompts
from psic_core.datasets.folders import read_rows
from psic_core.datasets.scenes import Scenes


def paint(path: Path, level: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (70, 50), (level, 100, 0)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with two pictures of everything."""
    for i in range(2):
        paint(tmp_path / "flickr8k" / "Images" / f"{i}.jpg")
        paint(tmp_path / "celeba" / "img_align_celeba" / f"{i}.jpg")
        paint(tmp_path / "imagenet_sample" / f"{i}.jpg")
        paint(tmp_path / "kodak" / f"{i}.png")
    rows = [f"{i}.jpg,caption {j} of {i}" for i in range(2) for j in range(5)]
    (tmp_path / "flickr8k" / "captions.txt").write_text("\n".join(["image,caption", *rows]))
    (tmp_path / "flickr8k" / "splits").mkdir()
    for split, names in (("train", ""), ("dev", "1.jpg\n"), ("test", "0.jpg\n1.jpg\n")):
        (tmp_path / "flickr8k" / "splits" / f"Flickr_8k.{split}Images.txt").write_text(names)
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("2\nWearing_Hat Young\n0.jpg 1 -1\n1.jpg -1 -1\n")
    lines = "index,synset,class_name,file\n4,n0,hen,0.jpg\n9,n1,tench,1.jpg\n"
    (tmp_path / "imagenet_sample" / "classes.csv").write_text(lines)
    return tmp_path


# --- the sets with a name ---------------------------------------------------------------------------


def test_scenes_by_name_are_the_held_out_ones():
    found = eval_set("scenes", limit=3, side=64)
    scene = Scenes("test", 3, 64)[2]
    assert (found.name, found.size) == ("scenes", 3)
    assert torch.equal(found.picture(2), scene.image)
    assert found.captions[2] == scene.captions
    assert found.classes[found.labels[2]] == scene.class_name
    assert torch.equal(found.attributes[2], scene.attributes)


@pytest.mark.parametrize("limit", [None, 1, 9])
def test_real_data_sets_by_name(limit: int | None, root: Path):
    n = 1 if limit == 1 else 2
    flickr = eval_set("flickr8k", root, limit)
    assert (flickr.size, len(flickr.captions), flickr.picture(0).shape) == (n, n, (3, 160, 160))
    celeba = eval_set("celeba", root, limit, 64)
    assert celeba.attributes.tolist() == [[True, False], [False, False]][:n]
    assert celeba.attribute_prompts == face_prompts(["Wearing_Hat", "Young"])
    imagenet = eval_set("imagenet", root, limit, 64)
    assert (imagenet.classes, imagenet.labels.tolist()) == (("hen", "tench"), [0, 1][:n])
    kodak = eval_set("kodak", root, limit)
    assert (kodak.size, kodak.captions, kodak.classes, kodak.picture(0).shape) == (n, None, None, (3, 50, 70))


def test_a_side_scales_whole_pictures_and_0_leaves_them_as_they_are(root: Path):
    shapes = {side: eval_set("celeba", root, 1, side).picture(0).shape for side in (None, 0, 25, 100)}
    assert shapes == {None: (3, 160, 160), 0: (3, 50, 70), 25: (3, 25, 35), 100: (3, 100, 140)}
    with pytest.raises(ValueError, match="side -1"):
        eval_set("kodak", root, side=-1)


# --- any folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1, 9])
def test_captioned_reads_a_folder_with_captions(limit: int | None, tmp_path: Path):
    for i, name in enumerate(("b.png", "a.png")):
        paint(tmp_path / name, level=50 * i)
    (tmp_path / "captions.csv").write_text('image,caption\nb.png,a dog\na.png,"a cat, asleep"\nb.png,a black dog\n')
    found = eval_set("captioned", tmp_path, limit, 32)
    n = 1 if limit == 1 else 2
    assert (found.name, found.size) == ("captioned", n)
    assert found.captions == [("a dog", "a black dog"), ("a cat, asleep",)][:n]
    assert found.picture(0).shape == (3, 32, 44)  # of 50 x 70, whole
    assert found.picture(0).max() == pytest.approx(100 / 255)
    assert found.classes is found.labels is found.attributes is None


# --- CelebA's prompts -------------------------------------------------------------------------------


def test_each_of_forty_attributes_has_two_prompts_of_its_own():
    names = [row["attribute"] for row in read_rows(data_dir() / "celeba_prompts.csv", "attribute", "yes", "no")]
    assert len(names) == 40
    words = [prompt for pair in face_prompts(names) for prompt in pair]
    assert len(set(words)) == 80
    assert all(" photo of a" in prompt and "_" not in prompt for prompt in words)
    assert face_prompts(["No_Beard", "Male"]) == (
        ("a photo of a person without a beard", "a photo of a person with a beard"),
        ("a photo of a man", "a photo of a woman"),
    )


# --- what does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limit", "says"),
    [("voc", None, "unknown data set 'voc'.*photos"), ("scenes", 0, "limit 0"), ("photos", -1, "limit -1")],
)
def test_names_and_limits_that_do_not_fit_are_named(name: str, limit: int | None, says: str, root: Path):
    with pytest.raises(ValueError, match=says):
        eval_set(name, root, limit)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "scenes"])
def test_data_that_is_not_there_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PSIC_DATA_ROOT", raising=False)
    with pytest.raises(FileNotFoundError, match="data root"):
        eval_set(name)
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        eval_set(name, tmp_path)
