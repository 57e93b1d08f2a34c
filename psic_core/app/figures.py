"""One look for every figure of the course."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from PIL import Image, ImageOps
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
        figure, axes = plt.subplots(
            1,
            len(pictures),
            figsize=(height * sum(widths) + 0.2, height + 0.7),
            width_ratios=widths,
            squeeze=False,
        )
        for ax, (name, picture) in zip(axes[0], pictures.items(), strict=True):
            ax.imshow(picture)
            ax.set_title(name, color=COLOURS.get(name, "black"), fontweight="bold")
            ax.set_xlabel(notes.get(name, ""))
            ax.set_xticks([])
            ax.set_yticks([])
        figure.tight_layout()
    plt.close(figure)  # shown where it is returned, and only there
    return figure


def beside(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Pictures of one height in a row, pixel for pixel: what an eye judges is not scaled."""
    row = Image.new("RGB", (sum(p.width + gap for p in pictures) - gap, pictures[0].height), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def amplified_difference(a: Image.Image, b: Image.Image, gain: float = 8) -> Image.Image:
    """``a - b`` on grey, ``gain`` times enlarged: grey means equal.

    Raises:
        ValueError: The sizes differ.
    """
    if a.size != b.size:
        raise ValueError(f"pictures of {a.size} and {b.size} have no difference; make them one size")
    delta = np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)
    return Image.fromarray(np.clip(128 + gain * delta, 0, 255).astype(np.uint8))


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
            ax.barh(rows + k * bar, p[shown].numpy(), bar, label=name, color=COLOURS.get(name))
        ax.set_yticks(rows + 0.4 - bar / 2, [classes[i] for i in shown])
        ax.invert_yaxis()
        ax.set_xlabel("probability")
        ax.legend()
        figure.tight_layout()
    plt.close(figure)
    return figure


def reading(probabilities: Mapping[str, Float[Tensor, " prompts"]], prompts: Sequence[str]) -> Figure:
    """`beliefs` over all of a reader's prompts, on one scale from 0 to 1 whatever the picture."""
    names = [plain_text(textwrap.shorten(p, 48, placeholder=" …")) for p in prompts]
    figure = beliefs({plain_text(v): p for v, p in probabilities.items()}, names, top=len(names))
    figure.axes[0].set_xlim(0, 1)
    return figure


def answers(rows: Mapping[str, Sequence[tuple[str, Image.Image]]], marked: str, side: float = 1.15) -> Figure:
    """Search results, best first: one row of named pictures a gallery; the picture ``marked`` is framed.

    Args:
        rows: Name of the gallery to its answers.
        marked: Name of the picture that was searched for.
        side: Of one picture, in inches.
    """
    columns = max(map(len, rows.values()))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows), columns, figsize=(columns * side + 0.9, len(rows) * (side + 0.3)), squeeze=False
        )
        for line, (gallery, found) in zip(axes, rows.items(), strict=True):
            for ax in line[len(found) :]:
                ax.axis("off")
            line[0].set_ylabel(gallery.replace(" ", "\n"), rotation=0, ha="right", va="center", fontweight="bold")
            for place, (ax, (name, picture)) in enumerate(zip(line, found, strict=False), start=1):
                ax.imshow(ImageOps.fit(picture, (min(picture.size),) * 2))  # the middle, which a target reads
                ax.set_title(f"{place} {plain_text(textwrap.shorten(name, 16, placeholder='…'))}", fontsize=8)
                ax.set_xticks([])
                ax.set_yticks([])
                ax.spines[:].set(visible=name == marked, linewidth=4, color=COLOURS["protected"])
        figure.tight_layout()
    plt.close(figure)
    return figure


def against_rate(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    names: Mapping[str, str],
    columns: int = 3,
    rate: str = "bpp",
) -> Figure:
    """Curves over the rate, a panel a measure, in the layout of the paper's Fig. 3 and 4.

    Args:
        panels: Title to curve to its points ``(bits per pixel, value)``; a curve named as in `COLOURS` has its colour.
        names: What the legend calls a curve, where not by its name.
        columns: Panels side by side.
        rate: What the horizontal axis says.
    """
    columns = min(columns, len(panels))
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
            ax.set_xlabel(rate)
        named: dict[str, Artist] = {}
        for ax in axes.flat:
            named |= {name: line for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(
            named.values(), [names.get(name, name) for name in named], loc="lower center", ncols=len(named), fontsize=8
        )
        figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))  # the legend's line, below all panels
    plt.close(figure)
    return figure


def plain_text(text: str) -> str:
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
