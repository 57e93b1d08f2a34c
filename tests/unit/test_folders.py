"""Data sets in their standard layouts, built small in a temporary folder."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from psic_core.config import data_root
from psic_core.datasets.folders import (
    CaptionedFolder,
    CelebA,
    ClassFolders,
    Flickr8k,
    Folder,
    ImageNetFolder,
    class_names,
    in_memory,
    labelled,
    read_captions,
    square,
)
from psic_core.datasets.scenes import Scenes


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


def test_pictures_are_made_square_on_request(tmp_path: Path):
    paint(tmp_path / "wide.png", size=(90, 30))
    paint(tmp_path / "tall.png", size=(31, 77))
    folder = Folder(tmp_path, size=24)
    assert [tuple(folder[i].shape) for i in range(2)] == [(3, 24, 24)] * 2


def test_in_memory_holds_the_bytes_of_the_files(tmp_path: Path):
    paint(tmp_path / "a.png", 7)
    paint(tmp_path / "b.png", 200)
    held = in_memory(Folder(tmp_path))
    assert (held.dtype, held.shape) == (torch.uint8, (2, 3, 30, 40))
    assert held[:, 0, 5, 5].tolist() == [7, 200]
    assert in_memory(Scenes("test", 2, 32)).shape == (2, 3, 32, 32)


def test_square_keeps_the_middle():
    image = Image.new("RGB", (90, 30))
    image.paste((255, 255, 255), (30, 0, 60, 30))
    assert square(image, 30).getextrema() == ((255, 255),) * 3
    assert square(image, 12).size == (12, 12)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 7)])
def test_square_takes_any_shape(size: tuple[int, int]):
    assert square(Image.new("RGB", size), 16).size == (16, 16)


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
    assert [len(Flickr8k(flickr, split)) for split in ("train", "dev", "test", "all")] == [2, 1, 1, 4]


def test_commas_and_quotes_belong_to_a_caption(flickr: Path):
    assert Flickr8k(flickr, "test").captions[0][4] == 'A "big" dog, a cat, and 2 birds .'
    assert all(len(row) == 5 for row in Flickr8k(flickr, "all").captions)


def test_a_missing_split_is_named(flickr: Path):
    (flickr / "splits" / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"Flickr_8k\.devImages.*asked for 'dev'"):
        Flickr8k(flickr, "dev")


def test_a_picture_without_captions_is_named(flickr: Path):
    (flickr / "splits" / "Flickr_8k.testImages.txt").write_text("2.jpg\n9.jpg\n")
    with pytest.raises(ValueError, match=r"'9\.jpg'.*test split.*captions"):
        Flickr8k(flickr, "test")


def test_missing_captions_are_named(flickr: Path):
    (flickr / "captions.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions\.txt"):
        Flickr8k(flickr)


def test_a_picture_of_a_split_that_is_not_there_is_named(flickr: Path):
    (flickr / "Images" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 pictures in captions\.txt.*1\.jpg"):
        Flickr8k(flickr, "train")


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


def test_the_line_without_a_caption_is_named(tmp_path: Path):
    (tmp_path / "captions.csv").write_text("image,caption\n1.jpg,a dog\n\n1.jpg\n")
    with pytest.raises(ValueError, match="line 4 .*'1.jpg', None.*needs quotes"):
        read_captions(tmp_path / "captions.csv")


def test_captions_with_a_byte_order_mark_and_more_columns_are_read(tmp_path: Path):
    text = "split,image,caption\ntest,1.jpg, un caf\xe9 \n,1.jpg,coffee\n"
    (tmp_path / "captions.csv").write_text(text, encoding="utf-8-sig")
    assert read_captions(tmp_path / "captions.csv") == {"1.jpg": ("un caf\xe9", "coffee")}


def test_a_captioned_folder_is_its_list_in_the_lists_order(tmp_path: Path):
    for name in ("a.jpg", "deep/b.jpg", "c.jpg"):
        paint(tmp_path / name)
    (tmp_path / "captions.csv").write_text("image,caption\ndeep/b.jpg,one\na.jpg,two\ndeep/b.jpg,three\n")
    (tmp_path / "captions.txt").write_text("image,caption\nc.jpg,not read\n")
    data = CaptionedFolder(tmp_path, 20)
    assert [p.name for p in data.files] == ["b.jpg", "a.jpg"]
    assert data.captions == (("one", "three"), ("two",))
    assert data[1].shape == (3, 20, 20)


def test_a_captioned_folder_may_keep_its_pictures_as_flickr8k_does(flickr: Path):
    assert CaptionedFolder(flickr).files == Flickr8k(flickr, "all").files


def test_a_folder_without_captions_says_what_was_looked_for(tmp_path: Path):
    paint(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"captions\.csv and captions\.txt with the columns image,caption"):
        CaptionedFolder(tmp_path)


def test_captions_of_absent_pictures_are_named(tmp_path: Path):
    paint(tmp_path / "a.jpg")
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,one\nb.jpg,two\nc.jpg,three\n")
    with pytest.raises(FileNotFoundError, match=r"2 of the 3 pictures in captions\.txt.*b\.jpg"):
        CaptionedFolder(tmp_path)


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


def test_missing_attributes_are_named(celeba: Path):
    (celeba / "list_attr_celeba.txt").unlink()
    with pytest.raises(FileNotFoundError, match="list_attr_celeba"):
        CelebA(celeba)


# --- ImageNet-style ---------------------------------------------------------------------------------


def test_imagenet_folders_follow_their_class_list(tmp_path: Path):
    for name in ("x.jpg", "y.jpg", "z.jpg"):
        paint(tmp_path / name)
    rows = ["index,synset,class_name,file", "10,n3,crane,z.jpg", '2,n1,"hen, brown",y.jpg', "1,n0,tench,x.jpg"]
    (tmp_path / "classes.csv").write_text("\n".join(rows) + "\n")
    data = ImageNetFolder(tmp_path, 20)
    assert data.classes == ("tench", "hen, brown", "crane")  # by number, not by spelling
    assert [p.name for p in data.files] == ["x.jpg", "y.jpg", "z.jpg"]
    assert data.labels.tolist() == [0, 1, 2]
    assert data[2].shape == (3, 20, 20)


def test_two_pictures_of_a_class_share_its_label(tmp_path: Path):
    paint(tmp_path / "x.jpg")
    rows = ["index,synset,class_name,file", "1,n0,tench,x.jpg", "1,n0,tench,x.jpg", "2,n1,hen,x.jpg"]
    (tmp_path / "classes.csv").write_text("\n".join(rows))
    data = ImageNetFolder(tmp_path)
    assert (data.classes, data.labels.tolist()) == (("tench", "hen"), [0, 0, 1])


def test_a_missing_or_foreign_class_list_is_named(tmp_path: Path):
    paint(tmp_path / "x.jpg")
    with pytest.raises(FileNotFoundError, match=r"classes\.csv"):
        ImageNetFolder(tmp_path)
    (tmp_path / "classes.csv").write_text("name,path\ntench,x.jpg\n")
    with pytest.raises(ValueError, match=r"classes\.csv.*index,class_name,file"):
        ImageNetFolder(tmp_path)


@pytest.mark.parametrize(
    ("row", "error", "says"),
    [
        ("one,tench,x.jpg", ValueError, "index 'one' is no number"),
        ("1,,x.jpg", ValueError, "line 2 is no index,class_name,file"),
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


# --- a folder for each class ------------------------------------------------------------------------


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Three birds, one tench and two hens, in folders named by their synsets."""
    for name in ("n02012849/a", "n02012849/b", "n02012849/c", "n01440764/a", "n01514859/a", "n01514859/z"):
        paint(tmp_path / f"{name}.jpg")
    return tmp_path


