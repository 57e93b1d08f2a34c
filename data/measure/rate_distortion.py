"""Rate against distortion over all rates, from real files (the paper's Fig. 4).

python data/measure/rate_distortion.py --dataset kodak --json data/results/rd-kodak.json
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import tyro
from PIL import Image
from pytorch_msssim import ms_ssim
from torch import Tensor
from tqdm import tqdm

from psic_core.app.tables import rd_table
from psic_core.codec import PSIC
from psic_core.datasets import DataSet
from psic_core.datasets.eval_sets import EvalSet, eval_set
from psic_core.lab.evaluate import write_json
from psic_core.lab.versions import Coded, code_versions
from psic_core.metrics import bd_psnr, bd_rate, psnr, ssimulacra2
from psic_core.models.images import round_to_8_bits, to_pil, to_tensor
from psic_core.training.checkpoints import load_checkpoint, provenance

CURVES = ("plain", "full", "protected")
#: What pictures are shared as: Pillow's options, and qualities whose rates reach over those of the four models.
RIVALS = {"jpeg": ({"optimize": True}, (8, 15, 25, 40, 60)), "webp": ({"method": 6}, (2, 12, 30, 50, 75))}
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
        ``points[rate][curve]`` with ``bpp``, ``psnr`` (dB, mean over pictures), ``ssimulacra2``, ``ms_ssim`` where
        pictures are large enough, and ``ldr_flip`` where its package is installed; ``rivals[codec]``, a list of such
        points, of `RIVALS`; ``bd_rate[curve]`` in percent and ``bd_psnr[curve]`` in dB against ``plain`` (None where
        fewer than two rates were coded, or the curves share no quality), and ``plain`` against the rivals and
        CompressAI's published curve; JSON-ready.
    """
    points = {name: _points(model, plain, data) for name, (model, plain) in pairs.items()}
    curves = {c: _curve([p[c] for p in points.values() if c in p]) for c in CURVES}
    report = {"dataset": data.name, "n": data.size, "points": points}
    report["rivals"] = {name: [_coded(name, q, data) for q in qualities] for name, (_, qualities) in RIVALS.items()}
    report["bd_rate"] = {c: bd_rate(curves["plain"], curves[c]) for c in CURVES[1:]}
    report["bd_psnr"] = {c: bd_psnr(curves["plain"], curves[c]) for c in CURVES[1:]}
    anchors = {name: _curve(found) for name, found in report["rivals"].items()}
    if data.name == "kodak":
        anchors["published"] = report["published"] = {k: list(v) for k, v in PUBLISHED.items()}
    report["bd_psnr"] |= {f"plain against {name}": bd_psnr(curve, curves["plain"]) for name, curve in anchors.items()}
    return report | {"provenance": provenance()}


def _points(model: PSIC, plain: PSIC, data: EvalSet) -> dict[str, dict[str, float]]:
    """Every curve's point of one rate; a codec without triggers has one curve."""
    total: dict[str, list[dict[str, float]]] = {c: [] for c in (CURVES if model.kind == "psic" else CURVES[:1])}
    for i in tqdm(range(data.size), desc=f"{data.name}, rate {model.config.quality}", mininterval=2):
        x = data.picture(i)[None]
        if model.kind == "psic":
            coded = code_versions(model, plain, x, model.secret, versions=CURVES)
        else:
            coded = Coded({"plain": plain.decompress_tensor(file := plain.compress(x))}, 0, len(file))
        for curve, found in total.items():
            size = coded.plain_bytes if curve == "plain" else coded.psic_bytes
            equal = curve == "full" and size == coded.plain_bytes and torch.equal(*map(coded.pictures.get, CURVES[:2]))
            found.append(total["plain"][-1] if equal else _judged(size, coded.pictures[curve], x))
    return {curve: _mean(found) for curve, found in total.items()}


def _coded(name: str, quality: int, data: EvalSet) -> dict[str, float]:
    """One of `RIVALS` at one quality."""
    found = []
    for x in tqdm((data.picture(i)[None] for i in range(data.size)), f"{name} {quality}", data.size, mininterval=2):
        to_pil(x).save(file := io.BytesIO(), name, quality=quality, **RIVALS[name][0])
        found.append(_judged(file.tell(), to_tensor(Image.open(file)), x))
    return _mean(found)


def _judged(size: int, x_hat: Tensor, x: Tensor) -> dict[str, float]:
    """What a file of so many bytes costs and shows."""
    x_hat = round_to_8_bits(x_hat)
    point = {
        "bpp": 8 * size / x[0, 0].numel(),
        "psnr": min(psnr(x_hat, x), 100.0),
        "ssimulacra2": ssimulacra2(x_hat, x),
    }
    if min(x.shape[-2:]) >= SMALLEST:
        point["ms_ssim"] = float(ms_ssim(x_hat, x, data_range=1.0))
    if find_spec("flip_evaluator"):
        point["ldr_flip"] = ldr_flip(x_hat, x)
    return point


def ldr_flip(x_hat: Tensor, x: Tensor) -> float:
    """FLIP (Andersson et al., HPG 2020): what eyes see where two pictures alternate; 0, they are equal, to 1.

    The mean over pixels, of which 67 fill a degree of view.
    """
    from flip_evaluator import evaluate

    reference, test = (p[0].permute(1, 2, 0).contiguous().numpy() for p in (x, x_hat))
    return float(evaluate(reference, test, "LDR", applyMagma=False)[1])


def _mean(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {k: fmean(p[k] for p in points) for k in points[0]}


def _curve(points: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {k: [p[k] for p in points] for k in ("bpp", "psnr")}


@dataclass(frozen=True)
class RateDistortion:
    """Compare rate and distortion of several rates, with Bjontegaard differences."""

    dataset: DataSet  # kodak is the usual one
    json: Path  # the report
    checkpoints: tuple[str, ...] = ("psic-q1", "psic-q2", "psic-q3", "psic-q4")  # in the order of their rates
    data_root: str | None = None  # of the data sets (PSIC_DATA_ROOT)
    limit: int | None = None  # the first so many pictures

    def run(self) -> None:
        """Code, write and print."""
        pairs = {n: (load_checkpoint(n), load_checkpoint(n, plain=True)) for n in self.checkpoints}
        report = rate_distortion(pairs, eval_set(self.dataset, self.data_root, self.limit))
        write_json(report, self.json)
        print(rd_table(report))


if __name__ == "__main__":
    tyro.cli(RateDistortion).run()
