"""Pictures sorted into one folder for each class, as ImageNet comes, and the classes' names in words."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from psic_core.datasets.folders import Folder, ImageNetFolder, read_rows

SYNSET = re.compile(r"n\d{8}")
WORD_LISTS = ("synset_words.txt", "LOC_synset_mapping.txt")  # Caffe's and Kaggle's: "n01440764 tench, Tinca tinca"
_FIRST, _LAST = "n01440764", "n15075141"  # of the 1,000 synsets of ILSVRC 2012, tench and toilet tissue


def labelled(root: str | Path, size: int | None = None) -> "ImageNetFolder | ClassFolders":
    """Pictures with their classes, in either layout: listed in ``classes.csv``, or in a folder for each class.

    Args:
        root: The folder.
        size: As in `Folder`.

    Raises:
        FileNotFoundError: No folder, or no pictures.
        ValueError: Neither layout; what was looked for is said.
    """
    listing = Path(root) / "classes.csv"
    if listing.is_file() and "file" in read_rows(listing, "class_name")[0]:
        return ImageNetFolder(root, size)
    return ClassFolders(root, size)


class ClassFolders(Folder):
    """Pictures as ``class/picture``; classes in the order of their folders' names.

    The first pictures of all classes come first, then the second ones, so that a limit takes some of every class.
    Classes of one name are one class, as in `ImageNetFolder`. For the names see `class_names`.

    Args:
        root: The folder of the classes' folders.
        size: As in `Folder`.

    Raises:
        FileNotFoundError: No such folder, or no pictures in it.
        ValueError: A picture lies elsewhere, there is one class only, or a class has no name.
    """

    def __init__(self, root: str | Path, size: int | None = None) -> None:
        super().__init__(root, size)
        astray = [p for p in self.files if p.parent.parent != self.root]
        folders = sorted({p.parent.name for p in self.files})
        if astray or len(folders) < 2:
            found = f"{str(astray[0])!r} lies elsewhere" if astray else f"all lie in {folders[0]!r}"
            raise ValueError(
                f"no classes in {str(root)!r}: looked for classes.csv with the columns index,class_name,file, and for "
                f"pictures in two or more folders, one for each class; {found}"
            )
        names = dict(zip(folders, class_names(self.root, folders), strict=True))
        self.classes: tuple[str, ...] = tuple(dict.fromkeys(names.values()))
        seen: Counter[str] = Counter()
        turns = []
        for path in self.files:
            turns.append((seen[path.parent.name], path))
            seen[path.parent.name] += 1
        self.files = [path for _, path in sorted(turns)]
        self.labels = torch.tensor([self.classes.index(names[p.parent.name]) for p in self.files])


def class_names(root: Path, folders: Sequence[str]) -> list[str]:
    """What the classes of some folders are called in a prompt.

    A list in ``root`` says it: ``classes.csv`` (``synset,class_name``), ``synset_words.txt`` or
    ``LOC_synset_mapping.txt`` (a synset, then its words, of which the first counts). Without one, a folder's name is
    the class's, underscores read as spaces. Where all 1,000 synsets of ImageNet are there (in a word list, or as
    folders), the names are CLIP's own, in which crane the bird is not crane the machine (Radford et al. 2021).

    Args:
        root: Folder of the lists.
        folders: Names of the classes' folders, sorted.

    Raises:
        ValueError: The list has no line for a folder, or a folder is named by its synset and there is no list.
    """
    path, known = _listed(root)
    if path is None and _is_imagenet(folders):
        return list(IMAGENET_CLASSNAMES)
    if path is None:
        bare = [f for f in folders if SYNSET.fullmatch(f)]
        if bare:
            raise ValueError(
                f"{bare[0]!r} is a synset, no name, and no list in {str(root)!r} translates it: looked for "
                f"classes.csv with the columns synset,class_name, and for {' and '.join(WORD_LISTS)}"
            )
        return [f.replace("_", " ") for f in folders]
    unknown = [f for f in folders if f not in known]
    if unknown:
        raise ValueError(f"{path} has no line for the folder {unknown[0]!r}; add its class's name")
    return [known[f] for f in folders]


def _listed(root: Path) -> tuple[Path | None, dict[str, str]]:
    """The list of class names that is there, and the name of each synset."""
    path = root / "classes.csv"
    if path.is_file():
        return path, {row["synset"]: row["class_name"] for row in read_rows(path, "synset", "class_name")}
    path = next((root / name for name in WORD_LISTS if (root / name).is_file()), None)
    if path is None:
        return None, {}
    pairs = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    bare = [pair[0] for pair in pairs if len(pair) < 2]
    if bare:
        raise ValueError(f"{path}: {bare[0]!r} has no words; a line is 'n01440764 tench, Tinca tinca'")
    known = {synset: words.partition(",")[0].strip() for synset, words in pairs}
    if _is_imagenet(sorted(known)):
        known = dict(zip(sorted(known), IMAGENET_CLASSNAMES, strict=True))
    return path, known


def _is_imagenet(synsets: Sequence[str]) -> bool:
    """Whether sorted names are the 1,000 synsets of ILSVRC 2012, which then stand in the order of CLIP's names."""
    same = len(synsets) == len(IMAGENET_CLASSNAMES) and (synsets[0], synsets[-1]) == (_FIRST, _LAST)
    return same and all(map(SYNSET.fullmatch, synsets))