WORDS = "synset,class_name\nn01440764,tench\nn01514859,hen\nn02012849,crane\nn03126707,crane\n"


def test_class_folders_take_turns(animals: Path):
    (animals / "classes.csv").write_text(WORDS)
    data = ClassFolders(animals, 20)
    assert data.classes == ("tench", "hen", "crane")
    assert [f"{p.parent.name[-2:]}{p.stem}" for p in data.files] == ["64a", "59a", "49a", "59z", "49b", "49c"]
    assert data.labels.tolist() == [0, 1, 2, 1, 2, 2]
    assert data[5].shape == (3, 20, 20)


def test_folders_of_one_class_name_are_one_class(animals: Path):
    paint(animals / "n03126707" / "a.jpg")
    (animals / "classes.csv").write_text(WORDS)
    data = ClassFolders(animals)
    assert data.classes == ("tench", "hen", "crane")
    assert data.labels.tolist() == [0, 1, 2, 2, 1, 2, 2]


def test_class_names_come_from_a_table(animals: Path):
    rows = ["class_name,synset", '"hen, brown",n01514859', "fish,n01440764", "crane bird,n02012849"]
    (animals / "classes.csv").write_text("\n".join(rows))
    assert labelled(animals).classes == ("fish", "hen, brown", "crane bird")


