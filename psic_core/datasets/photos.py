"""Photographs of mixed sizes as random crops: what a codec learns from."""

import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.contrib.concurrent import thread_map

from psic_core.config import data_dir
from psic_core.datasets.folders import Folder, read_rows
from psic_core.models.images import load_image

HELD_OUT = 10  # one photo in so many is kept from training
SCIKIT = {
    "cat": ("chelsea", "cat"),
    "coffee": ("coffee", "cup of coffee"),
    "rocket": ("rocket", "rocket"),
    "motorcycle": ("stereo_motorcycle", "motorcycle"),
}  # name -> function of skimage.data, and what the photo shows


def held_out(path: Path) -> bool:
    """Whether a photo of a training folder is kept for evaluation.

    One in ten, by a hash of the file's name, and those that ship as the demo's (``data/photos``).
    """
    return zlib.crc32(path.name.encode()) % HELD_OUT == 0 or path.name in _shipped()


@cache
def _shipped() -> frozenset[str]:
    """The names that the demo's photos have in the training folder."""
    return frozenset(row["training_name"] for row in read_rows(data_dir() / "photos" / "SOURCES.csv"))


def demo_photos() -> dict[str, tuple[Image.Image, str]]:
    """The demo's ten photographs at native size: name -> picture and the name of what it shows.

    Four come with scikit-image, six lie in ``data/photos``. No shield was trained on any of them.
    """
    import skimage.data  # here, because nothing but the notebooks needs it

    found = {}
    for name, (function, shows) in SCIKIT.items():
        pixels = getattr(skimage.data, function)()
        found[name] = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels), shows
    folder = data_dir() / "photos"
    for row in read_rows(folder / "SOURCES.csv"):
        found[Path(row["file"]).stem] = load_image(folder / row["file"]), row["shows"]
    return found


def random_squares(root: Path, size: int, each: int = 7) -> UInt8[Tensor, "n 3 size size"]:
    """Random squares of a folder's training photos, mirrored at random: pixels as sharp as readers of photos see.

    Args:
        root: Folder of photographs; one in ten is left out, see `held_out`.
        size: Side in pixels; a square is 45 to 100 % of the photo's shorter side, scaled to it.
        each: Squares a photo. With seven, 950 photos weigh as much as Flickr8k's training split.

    Raises:
        FileNotFoundError: No such folder, or no pictures in it.
    """
    rng, found = np.random.default_rng(7), []
    for picture in (load_image(file) for file in Folder(root).files if not held_out(file)):
        for _ in range(each):
            side = int(min(picture.size) * rng.uniform(0.45, 1))
            left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
            found.append(_cut(picture, (left, top, left + side, top + side), size, rng))
    return torch.stack(found)


def _cut(
    picture: Image.Image, box: tuple[int, int, int, int], size: int, rng: np.random.Generator
) -> UInt8[Tensor, "3 size size"]:
    """A box of a picture, scaled to a square, mirrored at random."""
    image = picture.resize((size, size), Image.Resampling.BICUBIC, box)
    pixels = np.asarray(image)[:, :: rng.choice((-1, 1))]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class Photos(Dataset):
    """Batches of random crops, scaled down by a random factor, mirrored at random.

    Pictures are decoded once and kept (2 MB for each half megapixel); the workers of the loader share them. Batch
    ``step`` follows from the seed and ``step`` alone, so that a run can be resumed anywhere.

    Args:
        root: Folder of photographs, searched recursively; one in ten is left out, see `held_out`.

    Raises:
        FileNotFoundError: No such folder, or no pictures in it.
    """

    SMALLEST = 0.5  # scale; training photos are scaled-down originals with JPEG's traces, which scaling again removes

    def __init__(self, root: str | Path) -> None:
        self.files = [file for file in Folder(root).files if not held_out(file)]
        self.pictures: list[Image.Image] = []
        self.batch_size, self.crop, self.seed = 8, 256, 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, step: int) -> UInt8[Tensor, "batch 3 crop crop"]:
        """The crops of one training step."""
        epoch, position = divmod(step * self.batch_size, len(self))
        rng = np.random.default_rng((self.seed, step))
        orders = [np.random.default_rng((self.seed, 2**32 + epoch + k)).permutation(len(self)) for k in (0, 1)]
        chosen = np.resize(np.concatenate(orders)[position:], self.batch_size)
        return torch.stack([self._crop(self.pictures[i], rng) for i in chosen])

    def _crop(self, picture: Image.Image, rng: np.random.Generator) -> UInt8[Tensor, "3 crop crop"]:
        side = min(round(self.crop / rng.uniform(self.SMALLEST, 1)), *picture.size)
        left, top = (int(rng.integers(size - side + 1)) for size in picture.size)
        return _cut(picture, (left, top, left + side, top + side), self.crop, rng)

    def batches(
        self, batch_size: int, crop: int, seed: int, steps: range, workers: int
    ) -> Iterator[UInt8[Tensor, "batch 3 crop crop"]]:
        """The batches of some steps, made ahead of time.

        Args:
            batch_size: Crops a batch.
            crop: Side of a crop in pixels. A photo that is smaller is scaled up.
            seed: Of everything drawn.
            steps: Which batches.
            workers: Processes; one makes about 400 crops of 256 pixels a second. 0 works in this process.
        """
        if not self.pictures:
            self.pictures = thread_map(load_image, self.files, desc="photos", disable=None)
        self.batch_size, self.crop, self.seed = batch_size, crop, seed
        options = {"num_workers": workers, "pin_memory": torch.cuda.is_available()}
        options |= {"prefetch_factor": 4} if workers else {}
        return iter(DataLoader(self, batch_size=None, sampler=steps, **options))
