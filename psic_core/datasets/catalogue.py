"""The real data sets that ``psic data get`` fetches: where they are, what they should be, and on whose terms."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from psic_core.datasets import layouts
from psic_core.datasets.transfer import Source


@dataclass(frozen=True)
class DataSet:
    """A data set that others publish.

    Args:
        name: Its folder below the data root.
        home: The publishers' page.
        terms: Theirs, in short.
        sources: The files to download.
        build: Makes the layout: from the folder of the downloads into an empty one.
        needs: Paths that the layout has; a folder with all of them is complete.
        layout: The same in words.
        pictures: How many there are.
    """

    name: str
    home: str
    terms: str
    sources: tuple[Source, ...]
    build: Callable[[Path, Path], None]
    needs: tuple[str, ...]
    layout: str
    pictures: int

    @property
    def size(self) -> int | None:
        """Bytes to download; ``None`` where a server does not say."""
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(sizes)

    @property
    def published(self) -> bool:
        """Whether every file has a published checksum."""
        return all(source.sha256 or source.md5 for source in self.sources)

    def is_in(self, root: Path) -> bool:
        """Whether a data root has it."""
        return all((root / self.name / path).exists() for path in self.needs)


def data_set(name: str) -> DataSet:
    """The data set of a name.

    Raises:
        ValueError: There is none.
    """
    if name not in DATA_SETS:
        raise ValueError(f"no data set {name!r} to get; there are {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


# --- the data sets ----------------------------------------------------------------------------------

_BROWNLEE = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
_ILLINOIS = "http://nlp.cs.illinois.edu/HockenmaierGroup/Framing_Image_Description"
_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
_SAMPLE = "EliSchwartz/imagenet-sample-images"
_SAMPLE_COMMIT = "bc69043e2862758a1906c6a24a792bb28c6bb2ff"

# Bytes and sha256 of kodim01.png to kodim24.png as r0k.us serves them; public projects that pin them agree.
_KODAK = (
    (736501, "a56e27cbf5f843c048b6af1d6e090760e9c92fadba88b7dee0205918a37523bd"),
    (617995, "4f4b74a79237e311d72cad958237b5f7088d8bce1c82305ebefe1a70e3022dfd"),
    (502888, "e25ca1ff2f0c0cb5fdfd5f9b0a0bb21ac4c3de3c84a67f35b09a85d3306249db"),
    (637432, "e3b946107c5d3441c022f678d0c3caf1e224d81b1604ba840a4f88e562de61aa"),
    (785610, "10349e963c5c813d327852f82c1795fa4148d69fedffc4c589bee458e3ac3d53"),
    (618959, "363510303b715d4cbc384e1ce227e466b613a09e1b71ae985882bf8e7fbd9b18"),
    (566322, "b77d3f006f42414bb242222e0482e750c0fb9e5ee8d4bed2f6f11c5605fe54a4"),
    (788470, "ba23983c76b4832ee0e8af0592664756841a16779acd69f792e268fb6d13d6e7"),
    (582899, "6a4361c2fc194feb4edaa9f9a4a0620fb9943e460ac7fdf037fb0f6dd6607a7d"),
    (593463, "9dfb70f5867c29ff9ed6313683f19b3d867849e40fbc0c4c54a4a89df341cf23"),
    (621023, "7936814b58b5387fce2e4e2488b4ec830dadd95fa9520f358ddb30990b50f2b6"),
    (531024, "d78c37c2f04f23761ed2367dd77e2db584ddd4c3950833fecf89f199a8126980"),
    (822712, "bc34a3ce58dea09dce1704c997171602de90cb34d0c8503a988b77f473d39b08"),
    (692201, "55a94550ff18f3246c4074fd32b77b0c74447c26b6ad274d564d999c0450ba6e"),
    (612582, "7538cbb80cb9103606c48b806eae57d56c885c7f90b9b3be70a41160f9cbb683"),
    (534247, "a89c7268ccd4718ba424a99fc4643c572cf692ca6eae887185ceb4e9f11d2e54"),
    (602078, "37afcc89fbdcb76d9518e04b2fc011027e2f4cd14b3b2f83cefd721641a47c5b"),
    (780947, "1a9258c365988961d87a0598725b609139c303ad48a5aad6c503c3b1a87849aa"),
    (671476, "b7450b264b1b0a411390d8931b112c27905a992520fc90569dc4b920aa32bbdc"),
    (492462, "3b46c71e3b92a563820ba32936be8330c586c41f938efd94be938386aae4328a"),
    (637051, "ac958597c82073f6bb65129c68f72b651db5b9efd82e11547d07350214bc268b"),
    (701970, "1cee58eb1f2d9c7ebb254d208a03c783ce6cf2c4d8c2cf45e235dd23b4ce1b29"),
    (557596, "e3111a2fd4da24af15d6459ef9eacfe54106b38e27b4a21821b75c3f5d2d5baf"),
    (706397, "1071c68372cc5a01435c2c225a5cf7d4bb803846ec08bb6b3d6721b156d7cb96"),
)

_FLICKR8K = DataSet(
    name="flickr8k",
    home="https://hockenmaier.cs.illinois.edu/8k-pictures.html",
    terms="research and teaching; the photos are their Flickr users'",
    # md5 as in R's torchvision (its flickr8k_caption_dataset); nobody publishes a sha256
    sources=(
        Source(
            "Flickr8k_Dataset.zip",
            (f"{_BROWNLEE}/Flickr8k_Dataset.zip", f"{_ILLINOIS}/Flickr8k_Dataset.zip"),
            1_115_419_746,
            md5="f18a1e2920de5bd84dae7cf08ec78978",
        ),
        Source(
            "Flickr8k_text.zip",
            (f"{_BROWNLEE}/Flickr8k_text.zip", f"{_ILLINOIS}/Flickr8k_text.zip"),
            2_340_801,
            md5="bf6c1abcb8e4a833b7f922104de18627",
        ),
    ),
    build=layouts.flickr8k,
    needs=("Images", "captions.txt", *(f"splits/Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test"))),
    layout="Images/, captions.txt and splits/Flickr_8k.{train,dev,test}Images.txt",
    pictures=8091,
)

_KODAK_SET = DataSet(
    name="kodak",
    home="https://r0k.us/graphics/kodak/",
    terms="released by Kodak for unrestricted use, as the page understands it",
    sources=tuple(
        Source(
            f"kodim{i:02}.png",
            (
                f"https://r0k.us/graphics/kodak/kodak/kodim{i:02}.png",
                f"http://r0k.us/graphics/kodak/kodak/kodim{i:02}.png",
                f"https://raw.githubusercontent.com/coodie/quant/master/images/kodim/kodim{i:02}.png",
            ),
            size,
            sha256,
        )
        for i, (size, sha256) in enumerate(_KODAK, 1)
    ),
    build=layouts.kodak,
    needs=tuple(f"kodim{i:02}.png" for i in range(1, 25)),
    layout="kodim01.png to kodim24.png",
    pictures=24,
)

_CELEBA = DataSet(
    name="celeba",
    home="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    terms="research that is not commercial; the photos are not the publishers'",
    # bytes and sha256 as in TensorFlow Datasets (datasets/celeb_a/checksums.tsv) and torchvision's prototype
    sources=(
        Source(
            "img_align_celeba.zip",
            (
                "https://s3.amazonaws.com/pytorch-tutorial-assets/img_align_celeba.zip",
                _DRIVE.format("0B7EVK8r0v71pZjFTYXZWM3FlRnM"),
            ),
            1_443_490_838,
            "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
        ),
        Source(
            "list_attr_celeba.txt",
            (
                _DRIVE.format("0B7EVK8r0v71pblRyaVFSWGxPY0U"),
                "https://drive.google.com/uc?export=download&id=0B7EVK8r0v71pblRyaVFSWGxPY0U",
            ),
            26_721_026,
            "f0e5da289d5ccf75ffe8811132694922b60f2af59256ed362afa03fefba324d0",
        ),
    ),
    build=layouts.celeba,
    needs=("img_align_celeba", "list_attr_celeba.txt"),
    layout="img_align_celeba/ and list_attr_celeba.txt",
    pictures=202_599,
)

_IMAGENET_SAMPLE = DataSet(
    name="imagenet_sample",
    home=f"https://github.com/{_SAMPLE}",
    terms="ImageNet's: research and teaching that are not commercial",
    # GitHub packs such an archive anew and promises only what is in it: no size, no checksum
    sources=(
        Source(
            "imagenet-sample-images.zip",
            (
                f"https://github.com/{_SAMPLE}/archive/{_SAMPLE_COMMIT}.zip",
                f"https://github.com/{_SAMPLE}/archive/refs/heads/master.zip",
            ),
        ),
    ),
    build=layouts.imagenet_sample,
    needs=("classes.csv",),
    layout="pictures and classes.csv with the columns index,synset,class_name,file",
    pictures=1000,
)

DATA_SETS = {data.name: data for data in (_FLICKR8K, _KODAK_SET, _CELEBA, _IMAGENET_SAMPLE)}
