"""The tasks, end to end, to one JSON: fidelity, rate, and what a target makes of each version."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from psic_core.checkpoints import provenance
from psic_core.codec import PSIC
from psic_core.eval_sets import EvalSet
from psic_core.metrics import Flips, count_flips, flip_rate, psnr
from psic_core.targets import Target
from psic_core.tasks import task_results
from psic_core.versions import VERSIONS, code_versions

NULLS = ("protected", "full", "jpeg", "noise", "wrong_key")  # the rows of every ASR table


def evaluate(model: PSIC, plain: PSIC, data: EvalSet, target: Target) -> dict[str, Any]:
    """Measure one checkpoint on one data set.

    Args:
        model: PSIC, with its secret.
        plain: The plain codec of the same rate.
        data: From `eval_set`.
        target: The model that reads the pictures.

    Returns:
        ``n``, ``bpp``, ``bpp_backbone``, ``psnr``, ``score[task][version]``, ``asr[task][version]`` with value, 95 %
        interval and denominator, ``flips[task][version]`` as `pack_flips` writes them; JSON-ready.
    """
    model.full_condition()
    features: dict[str, list[Tensor]] = {v: [] for v in VERSIONS}
    fidelity: dict[str, list[float]] = {v: [] for v in VERSIONS if v != "original"}
    rates: dict[str, list[float]] = {"bpp": [], "bpp_backbone": []}
    for i in tqdm(range(data.size), desc=f"{data.name} on {target.name}", mininterval=2):
        x = data.picture(i)[None]
        coded = code_versions(model, plain, x, model.secret, seed=i)
        seen = _read(target, coded.pictures)
        for version, picture in coded.pictures.items():
            features[version].append(seen[version])
            if version != "original":
                fidelity[version].append(min(psnr(picture, x), 100.0))
        pixels = x.shape[-1] * x.shape[-2]
        rates["bpp"].append(8 * coded.psic_bytes / pixels)
        rates["bpp_backbone"].append(8 * coded.backbone_bytes / pixels)
    correct = task_results({v: torch.stack(f) for v, f in features.items()}, data, target)
    flips = {
        task: {v: count_flips(by["backbone"], by[v], groups) for v in NULLS} for task, (by, groups) in correct.items()
    }
    return {
        "dataset": data.name,
        "target": target.name,
        "n": data.size,
        **{name: fmean(values) for name, values in rates.items()},
        "psnr": {version: fmean(values) for version, values in fidelity.items()},
        "score": {task: {v: float(c.float().mean()) for v, c in by.items()} for task, (by, _) in correct.items()},
        "asr": {task: {v: flip_rate([f])._asdict() for v, f in by.items()} for task, by in flips.items()},
        "flips": {task: {v: pack_flips(f) for v, f in by.items()} for task, by in flips.items()},
        "provenance": provenance(),
    }


def table(report: Mapping[str, Any]) -> str:
    """A report as plain text: fidelity, then ASR with intervals, versions in columns."""
    lines = [
        f"{report['dataset']}: {report['n']} pictures, target {report['target']}, {report['bpp']:.3f} bpp"
        f" (plain codec {report['bpp_backbone']:.3f})",
        "PSNR dB   " + "  ".join(f"{v} {p:.2f}" for v, p in report["psnr"].items()),
    ]
    for task, scores in report["score"].items():
        shown = "  ".join(f"{v} {100 * scores[v]:.1f}" for v in ("original", "backbone", "full", "protected"))
        lines.append(f"{task:15} score %  {shown}")
        for version, e in report["asr"][task].items():
            low, high = e["ci95"]
            value = f"{100 * e['value']:5.1f} [{100 * low:5.1f}, {100 * high:5.1f}]"
            lines.append(f"{'':15} ASR %    {version:10} {value}  of {e['n']}")
    return "\n".join(lines)


def write_json(report: Mapping[str, Any], path: str | Path) -> None:
    """Write a report; NaN becomes null, which JSON knows."""
    text = json.dumps(_no_nan(report), indent=1, allow_nan=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _no_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@torch.no_grad()
def _read(target: Target, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    batch = torch.cat([pictures[v] for v in VERSIONS]).to(target.mean.device)
    return dict(zip(VERSIONS, target.encode_image(batch).cpu(), strict=True))


def pack_flips(flips: Flips) -> dict[str, str]:
    """Counts up to 255 a picture as hexadecimal text, two digits a picture."""
    return {name: bytes(counts.to(torch.uint8).tolist()).hex() for name, counts in flips._asdict().items()}


def unpack_flips(packed: Mapping[str, str]) -> Flips:
    """What `pack_flips` wrote."""
    return Flips(**{n: torch.tensor(list(bytes.fromhex(t)), dtype=torch.float64) for n, t in packed.items()})
