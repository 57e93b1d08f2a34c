"""Bjøntegaard's differences of two rate-distortion curves (the paper's Fig. 4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import bjontegaard
import numpy as np


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


def _bd(measure: Any, anchor: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]], shared: str) -> Any:
    if min(len(anchor["bpp"]), len(test["bpp"])) < 2:
        return None
    if max(min(anchor[shared]), min(test[shared])) >= min(max(anchor[shared]), max(test[shared])):
        return None  # no quality, or no rate, that both reach
    curves = [np.asarray(c[k]) for c in (anchor, test) for k in ("bpp", "psnr")]
    return float(measure(*curves, method="akima", require_matching_points=False, min_overlap=0))
