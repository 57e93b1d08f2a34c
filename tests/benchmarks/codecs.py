"""Every image architecture of CompressAI under PSIC: does it work, and what do the triggers cost?

``python tests/benchmarks/codecs.py data/results/codecs.json`` writes what `psic_core.app.tables.codecs_table` shows.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from skimage import data, transform
from torch import Tensor
from tqdm import tqdm

from psic_core import bitstream
from psic_core.bitstream import ARCHITECTURES
from psic_core.codec import PSIC
from psic_core.lab.evaluate import write_json
from psic_core.models.compressai import build_backbone, default_sizes, scale_latents
from psic_core.models.entropy import SCALES
from psic_core.models.images import pad_to
from psic_core.training.checkpoints import provenance


def codec_table(
    names: Sequence[str] = ARCHITECTURES,
    sizes: Callable[[str], tuple[int, int]] = default_sizes,
    side: int = 160,
    rounds: int = 9,
) -> dict[str, Any]:
    """Wrap each architecture, compare it with CompressAI's own model of the same weights, and time its decoder.

    Times are those of one thread: with several, processor time is no time.

    Args:
        names: Architectures.
        sizes: N and M of each; CompressAI's smallest by default.
        side: Of the picture (scikit-image's astronaut, shrunk), in pixels.
        rounds: Of timing; medians are reported.

    Returns:
        ``rows``, one an architecture, with times in milliseconds of a processor, and how they were measured.
    """
    pixels = transform.resize(data.astronaut(), (side, side), anti_aliasing=True)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_row(name, *sizes(name), x, rounds) for name in tqdm(names, "codecs", leave=False, disable=None)]
    finally:
        torch.set_num_threads(threads)
    about = {"picture": f"astronaut, {side}x{side}", "weights": "random, seed 0", "rounds": rounds, "threads": 1}
    return about | {"rows": rows, "provenance": provenance()}


def _row(name: str, n: int, m: int, x: Float[Tensor, "1 3 height width"], rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    own = scale_latents(build_backbone(name, n, m).eval(), x)
    model = PSIC.wrap(copy.deepcopy(own)).eval()
    own.update(scale_table=SCALES, force=True)
    rate = model.coder.rate(model.config.quality)
    with torch.no_grad():
        coded = own.compress(pad_to(x, model.factor), **rate)
        plain = own.decompress(coded["strings"], coded["shape"], **rate)["x_hat"]
    plain = plain[..., : x.shape[-2], : x.shape[-1]]
    file = model.compress(x)
    stream = bitstream.unpack(file)
    y_hat, protected = model.latents(stream), model.decompress_tensor(file)
    condition = torch.zeros(model.config.dim)
    with torch.no_grad():
        without, with_triggers = _in_turns(
            [lambda: model.g_s.plain(y_hat), lambda: model.synthesize(y_hat, condition)], rounds
        )
        theirs, ours = _in_turns(
            [
                lambda: own.decompress(coded["strings"], coded["shape"], **rate),
                lambda: model.decompress_tensor(file),
            ],
            max(3, rounds // 3),
        )
    extra = with_triggers - without
    return {
        "architecture": name,
        "n": n,
        "m": m,
        "stages": len(model.g_s.stages),
        "parameters": sum(p.numel() for p in own.parameters()),
        "trigger_parameters": sum(p.numel() for p in model.g_s.triggers.parameters()),
        "wraps": model.config.architecture == name,
        "same_strings": stream.strings == tuple(string for (string,) in coded["strings"]),
        "zero_init_identical": torch.equal(protected, plain),
        "round_trips": bool((y_hat != 0).any()) and torch.equal(model.decompress_tensor(file), protected),
        "bytes": len(file),
        "synthesis_ms": without,
        "triggers_ms": extra,
        "triggers_percent_of_synthesis": 100 * extra / without,
        "decode_ms": theirs,
        "decode_psic_ms": ours,
        "triggers_percent_of_decode": 100 * extra / theirs,
    }


def _in_turns(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median milliseconds of processor time of each call, in turns: others on the machine do not count."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):  # the first warms up
        for k in range(len(calls)):
            k = (k + number) % len(calls)
            started = time.process_time()
            calls[k]()
            taken[k].append(1000 * (time.process_time() - started))
    return [statistics.median(times[1:]) for times in taken]


if __name__ == "__main__":
    write_json(codec_table(), sys.argv[1])
