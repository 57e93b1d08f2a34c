"""Curves, not points: attack success against the protected version's PSNR, compared at equal PSNR."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from psic_core.lab.evaluate import unpack_flips
from psic_core.metrics import Estimate, Flips

TOLERANCE = 0.25  # dB beyond the end of a curve that its last point still stands for
RESAMPLES = 1000


class CurvePoint(NamedTuple):
    """One strength of a method: its PSNR, and the counts of each of its seeds."""

    psnr: float  # dB of the protected version, mean over pictures and seeds
    seeds: tuple[Mapping[str, Flips], ...]  # by task


class Curve(NamedTuple):
    """A method at several strengths, by rising PSNR."""

    method: str
    points: tuple[CurvePoint, ...]

    @property
    def seeds(self) -> int:
        """The most seeds that one of its strengths has."""
        return max(len(point.seeds) for point in self.points)


def curve(points: Sequence[Mapping[str, Any]], method: str) -> Curve:
    """A method's points of `comparison.read_points` as a curve.

    Raises:
        ValueError: It has none.
    """
    by_strength: dict[float, list[Mapping[str, Any]]] = {}
    for p in points:
        if p["method"] == method:
            by_strength.setdefault(p["strength"], []).append(p)
    if not by_strength:
        raise ValueError(f"no point of {method!r}; run psic ablate {method}")
    along = []
    for found in by_strength.values():
        flips = tuple({t: unpack_flips(f) for t, f in p["flips"].items()} for p in found)
        along.append(CurvePoint(fmean(p["psnr"]["protected"] for p in found), flips))
    return Curve(method, tuple(sorted(along, key=lambda k: k.psnr)))


def success(curve: Curve, level: float, tasks: Sequence[str]) -> Estimate | None:
    """Attack success at a protected PSNR, mean over tasks: linear between the curve's points.

    Args:
        curve: Of a method.
        level: dB.
        tasks: One or more of `bench.TASKS`.

    Returns:
        With a 95 % bootstrap interval over pictures; ``n`` sums the denominators of the nearest point. ``None`` where
        the curve ends more than `TOLERANCE` before the level.
    """
    rates = _rates(curve, level, tasks, _drawn(curve))
    return None if rates is None else _interval(rates, _denominator(curve, level, tasks))


def gap(one: Curve, other: Curve, level: float, tasks: Sequence[str]) -> Estimate | None:
    """``one`` minus ``other`` at a protected PSNR, on the same resampled pictures; as `success`."""
    drawn = _drawn(one)
    a, b = (_rates(c, level, tasks, drawn) for c in (one, other))
    return None if a is None or b is None else _interval(a - b, _denominator(one, level, tasks))


def spread(curve: Curve, tasks: Sequence[str]) -> float | None:
    """The standard deviation over seeds of the mean attack success, pooled over strengths with several seeds.

    In [0, 1]; what training again changes, where the pictures' interval says what other pictures would.
    """
    parts = []
    for point in curve.points:
        if len(point.seeds) > 1:
            rates = torch.tensor([fmean(_whole(f[t]) for t in tasks) for f in point.seeds], dtype=torch.float64)
            parts.append(float(rates.var()))
    return fmean(parts) ** 0.5 if parts else None


def common_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """The PSNR in dB that all curves reach; empty (low above high) where they share nothing."""
    return max(c.points[0].psnr for c in curves), min(c.points[-1].psnr for c in curves)


# --- inside -------------------------------------------------------------------------------------------


def _drawn(curve: Curve) -> Tensor:
    """Pictures for each resample; the first row draws each once, so that its rate is the rate itself."""
    n = len(next(iter(curve.points[0].seeds[0].values())).right)
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.arange(n)[None], drawn])


def _weights(curve: Curve, level: float) -> list[tuple[CurvePoint, float]] | None:
    points = curve.points
    if level <= points[0].psnr or level >= points[-1].psnr:
        end = points[0] if level <= points[0].psnr else points[-1]
        return [(end, 1.0)] if abs(level - end.psnr) <= TOLERANCE else None
    k = next(i for i, point in enumerate(points) if point.psnr >= level)
    share = (level - points[k - 1].psnr) / (points[k].psnr - points[k - 1].psnr)
    return [(points[k - 1], 1 - share), (points[k], share)]


def _rates(curve: Curve, level: float, tasks: Sequence[str], drawn: Tensor) -> Float[Tensor, " resamples"] | None:
    weights = _weights(curve, level)
    if weights is None:
        return None
    total = torch.zeros(len(drawn), dtype=torch.float64)
    for point, weight in weights:
        for flips in point.seeds:
            for task in tasks:
                part = flips[task].flipped[drawn].sum(1) / flips[task].right[drawn].sum(1)
                total += weight * part / (len(point.seeds) * len(tasks))
    return total


def _interval(rates: Float[Tensor, " resamples"], n: int) -> Estimate:
    low, high = torch.nanquantile(rates[1:], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(rates[0]), (low, high), n)


def _denominator(curve: Curve, level: float, tasks: Sequence[str]) -> int:
    nearest = min(curve.points, key=lambda k: abs(k.psnr - level))
    return sum(int(nearest.seeds[0][t].right.sum()) for t in tasks)


def _whole(flips: Flips) -> float:
    return float(flips.flipped.sum() / flips.right.sum())
