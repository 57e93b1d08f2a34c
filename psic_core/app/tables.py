"""Markdown tables, and the panels of figures, from the JSON in ``data/results``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from psic_core.lab.comparison import METHODS, Points, decibels, success
from psic_core.lab.evaluate import unpack_flips
from psic_core.lab.limits import LEVELS
from psic_core.lab.tasks import TASKS
from psic_core.lab.versions import VERSIONS
from psic_core.metrics import Estimate, Flips, flip_rate

TASK_TITLES = {
    "t2i": "text→image retrieval, R@1",
    "i2t": "image→text retrieval, R@1",
    "classification": "zero-shot classification",
    "attributes": "attributes",
}
NULLS = {"full": "full (null)", "jpeg": "JPEG (null)", "noise": "noise (null)", "wrong keyword": "wrong keyword"}
#: ASR in percent, average of four rates, CLIP ViT-B/32 (the paper's text, Sec. 4), by our data set and task. The
#: paper's pictures are not quite ours: it reads 5,000 of ImageNet and 10,000 of CelebA.
PAPER = {("flickr8k", "t2i"): 80.8, ("flickr8k", "i2t"): 72.3, ("imagenet", "classification"): 67.0,
         ("celeba", "attributes"): 51.5}  # fmt: skip
SETS = ("flickr8k", "coco", "imagenet", "celeba", "scenes")  # the order of every table
DRAWN = ("original", "plain", "full", "protected")
#: The paper's text (Sec. 4.2, 4.3): percentage points of attack success of UAEO over another, and over which tasks.
CLAIMS = (("naive", ("t2i",), 6.3), ("naive", ("i2t",), 6.2), ("bavaft", TASKS, 12.9))

Reports = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by data set and quality


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def reports(folder: Path, kind: str = "psic") -> dict[str, dict[int, dict[str, Any]]]:
    """The reports of the shipped models by data set and quality: each rate's in ``KIND-qN.json``.

    Args:
        folder: ``data/results``.
        kind: ``psic``, or ``captions`` for what the captioner says.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(folder.glob(f"{kind}-q[0-9].json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        for report in [content] if "dataset" in content else content.values():
            found.setdefault(report["dataset"], {})[int(file.stem[-1])] = report
    return {name: found[name] for name in sorted(found, key=lambda n: (SETS.index(n) if n in SETS else 9, n))}


def success_table(found: Reports) -> str:
    """Attack success, the mean over the rates, with one interval for all of them; the last null is subtracted."""
    head = ["pictures", "task", "right on the plain codec", "protected", *NULLS.values(), "protected − noise",
            "read by lite2-clip", "paper"]  # fmt: skip
    rows = []
    for name, by_rate in found.items():
        first = next(iter(by_rate.values()))
        for task in (t for t in TASK_TITLES if t in first["asr"]):
            means = {v: _over_rates(by_rate.values(), task, v) for v in ("protected", *NULLS)}
            other = [r["transfer"]["lite2-clip"] for r in by_rate.values() if "lite2-clip" in r.get("transfer", {})]
            right = 100 * fmean(r["score"][task]["plain"] for r in by_rate.values())
            cells = [f"{right:.1f} %", f"**{estimate(means['protected'])}**", *(estimate(means[v]) for v in NULLS)]
            cells += [f"{100 * (means['protected'].value - means['noise'].value):+.1f}"]
            cells += [estimate(_over_rates(other, task, "protected")) if other else "–", PAPER.get((name, task), "–")]
            rows.append([f"{name} ({first['n']})", TASK_TITLES[task], *cells])
    return markdown(head, rows)


def rates_table(found: Reports) -> str:
    """Each rate: bits, fidelity, and the attack success of the protected version."""
    head = ["pictures", "rate", "bpp", "PSNR plain = full", "protected", "against full",
            *(f"ASR {t}, %" for t in TASK_TITLES)]  # fmt: skip
    rows = []
    for name, by_rate in found.items():
        for quality, r in by_rate.items():
            p = r["psnr"]
            cells = [f"{r['bpp']:.3f}", f"{p['full']:.2f} dB", f"{p['protected'] - p['full']:+.2f} dB"]
            cells.append(f"{r['change']:.2f} dB" if "change" in r else "–")
            cells += [_percent(r["asr"][t]["protected"]["value"]) if t in r["asr"] else "–" for t in TASK_TITLES]
            rows.append([name, f"q{quality}", *cells])
    return markdown(head, rows)


def captions_table(found: Mapping[int, Mapping[str, Any]]) -> str:
    """What a captioner says of each version, the mean over the rates."""
    names = {f"bleu{n}": f"BLEU@{n}" for n in (1, 2, 3, 4)} | {"cider": "CIDEr"}
    rows = []
    for version in (v for v in VERSIONS if v in next(iter(found.values()))["scores"]):
        cells = [_percent(fmean(r["scores"][version][n] for r in found.values())) for n in names]
        lost = [r["cider_loss"][version]["value"] for r in found.values() if version in r["cider_loss"]]
        rows.append([version, *cells, f"{_percent(fmean(lost))} %" if lost else "–"])
    return markdown(["version", *names.values(), "CIDEr lost"], rows)


def rd_table(report: Mapping[str, Any]) -> str:
    """Fidelity at native size, rate by rate, and Bjøntegaard's differences against others."""
    judges = {
        "psnr": ("PSNR, dB", ".2f"), "ms_ssim": ("MS-SSIM", ".4f"),
        "ssimulacra2": ("SSIMULACRA2", ".1f"), "ldr_flip": ("FLIP", ".3f"),
    }  # fmt: skip
    points = list(report["points"].values())
    judges = {k: j for k, j in judges.items() if all(k in by["plain"] for by in points)}
    shown = {"full": "plain = full", "protected": "protected"} if "full" in points[0] else {"plain": "plain"}
    head = ["rate", "bpp", *(f"{title}, {name}" for title, _ in judges.values() for name in shown.values())]
    rows = []
    for name, by in report["points"].items():
        cells = [f"{by[v][k]:{form}}" for k, (_, form) in judges.items() for v in shown]
        rows.append([Path(name).stem.removeprefix("psic-"), f"{by[next(iter(shown))]['bpp']:.3f}", *cells])
    cost = report["bd_rate"]["protected"]
    told = [] if cost is None else [f"BD-rate of the protected version: {cost:+.1f} %"]
    anchors = {n: v for n, v in report["bd_psnr"].items() if n.startswith("plain against") and v is not None}
    told += [f"BD-PSNR of {name}: {value:+.2f} dB" for name, value in anchors.items()]
    return f"{markdown(head, rows)}\n\n{'. '.join(told)}."


def limits_table(report: Mapping[str, Any]) -> str:
    """A row an attack: its null, and what it leaves of each model's shield, mean of four tasks in percent."""
    head = ["attack", "null", *report["models"]]
    rows, level = [], None
    for row in report["rows"]:
        if row["level"] != level:
            level = row["level"]
            rows.append([f"**{LEVELS[level]}**", *[""] * (len(head) - 1)])
        rates = [row["null"], *(row["asr"][m] for m in report["models"])]
        rows.append([row["attack"], *(_interval(r["mean"]["value"], r["mean"]["ci95"]) for r in rates)])
    return markdown(head, rows)


def by_size(report: Mapping[str, Any]) -> dict[tuple[str, float | None], dict[str, Any]]:
    """The rows of ``sizes.json`` by size and budget, all sets as one: ``n``, means, ``rates[platform][version]``."""
    groups: dict[tuple[str, float | None], list[Mapping[str, Any]]] = {}
    for row in sorted(report["rows"], key=lambda r: (r["side"] or 10**9, r["budget"] or 0)):
        groups.setdefault((f"{row['side']} px" if row["side"] else "as they are", row["budget"]), []).append(row)
    found = {}
    for key, rows in groups.items():
        n = sum(r["n"] for r in rows)
        mean = {k: sum(r["n"] * r[k] for r in rows) / n for k in ("change", "likeness")}
        rates = {}
        for platform, by in rows[0]["flips"].items():
            parts = {v: [unpack_flips(r["flips"][platform][v]) for r in rows] for v in by}
            rates[platform] = {v: flip_rate([Flips(*map(torch.cat, zip(*p, strict=True)))]) for v, p in parts.items()}
        found[key] = mean | {"n": n, "rates": rates}
    return found


def sizes_table(report: Mapping[str, Any]) -> str:
    """Labels that change, in percent of the photos, by their shorter side and the shield's budget."""
    head = ["shorter side", "budget", "photos", "protected against full", "likeness", "protected", "full (null)",
            "JPEG (null)", "noise (null)", "protected − noise"]  # fmt: skip
    rows = []
    for (side, budget), r in by_size(report).items():
        rates = r["rates"]["as published"]
        bound = "–" if budget is None else f"{budget:g}"
        cells = [side, bound, r["n"], f"{r['change']:.2f} dB", f"{r['likeness']:.2f}"]
        cells += [f"**{estimate(rates['protected'])}**", *(estimate(rates[v]) for v in ("full", "jpeg", "noise"))]
        rows.append([*cells, f"{100 * (rates['protected'].value - rates['noise'].value):+.1f}"])
    return markdown(head, rows)


def ablations_table(points: Points) -> str:
    """What every method protects, the mean over seeds with their range, and what it costs."""
    head = ["method", "seeds", "protected − plain", "success, mean of four", "t2i", "i2t", "null", "full − plain",
            "bpp, both versions", "s / megapixel"]  # fmt: skip
    rows = []
    for method in (m for m in METHODS if any(p["method"] == m for p in points)):
        mine = [p for p in points if p["method"] == method]
        shares = [band(success(points, method, tasks)) for tasks in (TASKS, ["t2i"], ["i2t"])]
        null = 100 * fmean(p["null"][t]["value"] for p in mine for t in TASKS)
        full = fmean(p["psnr"]["full"] - p["psnr"]["plain"] for p in mine)
        cost = [f"{null:.1f}", f"{full:+.2f} dB", f"{fmean(p['bpp_both'] for p in mine):.3f}"]
        cost.append(f"{fmean(p['seconds_per_megapixel'] for p in mine):.1f}")
        rows.append([METHODS[method].what, len(mine), f"{fmean(decibels(points, method)):+.2f} dB", *shares, *cost])
    return markdown(head, rows)


def claims_table(points: Points) -> str:
    """UAEO against the paper's two comparisons: the difference of the means, the seeds' bands, and the decibels."""
    rows = []
    for method, tasks, paper in CLAIMS:
        mine, theirs = (success(points, m, tasks) for m in ("uaeo", method))
        if mine and theirs:
            gap = f"{100 * (fmean(mine) - fmean(theirs)):+.1f}"
            cost = fmean(decibels(points, "uaeo")) - fmean(decibels(points, method))
            name = "mean of four" if len(tasks) > 1 else tasks[0]
            rows.append([f"UAEO − {method}", name, f"+{paper}", gap, band(mine), band(theirs), f"{cost:+.2f} dB"])
    return markdown(["difference", "tasks", "paper", "here", "UAEO, seeds", "the other, seeds", "PSNR"], rows)


def fidelity_panels(report: Mapping[str, Any]) -> dict[str, Any]:
    """Fig. 4 for `figures.against_rate`: PSNR and what else was measured; on Kodak with CompressAI's curve."""
    points, panels = report["points"].values(), {}
    for key, title in (("psnr", "PSNR (dB)"), ("ms_ssim", "MS-SSIM"), ("ssimulacra2", "SSIMULACRA2")):
        if all(key in p["full"] for p in points):
            panels[title] = {v: [(p[v]["bpp"], p[v][key]) for p in points] for v in DRAWN[1:]}
    if "published" in report:
        known, top = report["published"], 1.3 * max(p["full"]["bpp"] for p in points)
        published = zip(known["bpp"], known["psnr"], strict=True)
        panels["PSNR (dB)"]["CompressAI, published"] = [(bpp, psnr) for bpp, psnr in published if bpp < top]
    return panels


def estimate(e: Estimate) -> str:
    """A rate and its interval in percent; a dash where nothing was right to begin with."""
    return "–" if e.value != e.value else _interval(*e[:2])


def band(values: Sequence[float]) -> str:
    """The mean over seeds in percent and, of several, their range."""
    if not values:
        return "–"
    low, high = _percent(min(values)), _percent(max(values))
    return _percent(fmean(values)) + (f" [{low}, {high}]" if len(values) > 1 else "")


def _over_rates(rates: Any, task: str, version: str) -> Estimate:
    return flip_rate([unpack_flips(r["flips"][task][version]) for r in rates])  # of the same pictures at each rate


def _interval(value: float, ci95: Sequence[float]) -> str:
    return f"{_percent(value)} [{_percent(ci95[0])}, {_percent(ci95[1])}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
