"""How time and memory grow with the picture: from thumbnails to 24 megapixels, each in a process of its own.

``python tests/benchmarks/scaling.py data/results/scaling.json`` writes what `psic_core.app.tables.scaling_table` shows.
"""

import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data
from tqdm import tqdm

from psic_core import bitstream
from psic_core.codec import PSIC
from psic_core.lab.evaluate import write_json
from psic_core.metrics import psnr
from psic_core.models.images import to_pil, to_tensor
from psic_core.training.checkpoints import load_checkpoint, provenance

SIZES = (0.1, 0.4, 1.5, 4.0, 8.0, 24.0)  # megapixels


def photo(megapixels: float) -> Image.Image:
    """A photo of any size, 3:2, as busy as photos are: scikit-image's colour photographs side by side, mirrored on."""
    height = round(math.sqrt(megapixels * 1e6 / 1.5))
    width = round(height * 1.5)
    shots = [data.astronaut()[:400], data.coffee()[:, :512], data.rocket()[:400, :512]]
    mosaic = np.concatenate([np.concatenate([shot, shot[:, ::-1]], 1) for shot in shots])
    down, right = (-(-need // have) for need, have in zip((height, width), mosaic.shape[:2], strict=True))
    rows = np.concatenate([mosaic[:: 1 - 2 * (k % 2)] for k in range(down)])
    whole = np.concatenate([rows[:, :: 1 - 2 * (k % 2)] for k in range(right)], 1)
    return Image.fromarray(np.ascontiguousarray(whole[:height, :width]))


def scaling(
    checkpoint: str, sizes: Sequence[float] = SIZES, tile: int | None = None, seams: float = 4.0
) -> dict[str, Any]:
    """Encode and decode a picture of each size.

    Args:
        checkpoint: A file or a shipped name.
        sizes: In megapixels.
        tile: As for `PSIC.compress`.
        seams: Megapixels at which tiled coding is compared with whole; 0 leaves it out.

    Returns:
        ``rows`` (processor seconds, which others on the machine do not lengthen, seconds on the wall, peak resident
        memory in MB of the whole process, PSNR of the protected version in dB), ``growth``, the exponent of time over
        pixels (1 is linear), and ``seams``.

    Raises:
        ValueError: A size is not above zero.
    """
    if not sizes or min(sizes) <= 0:
        raise ValueError(f"sizes {list(sizes)}: they are megapixels, above 0")
    rows = [_alone(_measure, checkpoint, size, tile) for size in tqdm(sizes, "sizes", leave=False, disable=None)]
    report = {"checkpoint": checkpoint, "threads": torch.get_num_threads(), "rows": rows}
    large = [row for row in rows if row["megapixels"] >= 1]  # below, constant costs show
    if len(large) > 1:
        x = np.log([row["megapixels"] for row in large])
        report["growth"] = {
            name: float(np.polyfit(x, np.log([row[f"{name}_s"] for row in large]), 1)[0])
            for name in ("encode", "decode")
        }
    if seams:
        report["seams"] = _alone(_compare, checkpoint, seams, tile or 1024)
    return report | {"provenance": provenance()}


def _alone(job: Any, *args: Any) -> dict[str, Any]:
    """In a new process: peak memory never falls."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(job, *args, torch.get_num_threads()).result()


def _measure(checkpoint: str, megapixels: float, tile: int | None, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    model, image = load_checkpoint(checkpoint), photo(megapixels)
    _warm_up(model)
    begun = time.process_time(), time.perf_counter()
    file = model.compress(image, tile=tile)
    coded = time.process_time(), time.perf_counter()
    shown = model.decompress(file, tile=tile)
    done = time.process_time(), time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pixels = image.width * image.height
    return {
        "megapixels": pixels / 1e6,
        "width": image.width,
        "height": image.height,
        "encode_s": coded[0] - begun[0],
        "decode_s": done[0] - coded[0],
        "encode_wall_s": coded[1] - begun[1],
        "decode_wall_s": done[1] - coded[1],
        "peak_mb": peak / 1e6,
        "bpp": 8 * len(file) / pixels,
        "psnr": _psnr(shown, image),
    }


def _compare(checkpoint: str, megapixels: float, tile: int, threads: int) -> dict[str, Any]:
    """Tiled against whole, each against the original; and how much single values differ."""
    torch.set_num_threads(threads)
    model, image = load_checkpoint(checkpoint), photo(megapixels)
    report: dict[str, Any] = {"megapixels": image.width * image.height / 1e6, "tile": tile}
    files = [model.compress(image, tile=side) for side in (0, tile)]
    report["same_file"] = files[0] == files[1]
    for version, beta in (("protected", None), ("full", model.full_condition())):
        whole, cut = (_decoded(model, file, beta, side) for file, side in zip(files, (0, tile), strict=True))
        report[version] = {
            "psnr_whole": _psnr(whole, image),
            "psnr_tiled": _psnr(cut, image),
            "pixels_that_differ": float((np.asarray(whole) != np.asarray(cut)).any(-1).mean()),
            "largest_difference": int(np.abs(np.asarray(whole, np.int16) - np.asarray(cut, np.int16)).max()),
        }
    return report


def _decoded(model: PSIC, file: bytes, beta: torch.Tensor | None, tile: int) -> Image.Image:
    stream = bitstream.unpack(file)
    return to_pil(model.picture(model.latents(stream), stream, beta, tile))


def _warm_up(model: PSIC) -> None:
    model.decompress(model.compress(photo(0.01)))


def _psnr(one: Image.Image, two: Image.Image) -> float:
    return float(psnr(to_tensor(one), to_tensor(two)))


if __name__ == "__main__":
    write_json(scaling("psic-q2"), sys.argv[1])
