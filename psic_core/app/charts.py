"""The paper's Fig. 3, 4 and 6 from the files in ``data/results``."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from psic_core.app.comparison_tables import NAMES as METHODS
from psic_core.app.comparison_tables import plain_psnr
from psic_core.app.figures import COLOURS, STYLE, against_rate
from psic_core.app.tables import NAMES, TASK_TITLES, Reports
from psic_core.lab.ablations import SWEEPS
from psic_core.lab.bench import TASKS
from psic_core.lab.frontier import curve, gap
from psic_core.lab.limits import LEVELS

DRAWN = ("original", "plain", "full", "protected")
NULLS = ("protected", "full", "jpeg", "noise")
PANELS = {
    ("flickr8k", "t2i"): "text→image, Flickr8k",
    ("flickr8k", "i2t"): "image→text, Flickr8k",
    ("imagenet", "classification"): "classes, ImageNet sample",
    ("celeba", "attributes"): "attributes, CelebA",
    ("scenes", "classification"): "classes, scenes",
    ("scenes", "attributes"): "attributes, scenes",
}
METHOD_COLOURS = dict(zip(METHODS, ["black", *plt.get_cmap("tab10").colors], strict=True))
SHIELDS = (COLOURS["protected"], "tab:blue", "tab:green")  # of models side by side
WHO = {"PSIC": "ours", "CompressAI": "theirs"}

Points = dict[str, list[tuple[float, float]]]


def performance(found: Reports, captions: Mapping[int, Mapping[str, Any]] | None = None) -> Figure:
    """Fig. 3: what the model reads of each version against the rate, R@1 or accuracy in percent.

    Args:
        found: From `psic_core.app.tables.reports`.
        captions: Of one data set, by quality: adds BLEU@4 and CIDEr.
    """
    panels: dict[str, Points] = {}
    for (name, task), title in PANELS.items():
        if name in found:
            rates = found[name].values()
            panels[f"{title} (%)"] = {v: [(r["bpp"], 100 * r["score"][task][v]) for r in rates] for v in DRAWN}
    for score, title in (("bleu4", "captions, BLEU@4"), ("cider", "captions, CIDEr")):
        if captions:
            rates = captions.values()
            panels[f"{title} (%)"] = {v: [(r["bpp"], 100 * r["scores"][v][score]) for r in rates] for v in DRAWN}
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
    """Fig. 4: PSNR, and MS-SSIM where measured, against the rate; on Kodak with CompressAI's curve.

    Args:
        report: As `psic_core.lab.rate_distortion.rate_distortion` gives it.
    """
    curves = {"plain": "plain", "full": "full", "protected": "protected"}
    points, panels = report["points"].values(), {}
    for key, title in (("psnr", "PSNR (dB)"), ("ms_ssim", "MS-SSIM")):
        if all(key in p["full"] for p in points):
            panels[title] = {v: [(p[c]["bpp"], p[c][key]) for p in points] for v, c in curves.items()}
    if "published" in report:
        published, top = report["published"], max(p["full"]["bpp"] for p in points)
        known = zip(published["bpp"], published["psnr"], strict=True)
        panels["PSNR (dB)"]["CompressAI, published"] = [(b, p) for b, p in known if b < 1.3 * top]
    return against_rate(panels, NAMES)


def frontier(points: Sequence[Mapping[str, Any]], methods: Sequence[str] | None = None) -> Figure:
    """Attack success against what the protection costs in decibels, a panel a task, with 95 % intervals.

    Args:
        points: As `psic_core.lab.comparison.read_points` gives them.
        methods: Whose curves are drawn (default: all that were swept); the other points are grey dots.
    """
    plain = plain_psnr(points)
    known = [m for m in methods or SWEEPS if any(p["method"] == m for p in points)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(8.6, 6.6), sharex=True)
        for ax, task in zip(axes.flat, TASKS, strict=True):
            dots = [(p["psnr"]["protected"] - plain, 100 * p["asr"][task]["value"]) for p in points
                    if p["method"] not in known]  # fmt: skip
            if dots and methods is None:
                ax.plot(*zip(*dots, strict=True), ".", c="0.75", label="one change each")
            for method in known:
                curve_points = sorted((p["psnr"]["protected"] - plain, *_bar(p["asr"][task])) for p in points
                               if p["method"] == method and not p["seed"])  # fmt: skip
                x, y, low, high = zip(*curve_points, strict=True)
                look = "--" if method.startswith("pgd") else "-"
                bars = {"yerr": (low, high), "elinewidth": 0.6, "ms": 3.5, "lw": 1.3, "marker": "o"}
                ax.errorbar(x, y, ls=look, label=METHODS[method], color=METHOD_COLOURS[method], **bars)
            ax.set_title(TASK_TITLES[task])
            ax.set_ylim(-3, 103)
        for ax in axes[1]:
            ax.set_xlabel("protected − plain (dB)")
        for ax in axes[:, 0]:
            ax.set_ylabel("attack success (%)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=8)
        figure.tight_layout(rect=(0, 0.03 + 0.03 * -(-len(labels) // 3), 1, 1))
    plt.close(figure)
    return figure


def changes(points: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Figure:
    """One change a row: the mean attack success over four tasks above the curve of UAEO at the same PSNR.

    Args:
        points: As for `frontier`.
        methods: The rows, from above; those that no point has are left out.
    """
    ours, rows = curve(points, "uaeo"), []
    for method in methods:
        for p in (p for p in points if p["method"] == method and not p["seed"]):
            found = gap(curve([p], method), ours, p["psnr"]["protected"], TASKS)
            if found:
                rows.append(
                    (f"{p['name']}  ({p['psnr']['protected'] - plain_psnr(points):+.2f} dB)", *_bar(found._asdict()))
                )
    names, values, low, high = zip(*rows, strict=True)
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7, 0.3 * len(rows) + 0.9))
        ax.axvline(0, c="0.6", lw=0.8)
        ax.errorbar(values, range(len(rows)), xerr=(low, high), fmt="o", ms=4, c=COLOURS["protected"])
        ax.set_yticks(range(len(rows)), names)
        ax.invert_yaxis()
        ax.set_xlabel("percentage points of attack success above UAEO both ways, at the same PSNR")
        figure.tight_layout()
    plt.close(figure)
    return figure


def limits(report: Mapping[str, Any], attacks: Sequence[str] | None = None) -> Figure:
    """Protection left against the attacker's effort: attacks from above in the threat model's order.

    Args:
        report: From `psic_core.lab.limits.run_limits`.
        attacks: Those to show; ``None``: all.
    """
    shown = [row for row in report["rows"] if attacks is None or row["attack"] in attacks]
    shown.sort(key=lambda row: list(LEVELS).index(row["level"]))
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8.4, 0.27 * len(shown) + 1.3))
        series = [("null: the same done to the plain codec's", "0.6", [row["null"]["mean"] for row in shown])]
        for model, colour in zip(report["models"], SHIELDS, strict=False):
            series.append((model, colour, [row["asr"][model]["mean"] for row in shown]))
        for aside, (name, colour, estimates) in enumerate(series, 1):
            x, low, high = zip(*map(_bar, estimates), strict=True)
            y = [k + 0.6 * (aside / (len(series) + 1) - 0.5) for k in range(len(shown))]
            ax.errorbar(x, y, xerr=(low, high), fmt="o", ms=3.5, lw=0.9, c=colour, label=name)
        for k, row in enumerate(shown):
            if k and row["level"] != shown[k - 1]["level"]:
                ax.axhline(k - 0.5, c="0.8", lw=0.8)
        ax.set_yticks(range(len(shown)), [row["attack"] for row in shown])
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.set_xlim(-2, 102)
        ax.set_xlabel("misread of what is read on the plain codec's picture (%), mean of four tasks")
        figure.legend(loc="upper center", ncols=len(series), fontsize=8)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    plt.close(figure)
    return figure


def _bar(estimate: Mapping[str, Any]) -> tuple[float, float, float]:
    """Value in percent, and the lengths of its bar down and up."""
    value, (low, high) = estimate["value"], estimate["ci95"]
    return 100 * value, 100 * (value - low), 100 * (high - value)


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
