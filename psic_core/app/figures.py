"""One look for every figure of the course."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

#: Each version keeps its colour through the whole course.
COLOURS = {
    "original": "#4d4d4d",
    "plain": "#8da0cb",
    "full": "#1b9e77",
    "protected": "#d95f02",
    "wrong keyword": "#e7298a",
    "jpeg": "#999999",
    "noise": "#a6761d",
}
SHIELDS = (COLOURS["protected"], "tab:blue", "tab:green")  # of models side by side
STYLE = {
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "image.interpolation": "nearest",
}


def strip(pictures: Mapping[str, Image.Image], notes: Mapping[str, str] | None = None, height: float = 2.6) -> Figure:
    """Pictures side by side, titled by their names, each with a note below.

    Args:
        pictures: Name to picture.
        notes: Name to text, for example what the model says.
        height: Of one picture, in inches.
    """
    notes = notes or {}
    widths = [p.width / p.height for p in pictures.values()]
    with plt.rc_context(STYLE):
        size = (height * sum(widths) + 0.2, height + 0.7)
        figure, axes = plt.subplots(1, len(pictures), figsize=size, width_ratios=widths, squeeze=False)
        for ax, (name, picture) in zip(axes[0], pictures.items(), strict=True):
            ax.imshow(picture)
            ax.set_title(name, color=COLOURS.get(name, "black"), fontweight="bold")
            ax.set_xlabel(notes.get(name, ""))
            ax.set_xticks([])
            ax.set_yticks([])
        figure.tight_layout()
    plt.close(figure)  # shown where it is returned, and only there
    return figure


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one height in a row, pixel for pixel: what an eye judges is not scaled."""
    row = Image.new("RGB", (sum(p.width + 4 for p in pictures) - 4, pictures[0].height), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + 4
    return row


def amplified_difference(a: Image.Image, b: Image.Image) -> Image.Image:
    """``a - b`` on grey, 8 times enlarged: grey means equal.

    Raises:
        ValueError: The sizes differ.
    """
    if a.size != b.size:
        raise ValueError(f"pictures of {a.size} and {b.size} have no difference; make them one size")
    delta = np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)
    return Image.fromarray(np.clip(128 + 8 * delta, 0, 255).astype(np.uint8))


def beliefs(probabilities: Mapping[str, Float[Tensor, " classes"]], classes: Sequence[str], top: int = 5) -> Figure:
    """What a model believes of each version: horizontal bars over the classes that any version ranks high.

    Args:
        probabilities: Version to class probabilities.
        classes: Their names.
        top: Classes shown of each version.
    """
    shown: list[int] = []
    for p in probabilities.values():
        shown += [i for i in p.argsort(descending=True)[:top].tolist() if i not in shown]
    rows = np.arange(len(shown))
    bar = 0.8 / len(probabilities)
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6.5, 0.32 * len(shown) + 0.9))
        for k, (name, p) in enumerate(probabilities.items()):
            ax.barh(rows + k * bar, p[shown].numpy(), bar, label=_plain_text(name), color=COLOURS.get(name))
        names = [_plain_text(textwrap.shorten(classes[i], 48, placeholder=" …")) for i in shown]
        ax.set_yticks(rows + 0.4 - bar / 2, names)
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.set_xlabel("probability")
        ax.legend()
        figure.tight_layout()
    plt.close(figure)
    return figure


def against_rate(panels: Mapping[str, Mapping[str, Sequence[tuple[Any, float]]]], axis: str = "bpp") -> Figure:
    """Curves over the rate, a panel a measure, in the layout of the paper's Fig. 3 and 4.

    Args:
        panels: Title to curve to its points ``(bits per pixel, value)``; a curve named as in `COLOURS` has its colour.
        axis: What stands below a panel; names instead of numbers stand there in their order.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.5 * rows), squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.axis("off")
        for ax, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            for name, points in curves.items():
                style = "--" if name == "original" else ":" if name in ("jpeg", "noise") else "-"
                width = 3.5 if name == "plain" else 1.5  # seen below the full version, which lies upon it
                ax.plot(*zip(*points, strict=True), style, marker="o", ms=3, lw=width, label=name, c=COLOURS.get(name))
            ax.set_title(title)
            ax.set_xlabel(axis)
        named: dict[str, Artist] = {}
        for ax in axes.flat:
            named |= {name: line for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), list(named), loc="lower center", ncols=len(named), fontsize=8)
        figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))  # the legend's line, below all panels
    plt.close(figure)
    return figure


def frontier(methods: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Attack success against what the protection costs in decibels: a dot for each seed of each method.

    Args:
        methods: Method to its seeds' points ``(dB against the plain codec, share)``.
    """
    colours = plt.get_cmap("tab20").colors
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
        for k, (method, points) in enumerate(methods.items()):
            x, y = zip(*points, strict=True)
            shape = "s" if method.startswith("pgd") else "o"
            ax.plot(x, [100 * v for v in y], shape, ms=5, alpha=0.8, color=colours[k % 20], label=method)
        ax.set(xlabel="protected − plain (dB)", ylabel="attack success, mean of four tasks (%)", ylim=(-3, 103))
        figure.legend(loc="outside right center", fontsize=8)
    plt.close(figure)
    return figure


def limits(report: Mapping[str, Any]) -> Figure:
    """Protection left after each attack of a report of ``data/measure/limits.py``, beside its null."""
    rows, models = report["rows"], report["models"]
    series = [("null: the same done to the plain codec's", "0.6", [row["null"]["mean"] for row in rows])]
    series += [(m, c, [row["asr"][m]["mean"] for row in rows]) for m, c in zip(models, SHIELDS, strict=False)]
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8.4, 0.27 * len(rows) + 1.3))
        for aside, (name, colour, estimates) in enumerate(series, 1):
            x = [100 * e["value"] for e in estimates]
            bars = [[100 * abs(e["value"] - e["ci95"][end]) for e in estimates] for end in (0, 1)]
            y = [k + 0.6 * (aside / (len(series) + 1) - 0.5) for k in range(len(rows))]
            ax.errorbar(x, y, xerr=bars, fmt="o", ms=3.5, lw=0.9, c=colour, label=name)
        for k, (before, row) in enumerate(pairwise(rows), 1):
            if row["level"] != before["level"]:
                ax.axhline(k - 0.5, c="0.8", lw=0.8)
        ax.set_yticks(range(len(rows)), [row["attack"] for row in rows])
        ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-2, 102))
        ax.set_xlabel("misread of what is read on the plain codec's picture (%), mean of four tasks")
        figure.legend(loc="upper center", ncols=len(series), fontsize=8)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    plt.close(figure)
    return figure


def _plain_text(text: str) -> str:
    """A reader's words for a figure: a dollar sign is one, and begins no formula."""
    return text.replace("$", r"\$")


def png(shown: Figure | Image.Image) -> bytes:
    """A figure or a picture as the bytes of a PNG file."""
    with io.BytesIO() as file:
        if isinstance(shown, Figure):
            shown.savefig(file)
        else:
            shown.save(file, "PNG")
        return file.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG; parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    return path
