"""Objectives, triggers and rivals on equal terms: the methods, and what ``data/measure/ablate.py`` found of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from psic_core.lab.tasks import TASKS

TOLERANCE = 0.25  # dB beyond the end of a curve that its last point still stands for
SHIPPED = "psic-q3"  # without its triggers, the codec that every method starts from
_CODEC = {"trains": "codec", "learning_rate": 3e-4, "trigger_rate": 5.0}  # at 1e-3 the decoder itself diverges

Points = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Method:
    """A row of the comparison."""

    what: str
    strengths: tuple[float, ...]  # gamma; for PGD the PSNR in dB of the perturbed picture to the one before it
    train: Mapping[str, Any] = field(default_factory=dict)  # changes to how all others learn
    codec: Mapping[str, Any] = field(default_factory=dict)  # changes to the shipped model's configuration
    seeds: int = 3


METHODS = {
    "shipped": Method(f"{SHIPPED} as it ships, its triggers scaled", (0.5, 0.75, 1.0), seeds=1),
    "uaeo": Method("PSIC, UAEO as printed (Eq. 9)", (15, 30), {"direction": "i2t"}),
    "uaeo-both": Method("PSIC, UAEO in both directions", (15, 30)),
    "naive": Method("PSIC, naive: away from the own caption", (140, 280), {"objective": "naive"}),
    "random": Method("PSIC, a random caption as target", (30, 56), {"objective": "random_target"}),
    "authors": Method("PSIC, what the released code computes", (140, 280), {"objective": "authors"}, seeds=1),
    "additive": Method("PSIC, the paper's CLTG (Eq. 4): constants only", (15, 30), codec={"ladder": 0}),
    "moved": Method("PSIC, the attack trains the whole decoder", (15, 30), _CODEC, {"anchored": False}, seeds=1),
    "bavaft": Method("BAvAFT: a trigger in the input, encoder trained", (30, 60), {"learning_rate": 3e-3}),
    "pgd-before": Method("PGD on the photo, then the plain codec", (34, 30), seeds=1),
    "pgd-through": Method("PGD on the photo, gradients through the plain codec", (38, 35), seeds=1),
    "pgd-after": Method("PGD on the decoded picture: a bound, not a codec", (42, 39), seeds=1),
}


def read_points(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines, one a point: ``data/results/points.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plain_psnr(found: Points) -> float:
    """PSNR in dB of the plain codec on the bench's pictures."""
    return found[0]["psnr"]["plain"]


def curves(found: Points, method: str, tasks: Sequence[str] = TASKS) -> list[list[tuple[float, float]]]:
    """For each seed of a method: PSNR in dB against the plain codec, and success, mean over tasks; by rising PSNR."""
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for p in (p for p in found if p["method"] == method):
        level = p["psnr"]["protected"] - plain_psnr(found)
        by_seed.setdefault(p["seed"], []).append((level, fmean(p["asr"][t]["value"] for t in tasks)))
    return [sorted(along) for _, along in sorted(by_seed.items())]


def success(found: Points, method: str, level: float, tasks: Sequence[str] = TASKS) -> list[float]:
    """Attack success at one PSNR, a value for each seed that reaches it: linear between the seed's strengths.

    Args:
        found: From `read_points`.
        method: One of `METHODS`.
        level: PSNR of the protected version in dB.
        tasks: Whose mean.
    """
    level -= plain_psnr(found)
    reached = (c for c in curves(found, method, tasks) if c[0][0] - TOLERANCE <= level <= c[-1][0] + TOLERANCE)
    return [float(np.interp(level, *zip(*along, strict=True))) for along in reached]
