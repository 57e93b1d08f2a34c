"""Objectives, triggers and rivals on equal terms: the methods, and what ``data/measure/ablate.py`` found of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from psic_core.lab.tasks import TASKS

SHIPPED = "psic-q3"  # without its triggers, the codec that every method starts from
BUDGET = 4.0  # squared grey levels by which triggers may change what the reader sees: all methods cost about the same
_CODEC = {"trains": "codec", "learning_rate": 3e-4, "trigger_rate": 5.0, "gamma": 15}  # at 1e-3 the decoder diverges

Points = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Method:
    """A row of the comparison."""

    what: str
    train: Mapping[str, Any] = field(default_factory=dict)  # changes to how all others learn
    codec: Mapping[str, Any] = field(default_factory=dict)  # changes to the shipped model's configuration
    level: float = 0.0  # PGD: PSNR in dB of the perturbed picture to the one before it
    seeds: int = 3


METHODS = {
    "shipped": Method(f"{SHIPPED} as it ships, at this budget", seeds=1),
    "uaeo": Method("PSIC, UAEO as printed (Eq. 9)", {"direction": "i2t"}),
    "uaeo-both": Method("PSIC, UAEO in both directions"),
    "naive": Method("PSIC, naive: away from the own caption", {"objective": "naive"}),
    "random": Method("PSIC, a random caption as target", {"objective": "random_target"}),
    "additive": Method("PSIC, the paper's CLTG (Eq. 4): constants only", codec={"ladder": 0}),
    "moved": Method("PSIC, the attack trains the whole decoder", _CODEC, {"anchored": False, "budget": None}, seeds=1),
    "bavaft": Method("BAvAFT: a trigger in the input, encoder trained", {"learning_rate": 3e-3, "gamma": 30}),
    "pgd-before": Method("PGD on the photo, then the plain codec", level=30.0, seeds=1),
    "pgd-through": Method("PGD on the photo, gradients through the plain codec", level=35.0, seeds=1),
    "pgd-after": Method("PGD on the decoded picture: a bound, not a codec", level=40.0, seeds=1),
}


def read_points(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines, one a point: ``data/results/points.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def success(found: Points, method: str, tasks: Sequence[str] = TASKS) -> list[float]:
    """Attack success of a method, mean over tasks: a value for each seed, in [0, 1]."""
    return [fmean(p["asr"][t]["value"] for t in tasks) for p in found if p["method"] == method]


def decibels(found: Points, method: str) -> list[float]:
    """What protection costs: PSNR of the protected version minus the plain codec's in dB, for each seed."""
    return [p["psnr"]["protected"] - p["psnr"]["plain"] for p in found if p["method"] == method]
