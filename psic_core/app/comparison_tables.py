"""What `psic ablate` found, as tables: methods at equal PSNR, the paper's two claims, one change at a time."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from psic_core.app.tables import interval, markdown
from psic_core.lab.ablations import SWEEPS, VARIANTS, point
from psic_core.lab.bench import TASKS
from psic_core.lab.frontier import curve, gap, spread, success
from psic_core.lab.limits import LEVELS
from psic_core.metrics import Estimate

Points = Sequence[Mapping[str, Any]]

OFFSETS = (-0.75, -1.0)  # dB of the protected version against the plain codec's picture
NAMES = {
    "shipped": "psic-q2 as it ships",
    "i2t": "PSIC, UAEO as printed (Eq. 9)",
    "uaeo": "PSIC, UAEO both ways",
    "naive": "PSIC, naive",
    "random": "PSIC, random target",
    "authors": "PSIC, released code",
    "literal": "PSIC, nothing masked",
    "bavaft": "BAvAFT",
    "pgd-before": "PGD, then the codec",
    "pgd-through": "PGD through the codec",
    "pgd-after": "PGD after decoding",
}
#: the paper's text (Sec. 4.2, 4.3): percentage points of attack success, and over which tasks
CLAIMS = (("naive", ("t2i",), 6.3), ("naive", ("i2t",), 6.2), ("bavaft", TASKS, 12.9))
UAEO = ("i2t", "uaeo")  # both readings of Eq. 9


def plain_psnr(points: Points) -> float:
    """PSNR in dB of the plain codec on the bench's pictures: that of an anchored model's full version."""
    return next(p["psnr"]["full"] for p in points if p["method"] == "uaeo")


def frontier_table(points: Points, level: float) -> str:
    """Every swept method at one PSNR: attack success by task, what it costs.

    Args:
        points: From `psic_core.lab.comparison.read_points`.
        level: dB against the plain codec.
    """
    head = ["method", "t2i", "i2t", "classes", "attributes", "null, mean of four", "full − plain", "bpp",
            "bpp, both versions", "encodings", "s / megapixel", "seeds"]  # fmt: skip
    wanted, rows = plain_psnr(points) + level, []
    for method in (m for m in SWEEPS if any(p["method"] == m for p in points)):
        found = curve(points, method)
        cells = [_percent(success(found, wanted, [task])) for task in TASKS]
        near = min((p for p in points if p["method"] == method), key=lambda p: abs(p["psnr"]["protected"] - wanted))
        cost = [near["bpp"], near["bpp_both"], near["encodings"], near["seconds_per_megapixel"], found.seeds]
        null = 100 * fmean(near["null"][t]["value"] for t in TASKS)
        shown = [f"{null:.1f}", f"{near['psnr']['full'] - plain_psnr(points):+.2f} dB"]
        shown += [f"{cost[0]:.3f}", f"{cost[1]:.3f}", cost[2]]
        rows.append([NAMES[method], *cells, *shown, f"{cost[3]:.1f}", cost[4]])
    return markdown(head, rows)


def claims_table(points: Points) -> str:
    """The paper's two comparisons, at equal PSNR."""
    head = ["difference", "tasks", "paper", *(f"at {level:+.2f} dB" for level in OFFSETS), "spread over seeds"]
    rows = []
    for method, tasks, paper in CLAIMS:
        for mine in UAEO:
            one, other = curve(points, mine), curve(points, method)
            gaps = [_points(gap(one, other, plain_psnr(points) + level, tasks)) for level in OFFSETS]
            spreads = [s for c in (one, other) if (s := spread(c, tasks)) is not None]
            said = f"{100 * max(spreads):.1f}" if spreads else "–"
            name = "mean of four" if len(tasks) > 1 else tasks[0]
            rows.append([f"{NAMES[mine]} − {NAMES[method]}", name, f"+{paper}", *gaps, said])
    return markdown(head, rows)


def changes_table(points: Points) -> str:
    """One change at a time, each against the UAEO curve at its own PSNR."""
    head = ["variant", "what", "full − plain", "protected", "t2i", "i2t", "classes", "attr.", "null i2t",
            "mean of four against UAEO at this PSNR"]  # fmt: skip
    ours, rows, plain = curve(points, "uaeo"), [], plain_psnr(points)
    for p in (p for p in points if p["method"] in VARIANTS and not p["seed"]):
        mine = curve([p], p["method"])
        difference = gap(mine, ours, p["psnr"]["protected"], TASKS) if p["method"] != "uaeo" else None
        asr = [f"{100 * p['asr'][t]['value']:.1f}" for t in TASKS]
        full, protected = p["psnr"]["full"] - plain, p["psnr"]["protected"] - plain
        null = f"{100 * p['null']['i2t']['value']:.1f}"
        about = p["what"] if p["strength"] == point(p["method"]).strength else "the same"
        rows.append([f"`{p['name']}`", about, f"{full:+.2f}", f"{protected:+.2f}", *asr, null, _points(difference)])
    return markdown(head, rows)


def seeds_of(points: Points, name: str) -> list[float]:
    """Mean attack success in percent of one method and strength, by seed: ``uaeo@56``."""
    method, _, strength = name.partition("@")
    found = [p for p in points if p["method"] == method and p["strength"] == float(strength)]
    return [100 * fmean(p["asr"][t]["value"] for t in TASKS) for p in found]


def _percent(e: Estimate | None) -> str:
    return "–" if e is None else interval(e.value, e.ci95)


def _points(e: Estimate | None) -> str:
    return "–" if e is None else interval(e.value, e.ci95, "+")


def limits_table(report: Mapping[str, Any], tasks: bool = False) -> str:
    """A row an attack: its null, and what it leaves of each model's shield.

    Args:
        report: From `run_limits`.
        tasks: Each task's rate, in the paper's order, instead of their mean with its interval.
    """
    head = ["attack", "null", *report["models"]]
    rows, level = [], None
    for row in report["rows"]:
        if row["level"] != level:
            level = row["level"]
            rows.append([f"**{LEVELS[level]}**", *[""] * (len(head) - 1)])
        rates = [row["null"], *(row["asr"][m] for m in report["models"])]
        rows.append([row["attack"], *(_tasks(r) if tasks else _interval(r["mean"]) for r in rates)])
    return markdown(head, rows)


def _interval(e: Mapping[str, Any]) -> str:
    return interval(e["value"], e["ci95"])


def _tasks(rates: Mapping[str, Any]) -> str:
    return " / ".join(f"{100 * e['value']:.0f}" for task, e in rates.items() if task != "mean")
