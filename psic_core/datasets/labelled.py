"""Pictures sorted into one folder for each class, as ImageNet comes, and the classes' names in words."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from psic_core.datasets.folders import Folder, ImageNetFolder, read_rows

SYNSET = re.compile(r"n\d{8}")
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

    ``classes.csv`` in ``root`` says it (``synset,class_name``). Without one, a folder's name is the class's,
    underscores read as spaces; where the folders are all 1,000 synsets of ImageNet, the names are CLIP's own, in which
    crane the bird is not crane the machine (Radford et al. 2021).

    Args:
        root: Folder of the list.
        folders: Names of the classes' folders, sorted.

    Raises:
        ValueError: The list has no line for a folder, or a folder is named by its synset and there is no list.
    """
    path = root / "classes.csv"
    if path.is_file():
        known = {row["synset"]: row["class_name"] for row in read_rows(path, "synset", "class_name")}
        if unknown := [f for f in folders if f not in known]:
            raise ValueError(f"{path} has no line for the folder {unknown[0]!r}; add its class's name")
        return [known[f] for f in folders]
    synsets = [f for f in folders if SYNSET.fullmatch(f)]
    if len(synsets) == len(IMAGENET_CLASSNAMES) and (synsets[0], synsets[-1]) == (_FIRST, _LAST):
        return list(IMAGENET_CLASSNAMES)
    if synsets:
        raise ValueError(
            f"{synsets[0]!r} is a synset, no name, and no list in {str(root)!r} translates it: looked for classes.csv "
            "with the columns synset,class_name"
        )
    return [f.replace("_", " ") for f in folders]
