"""The paper's Fig. 3 and 4 from the files in ``data/results``."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from psic_core.figures import against_rate
from psic_core.tables import NAMES, Reports

VERSIONS = ("original", "backbone", "full", "protected")
NULLS = ("protected", "full", "jpeg", "noise")
PANELS = {
    ("flickr8k", "t2i"): "text→image, Flickr8k",
    ("flickr8k", "i2t"): "image→text, Flickr8k",
    ("imagenet", "classification"): "classes, ImageNet sample",
    ("celeba", "attributes"): "attributes, CelebA",
    ("scenes", "classification"): "classes, scenes",
    ("scenes", "attributes"): "attributes, scenes",
}
WHO = {"PSIC": "ours", "CompressAI": "theirs"}

Points = dict[str, list[tuple[float, float]]]


def performance(found: Reports, captions: Mapping[int, Mapping[str, Any]] | None = None) -> Figure:
    """Fig. 3: what the model reads of each version against the rate, R@1 or accuracy in percent.

    Args:
        found: From `psic_core.tables.reports`.
        captions: Of one data set, by quality: adds BLEU@4 and CIDEr.
    """
    panels: dict[str, Points] = {}
    for (name, task), title in PANELS.items():
        if name in found:
            rates = found[name].values()
            panels[f"{title} (%)"] = {v: [(r["bpp"], 100 * r["score"][task][v]) for r in rates] for v in VERSIONS}
    for score, title in (("bleu4", "captions, BLEU@4"), ("cider", "captions, CIDEr")):
        if captions:
            rates = captions.values()
            panels[f"{title} (%)"] = {v: [(r["bpp"], 100 * r["scores"][v][score]) for r in rates] for v in VERSIONS}
    return against_rate(panels, NAMES)


def success(found: Reports) -> Figure:
    """Attack success in percent against the rate: protected, and the nulls at its PSNR."""
    panels: dict[str, Points] = {}
    for (name, task), title in PANELS.items():
        if name in found:
            rates = found[name].values()
            panels[f"ASR {title} (%)"] = {
                v: [(r["bpp"], _percent(r["asr"][task][v]["value"])) for r in rates] for v in NULLS
            }
    figure = against_rate(panels, NAMES)
    for ax in figure.axes:
        ax.set_ylim(-3, 103)  # a share: every panel on one scale
    return figure


def fidelity(report: Mapping[str, Any]) -> Figure:
    """Fig. 4: PSNR, and MS-SSIM and LPIPS where measured, against the rate; on Kodak with CompressAI's curve.

    Args:
        report: As `psic_core.rate_distortion.rate_distortion` gives it.
    """
    curves = {"backbone": "plain", "full": "full", "protected": "protected"}
    points, panels = report["points"].values(), {}
    for key, title in (("psnr", "PSNR (dB)"), ("ms_ssim", "MS-SSIM"), ("lpips", "LPIPS")):
        if all(key in p["full"] for p in points):
            panels[title] = {v: [(p[c]["bpp"], p[c][key]) for p in points] for v, c in curves.items()}
    if "published" in report:
        published, top = report["published"], max(p["full"]["bpp"] for p in points)
        known = zip(published["bpp"], published["psnr"], strict=True)
        panels["PSNR (dB)"]["CompressAI, published"] = [(b, p) for b, p in known if b < 1.3 * top]
    return against_rate(panels, NAMES)


def growth(speed: Mapping[str, Any]) -> Figure:
    """Seconds of each task beside CompressAI's plain model, over the picture's size or the batch's.

    Args:
        speed: What ``make bench`` wrote to ``PSIC_BENCH_OUT``.

    Raises:
        ValueError: It holds no measurement over sizes.
    """
    panels: dict[str, Points] = {}
    over: list[str] = []
    for task in dict.fromkeys(r["task"] for r in speed.values() if "task" in r):
        rows = [r for r in speed.values() if r.get("task") == task]
        axis = "megapixels" if "megapixels" in rows[0] else "batch"
        rows.sort(key=lambda r: r[axis])
        last = f"{rows[-1]['ratio']:.2f}"
        panels[f"{task} (s), ratio {last}"] = {w: [(r[axis], r[f"{k}_s"]) for r in rows] for w, k in WHO.items()}
        over.append(axis)
    if not panels:
        raise ValueError("no measurement over sizes among these: PSIC_BENCH_OUT=FILE make bench writes them")
    figure = against_rate(panels, {})
    for ax, axis in zip(figure.axes, over, strict=False):
        ax.set_xlabel(axis if axis == "megapixels" else "pictures of 128 × 128 in a batch")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)  # linear growth is a line through about 0
    return figure


def _percent(share: float | None) -> float:
    """In percent; NaN, which draws nothing, where nothing was right to begin with (null in the files)."""
    return float("nan") if share is None else 100 * share