def thousand() -> list[str]:
    """As many names as ImageNet has synsets, with its first and last, and crane the bird in its place."""
    names = [f"n{1440764 + i:08}" for i in range(134)] + [f"n{2012849 + i:08}" for i in range(865)]
    return [*names, "n15075141"]


def test_the_thousand_synsets_have_clips_names(tmp_path: Path):
    names = class_names(tmp_path, thousand())
    assert (len(names), names[0], names[134], names[999]) == (1000, "tench", "crane bird", "toilet paper")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (None, r"'n01440764' is a synset.*classes\.csv.*synset,class_name"),
        ("synset,class_name\nn01440764,tench\n", r"classes\.csv has no line for the folder 'n01514859'"),
    ],
)
def test_synsets_that_nobody_translates_are_named(words: str | None, says: str, animals: Path):
    if words:
        (animals / "classes.csv").write_text(words)
    with pytest.raises(ValueError, match=says):
        ClassFolders(animals)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a.jpg", "b.jpg"), r"a\.jpg' lies elsewhere"),
        (("cat/a.jpg", "dog/young/b.jpg"), r"b\.jpg' lies elsewhere"),
        (("cat/a.jpg", "cat/b.jpg"), "all lie in 'cat'"),
    ],
)
def test_an_unknown_layout_says_what_was_looked_for(names: tuple[str, ...], says: str, tmp_path: Path):
    for name in names:
        paint(tmp_path / name)
    with pytest.raises(ValueError, match=rf"classes\.csv with the columns index,class_name,file.*one for each.*{says}"):
        labelled(tmp_path)


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


REAL = Path(os.environ.get("PSIC_DATA_ROOT", "/nowhere"))


@pytest.mark.skipif(not (REAL / "flickr8k").is_dir(), reason="set PSIC_DATA_ROOT to a folder that holds flickr8k/")
def test_the_real_flickr8k_has_its_known_numbers():
    sizes = {split: len(Flickr8k(REAL / "flickr8k", split)) for split in ("train", "dev", "test", "all")}
    assert sizes == {"train": 6000, "dev": 1000, "test": 1000, "all": 8091}
    data = Flickr8k(REAL / "flickr8k", "test", 64)
    assert {len(row) for row in data.captions} == {5}
    assert data[999].shape == (3, 64, 64)


@pytest.mark.skipif(not (REAL / "celeba").is_dir(), reason="set PSIC_DATA_ROOT to a folder that holds celeba/")
def test_the_real_celeba_has_forty_attributes():
    faces = CelebA(REAL / "celeba", 64)
    assert (len(faces.attributes), faces.labels.shape) == (40, (len(faces), 40))
    assert 0.3 < faces.labels[:, faces.attributes.index("Male")].float().mean() < 0.55
    assert faces[0].shape == (3, 64, 64)


@pytest.mark.skipif(
    not (REAL / "imagenet_sample").is_dir(), reason="set PSIC_DATA_ROOT to a folder that holds imagenet_sample/"
)
def test_the_real_imagenet_sample_has_a_picture_for_each_label():
    data = ImageNetFolder(REAL / "imagenet_sample", 64)
    assert len(data) == len(data.labels)
    assert all(p.is_file() for p in data.files)
    assert int(data.labels.max()) == len(data.classes) - 1
