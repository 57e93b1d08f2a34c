"""Data sets in their standard layouts, built small in a temporary folder."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from psic_core.config import data_root
from psic_core.datasets.folders import (
    CaptionedFolder,
    CelebA,
    Flickr8k,
    Folder,
    ImageNetFolder,
    read_captions,
    square,
)


def paint(path: Path, level: int = 100, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 0, 255 - level)).save(path)
    return path


# --- plain folders ----------------------------------------------------------------------------------


def test_a_folder_is_its_pictures_sorted_and_nothing_else(tmp_path: Path):
    for i, name in enumerate(("b.png", "a.JPG", "deep/er/c.webp")):
        paint(tmp_path / name, 50 * i)
    (tmp_path / "notes.txt").write_text("no picture")
    folder = Folder(tmp_path)
    assert [p.name for p in folder.files] == ["a.JPG", "b.png", "c.webp"]
    assert len(folder) == 3
    assert folder[1].shape == (3, 30, 40)
    assert torch.equal(folder[1][:, 0, 0], torch.tensor([0.0, 0.0, 1.0]))


def test_square_keeps_the_middle():
    image = Image.new("RGB", (90, 30))
    image.paste((255, 255, 255), (30, 0, 60, 30))
    assert square(image, 30).getextrema() == ((255, 255),) * 3
    assert square(image, 12).size == (12, 12)


def test_an_empty_or_absent_folder_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no pictures \(.*\.png.*under '.*'"):
        Folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder '.*nowhere'"):
        Folder(tmp_path / "nowhere")


def test_a_damaged_picture_is_named(tmp_path: Path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing follows")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        Folder(tmp_path)[0]


# --- Flickr8k ---------------------------------------------------------------------------------------


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    root = tmp_path / "flickr8k"
    lines = ["image,caption"]
    for i in range(4):
        paint(root / "Images" / f"{i}.jpg")
        lines += [f"{i}.jpg,caption {j} of {i} ." for j in range(4)]
        lines.append(f'{i}.jpg,"A ""big"" dog, a cat, and {i} birds ."')
    (root / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "splits").mkdir()
    for split, names in (("train", "3.jpg\n1.jpg\n"), ("dev", "0.jpg\n"), ("test", "2.jpg")):
        (root / "splits" / f"Flickr_8k.{split}Images.txt").write_text(names)
    return root


def test_flickr8k_follows_its_official_splits(flickr: Path):
    train = Flickr8k(flickr, "train", 20)
    assert [p.name for p in train.files] == ["3.jpg", "1.jpg"]
    assert [row[0] for row in train.captions] == ["caption 0 of 3 .", "caption 0 of 1 ."]
    assert train[0].shape == (3, 20, 20)
    assert [len(Flickr8k(flickr, split)) for split in ("train", "dev", "test")] == [2, 1, 1]


def test_commas_and_quotes_belong_to_a_caption(flickr: Path):
    assert Flickr8k(flickr, "test").captions[0][4] == 'A "big" dog, a cat, and 2 birds .'
    assert all(len(row) == 5 for row in Flickr8k(flickr, "train").captions)


def test_a_picture_without_captions_is_named(flickr: Path):
    (flickr / "splits" / "Flickr_8k.testImages.txt").write_text("2.jpg\n9.jpg\n")
    with pytest.raises(ValueError, match=r"'9\.jpg'.*test split.*captions"):
        Flickr8k(flickr, "test")


# --- captions of any folder -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "image,caption\n",
        "1.jpg,a dog\n",
        "file;text\n1.jpg;a dog\n",
        "image,caption\n1.jpg\n",
        "image,caption\n1.jpg,\n",
        "image,caption\n,a dog\n",
        "image,caption\n1.jpg,a dog, asleep\n",
        'image,caption\n1.jpg,"a dog\n2.jpg,a cat\n',
        "image,caption\n1.jpg,a caf\xe9\n",
    ],
)
def test_captions_in_another_form_are_refused(text: str, tmp_path: Path):
    (tmp_path / "captions.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"captions\.txt.*image,caption"):
        read_captions(tmp_path / "captions.txt")


def test_a_captioned_folder_is_its_list_in_the_lists_order(tmp_path: Path):
    for name in ("a.jpg", "deep/b.jpg", "c.jpg"):
        paint(tmp_path / name)
    (tmp_path / "captions.csv").write_text("image,caption\ndeep/b.jpg,one\na.jpg,two\ndeep/b.jpg,three\n")
    (tmp_path / "captions.txt").write_text("image,caption\nc.jpg,not read\n")
    data = CaptionedFolder(tmp_path, 20)
    assert [p.name for p in data.files] == ["b.jpg", "a.jpg"]
    assert data.captions == (("one", "three"), ("two",))
    assert data[1].shape == (3, 20, 20)


# --- CelebA -----------------------------------------------------------------------------------------


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    root = tmp_path / "celeba"
    for i in (1, 2, 3):
        paint(root / "img_align_celeba" / f"{i:06}.jpg")
    lines = ["3", "Bald Smiling Young ", "000001.jpg -1  1 -1", "000003.jpg  1 -1  1 ", "000009.jpg 1 1 1", ""]
    (root / "list_attr_celeba.txt").write_text("\n".join(lines))
    return root


def test_celeba_joins_pictures_and_attributes_by_name(celeba: Path):
    faces = CelebA(celeba, 20)
    assert faces.attributes == ("Bald", "Smiling", "Young")
    assert [p.name for p in faces.files] == ["000001.jpg", "000003.jpg"]  # one has no attributes, one no picture
    assert faces.labels.tolist() == [[False, True, False], [True, False, True]]
    assert len(faces) == 2
    assert faces[1].shape == (3, 20, 20)


@pytest.mark.parametrize("text", ["", "2\nBald Young\n000001.jpg 1\n", "1\nBald\n000009.jpg 1\n"])
def test_attributes_in_another_form_are_refused(text: str, celeba: Path):
    (celeba / "list_attr_celeba.txt").write_text(text)
    with pytest.raises(ValueError, match="list_attr_celeba"):
        CelebA(celeba)


# --- ImageNet-style ---------------------------------------------------------------------------------


def test_imagenet_folders_follow_their_class_list(tmp_path: Path):
    for name in ("x.jpg", "y.jpg", "z.jpg"):
        paint(tmp_path / name)
    rows = ["index,synset,class_name,file", "10,n3,crane,z.jpg", '2,n1,"hen, brown",y.jpg', "1,n0,tench,x.jpg"]
    (tmp_path / "classes.csv").write_text("\n".join(rows) + "\n")
    data = ImageNetFolder(tmp_path)
    assert data.classes == ("tench", "hen, brown", "crane")  # by number, not by spelling
    assert [p.name for p in data.files] == ["x.jpg", "y.jpg", "z.jpg"]
    assert data.labels.tolist() == [0, 1, 2]
    assert data[2].ndim == 3


@pytest.mark.parametrize(
    ("row", "error", "says"),
    [
        ("1,,x.jpg", ValueError, r"index,class_name,file.*not \['1', '', 'x.jpg'\]"),
        ("1,tench,y.jpg", FileNotFoundError, r"1 of the 1 pictures in classes\.csv.*y\.jpg"),
    ],
)
def test_a_line_of_the_class_list_that_does_not_fit_is_named(
    row: str, error: type[Exception], says: str, tmp_path: Path
):
    paint(tmp_path / "x.jpg")
    (tmp_path / "classes.csv").write_text(f"index,class_name,file\n{row}\n")
    with pytest.raises(error, match=says):
        ImageNetFolder(tmp_path)


# --- the data root ----------------------------------------------------------------------------------


def test_the_data_root_is_an_argument_or_an_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PSIC_DATA_ROOT", raising=False)
    with pytest.raises(FileNotFoundError, match="--data-root DIR or set PSIC_DATA_ROOT"):
        data_root()
    monkeypatch.setenv("PSIC_DATA_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        data_root()
    assert data_root(tmp_path) == tmp_path
    monkeypatch.setenv("PSIC_DATA_ROOT", str(tmp_path))
    assert data_root() == tmp_path
