"""Rate against distortion over all rates, from real files; Bjøntegaard differences (the paper's Fig. 4)."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import bjontegaard
import numpy as np
from pytorch_msssim import ms_ssim
from tqdm import tqdm

from psic_core import bitstream, keys
from psic_core.codec import PSIC
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.versions import compress_plain
from psic_core.metrics import psnr
from psic_core.models.images import round_to_8_bits
from psic_core.training.checkpoints import provenance

CURVES = ("plain", "full", "sealed", "protected")  # sealed: the full version of a file that holds a keyword
SMALLEST = 161  # pixels a side that MS-SSIM's five scales need

#: CompressAI's own bmshj2018-hyperprior, MSE, Kodak, 8-bit pictures, qualities 1 to 8: its repository,
#: results/image/8bit-decoded/kodak/compressai-bmshj2018-hyperprior_mse_ans_cuda.json
PUBLISHED = {
    "bpp": (0.13129, 0.20889, 0.31986, 0.47836, 0.66869, 0.93883, 1.25917, 1.66022),
    "psnr": (27.578, 29.192, 30.964, 32.827, 34.509, 36.716, 38.543, 40.493),
}


def rate_distortion(pairs: Mapping[str, tuple[PSIC, PSIC]], data: EvalSet) -> dict[str, Any]:
    """Code every picture at every rate and compare the curves.

    Args:
        pairs: PSIC and plain codec by the name of the rate, in order of rate.
        data: From `psic_core.datasets.eval_sets.eval_set`.

    Returns:
        ``points[rate][curve]`` with ``bpp``, ``psnr`` (dB, mean over pictures), ``ms_ssim`` where pictures are large
        enough; ``bd_rate[curve]`` in percent and ``bd_psnr[curve]`` in dB
        against ``plain`` (None where fewer than two rates were coded, or the curves share no quality); JSON-ready.
    """
    points = {name: _points(model, plain, data) for name, (model, plain) in pairs.items()}
    curves = {c: {k: [p[c][k] for p in points.values()] for k in ("bpp", "psnr")} for c in CURVES}
    report = {"dataset": data.name, "n": data.size, "points": points}
    report["bd_rate"] = {c: bd_rate(curves["plain"], curves[c]) for c in CURVES[1:]}
    report["bd_psnr"] = {c: bd_psnr(curves["plain"], curves[c]) for c in CURVES[1:]}
    if data.name == "kodak":
        report["published"] = {k: list(v) for k, v in PUBLISHED.items()}
        report["bd_psnr"]["plain against published"] = bd_psnr(PUBLISHED, curves["plain"])
    return report | {"provenance": provenance()}


def bd_rate(anchor: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]]) -> float | None:
    """Bjøntegaard's mean difference of rate at equal PSNR, in percent; negative where ``test`` is cheaper.

    Args:
        anchor: ``bpp`` and ``psnr`` of the reference, at least two points.
        test: Likewise.
    """
    return _bd(bjontegaard.bd_rate, anchor, test, "psnr")


def bd_psnr(anchor: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]]) -> float | None:
    """Bjøntegaard's mean difference of PSNR at equal rate, in dB; arguments as in `bd_rate`."""
    return _bd(bjontegaard.bd_psnr, anchor, test, "bpp")


def table(report: Mapping[str, Any]) -> str:
    """A report as plain text."""
    lines = [f"{report['dataset']}: {report['n']} pictures"]
    for name, by in report["points"].items():
        shown = "  ".join(f"{c} {by[c]['bpp']:.3f} bpp {by[c]['psnr']:.2f} dB" for c in CURVES)
        lines.append(f"{name:10} {shown}")
    for key, unit in (("bd_rate", "%"), ("bd_psnr", "dB")):
        known = {c: v for c, v in report[key].items() if v is not None}
        lines += [f"{key} against plain: {c} {v:+.2f} {unit}" for c, v in known.items()]
    return "\n".join(lines)


def _points(model: PSIC, plain: PSIC, data: EvalSet) -> dict[str, dict[str, float]]:
    total: dict[str, dict[str, list[float]]] = {c: {"bpp": [], "psnr": [], "ms_ssim": []} for c in CURVES}
    for i in tqdm(range(data.size), desc=f"{data.name}, rate {model.config.quality}", mininterval=2):
        x = data.picture(i)[None]
        file = model.compress(x)
        plain_file = compress_plain(plain, x, model, file)
        stream = bitstream.unpack(file)
        y_hat = model.latents(stream)
        full = model.picture(y_hat, stream.size, model.full_condition())
        decoded = {
            "plain": (len(plain_file), plain.decompress_tensor(plain_file)),
            "full": (len(file), full),
            "sealed": (len(file) + bitstream.CHUNK_BYTES + keys.SLOT_BYTES, full),
            "protected": (len(file), model.picture(y_hat, stream.size, None)),
        }
        for curve, (size, picture) in decoded.items():
            picture = round_to_8_bits(picture)
            total[curve]["bpp"].append(8 * size / (x.shape[-1] * x.shape[-2]))
            total[curve]["psnr"].append(min(psnr(picture, x), 100.0))
            if min(x.shape[-2:]) >= SMALLEST:
                total[curve]["ms_ssim"].append(float(ms_ssim(picture, x, data_range=1.0)))
    return {c: {k: fmean(v) for k, v in by.items() if v} for c, by in total.items()}


def _bd(measure: Any, anchor: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]], shared: str) -> Any:
    if min(len(anchor["bpp"]), len(test["bpp"])) < 2:
        return None
    if max(min(anchor[shared]), min(test[shared])) >= min(max(anchor[shared]), max(test[shared])):
        return None  # no quality, or no rate, that both reach
    curves = [np.asarray(c[k]) for c in (anchor, test) for k in ("bpp", "psnr")]
    return float(measure(*curves, method="akima", require_matching_points=False, min_overlap=0))
