"""Markdown tables of README and cards, from the JSON in ``data/results`` and from checkpoints' headers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from psic_core.lab.evaluate import unpack_flips
from psic_core.lab.versions import VERSIONS
from psic_core.metrics import Estimate, flip_rate

TASK_TITLES = {
    "t2i": "text→image retrieval, R@1",
    "i2t": "image→text retrieval, R@1",
    "classification": "zero-shot classification",
    "attributes": "attributes",
}
SHORT = {"t2i": "ASR t2i", "i2t": "ASR i2t", "classification": "ASR class", "attributes": "ASR attr."}
COLUMNS = {
    "protected": "protected",
    "wrong keyword": "wrong keyword",
    "full": "full (null)",
    "jpeg": "JPEG (null)",
    "noise": "noise (null)",
}
#: ASR in percent, average of four rates, CLIP ViT-B/32 (the paper's text, Sec. 4), by our data set and task. The
#: paper's pictures are not quite ours: it reads 5,000 of ImageNet and 10,000 of CelebA.
PAPER = {("flickr8k", "t2i"): 80.8, ("flickr8k", "i2t"): 72.3, ("imagenet", "classification"): 67.0,
         ("celeba", "attributes"): 51.5}  # fmt: skip
NAMES = {
    "plain": "plain codec",
    "jpeg": "JPEG",
    "wrong keyword": "wrong keyword",
}  # of versions, where it is not theirs
SETS = ("flickr8k", "imagenet", "celeba", "scenes")  # the order of every table

Reports = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by data set and quality


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def reports(folder: Path, kind: str = "psic") -> dict[str, dict[int, dict[str, Any]]]:
    """The evaluation reports of the shipped models, ``KIND-qN-DATASET.json``.

    Args:
        folder: ``data/results``.
        kind: ``psic``, or ``captions`` for what the captioner says.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for quality, report in _by_quality(folder, kind):
        found.setdefault(report["dataset"], {})[quality] = report
    return {name: found[name] for name in sorted(found, key=lambda n: (SETS.index(n) if n in SETS else 9, n))}


def audits(folder: Path) -> dict[int, dict[str, Any]]:
    """The audits of wrong keywords."""
    return dict(_by_quality(folder, "keys"))


def success_table(found: Reports) -> str:
    """Attack success, the mean over the rates, with one interval for all of them, beside the paper's."""
    head = ["pictures", "task", "right on the plain codec", *COLUMNS.values(), "paper"]
    rows = []
    for name, by_rate in found.items():
        first = next(iter(by_rate.values()))
        for task in (t for t in TASK_TITLES if t in first["asr"]):
            flips = [r["flips"][task] for r in by_rate.values()]  # of the same pictures at each rate
            means = {c: flip_rate([unpack_flips(f[c]) for f in flips]) for c in COLUMNS}
            right = 100 * fmean([r["score"][task]["plain"] for r in by_rate.values()])
            cells = [_cell(e, c == "protected") for c, e in means.items()]
            rows.append(
                [f"{name} ({first['n']})", TASK_TITLES[task], f"{right:.1f} %", *cells, PAPER.get((name, task), "–")]
            )
    return markdown(head, rows)


def rates_table(found: Reports) -> str:
    """Each rate: bits, fidelity, and the attack success of the protected version."""
    head = ["pictures", "rate", "bpp", "PSNR plain = full", "protected", *SHORT.values()]
    rows = []
    for name, by_rate in found.items():
        for quality, r in by_rate.items():
            p, cells = r["psnr"], _successes(r["asr"], "protected")
            same = f"{p['full']:.2f} dB" if abs(p["full"] - p["plain"]) < 0.005 else f"{p['full']:.2f} dB (full)"
            rows.append([name, f"q{quality}", f"{r['bpp']:.3f}", same, f"{p['protected'] - p['full']:+.2f} dB", *cells])
    return markdown(head, rows)


def denominators_table(found: Reports) -> str:
    """Attack success with three denominators, the mean over the rates."""
    head = ["pictures", "task", "of what is right on the plain codec", "of what is right on the original", "of all"]
    rows = []
    for name, by_rate in found.items():
        for task in (t for t in TASK_TITLES if t in next(iter(by_rate.values()))["asr"]):
            values = [_mean(by_rate, key, task, "protected", "value") for key in ("asr", "asr_original", "asr_all")]
            rows.append([name, TASK_TITLES[task], *(_percent(v) for v in values)])
    return markdown(head, rows)


def recall_table(found: Reports) -> str:
    """R@1, R@5 and R@10, the mean over the rates; both galleries of text→image retrieval."""
    names = {"t2i": "text→image", "t2i_single": "text→image, the rest of the gallery plain", "i2t": "image→text"}
    head = ["pictures", "R@1 / R@5 / R@10 in %", "original", "plain = full", "protected"]
    rows = []
    for name, by_rate in found.items():
        for task in (t for t in names if t in next(iter(by_rate.values())).get("recall", {})):
            cells = [
                " / ".join(_percent(_mean(by_rate, "recall", task, v, str(k))) for k in (1, 5, 10))
                for v in ("original", "plain", "protected")
            ]
            rows.append([name, names[task], *cells])
    return markdown(head, rows)


def scores_table(found: Reports) -> str:
    """Plain accuracy, the mean over the rates; balanced accuracy of attributes, where a coin has 50 %."""
    head, rows = ["pictures", "accuracy in %", *(NAMES.get(v, v) for v in VERSIONS)], []
    for name, by_rate in found.items():
        first = next(iter(by_rate.values()))
        for task in (t for t in ("classification", "attributes") if t in first["score"]):
            rows.append([name, TASK_TITLES[task], *(_percent(_mean(by_rate, "score", task, v)) for v in VERSIONS)])
        if "balanced" in first:
            rows.append([name, "attributes, balanced", *(_percent(_mean(by_rate, "balanced", v)) for v in VERSIONS)])
    return markdown(head, rows)


def transfer_table(found: Reports) -> str:
    """Attack success on the model that was attacked and on others that read the same files, the mean over the rates."""
    columns = ("protected", "jpeg", "noise")
    head = ["pictures", "task", "read by", "right on the plain codec", *(COLUMNS[c] for c in columns)]
    rows = []
    for name, by_rate in found.items():
        first = next(iter(by_rate.values()))
        for task in (t for t in TASK_TITLES if t in first["asr"]):
            for target in (first["target"], *first.get("transfer", ())):
                read = [r if target == first["target"] else r["transfer"][target] for r in by_rate.values()]
                means = [flip_rate([unpack_flips(r["flips"][task][c]) for r in read]) for c in columns]
                right = f"{100 * fmean([r['score'][task]['plain'] for r in read]):.1f} %"
                rows.append([name, TASK_TITLES[task], target, right, *(_cell(e, i == 0) for i, e in enumerate(means))])
    return markdown(head, rows)


def captions_table(found: Mapping[int, Mapping[str, Any]]) -> str:
    """What a captioner says of each version, the mean over the rates."""
    names = {f"bleu{n}": f"BLEU@{n}" for n in (1, 2, 3, 4)} | {"cider": "CIDEr"}
    first = next(iter(found.values()))
    head, rows = ["version", *names.values(), "CIDEr lost", "same sentence as plain"], []
    for version in (v for v in VERSIONS if v in first["scores"]):
        cells = [_percent(_mean(found, "scores", version, n)) for n in names]
        lost = first["cider_loss"].get(version)
        cells += ["–", "–"] if lost is None else [
            f"{_percent(_mean(found, 'cider_loss', version, 'value'))} %",
            f"{100 * _mean(found, 'same_as_plain', version):.0f} %",
        ]  # fmt: skip
        rows.append([NAMES.get(version, version), *cells])
    return markdown(head, rows)


def interval(value: float, ci95: Sequence[float], sign: str = "") -> str:
    """A share and its interval in percent; with ``sign="+"`` as a difference."""
    low, high = ci95
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def rd_table(report: Mapping[str, Any]) -> str:
    """Kodak at native size beside CompressAI's published figures, read off at our rates."""
    head, rows = ["rate", "bpp", "plain = full", "protected", "MS-SSIM plain", "protected"], []
    for name, by in report["points"].items():
        full, protected = by["full"], by["protected"]
        cells = [f"{full['bpp']:.3f}", f"{full['psnr']:.2f} dB", f"{protected['psnr']:.2f} dB"]
        cells += [f"{full['ms_ssim']:.4f}", f"{protected['ms_ssim']:.4f}"] if "ms_ssim" in full else ["–", "–"]
        rows.append([Path(name).stem.removeprefix("psic-"), *cells])
    rate, gain = report["bd_rate"], report["bd_psnr"]
    told = [f"BD-rate against the plain codec: full {_signed(rate['full'])} %, full with a keyword in the file "
            f"{_signed(rate['sealed'])} %, protected {_signed(rate['protected'])} %"]  # fmt: skip
    if gain.get("plain against published") is not None:
        told.append(f"BD-PSNR of our plain codec against CompressAI's published bmshj2018-hyperprior: "
                    f"{_signed(gain['plain against published'])} dB")  # fmt: skip
    return f"{markdown(head, rows)}\n\n{'. '.join(told)}."


def keywords_table(found: Mapping[int, Mapping[str, Any]]) -> str:
    """What wrong keywords decode, rate by rate."""
    head, rows = ["rate", "wrong keywords × pictures", "ASR none (t2i)", "wrong: mean", "lowest", "of full's gain"], []
    for quality, r in found.items():
        asr = r["asr"]["t2i"]
        cells = [f"{100 * v:.1f}" for v in (asr["protected"], fmean(asr["keys"]), min(asr["keys"]))]
        told = f"at most {100 * r['reached']:.0f} % of {r['gain']:.2f} dB"
        rows.append([f"q{quality}", f"{r['keywords']} × {r['n']}", *cells, told])
    return markdown(head, rows)


def speed_table(report: Mapping[str, Any]) -> str:
    """What `make bench` measured."""
    head, rows = ["what", "PSIC", "the other", "ratio"], []
    for name, r in report.items():
        if name != "provenance":
            rows.append([name, f"{r['ours_s']:.3f} s", f"{r['theirs_s']:.3f} s", f"{r['ratio']:.2f}"])
    return f"{markdown(head, rows)}\n\nOn {report['provenance']['hardware']}."


def codecs_table(report: Mapping[str, Any]) -> str:
    """Every image architecture of CompressAI under PSIC: does it work, and what do the triggers cost?"""
    head, rows = ["architecture", "N, M", "identical", "round trip", "decoder g_s, ms", "triggers, ms", "% of g_s",
                  "% of decoding"], []  # fmt: skip
    for row in report["rows"]:
        same = row["wraps"] and row["same_strings"] and row["zero_init_identical"]
        cells = [f"{row['n']}, {row['m']}", "yes" if same else "NO", "yes" if row["round_trips"] else "NO"]
        cells += [f"{row['synthesis_ms']:.0f}", f"{row['triggers_ms']:+.1f}"]
        cells += [f"{row[f'triggers_percent_of_{what}']:+.0f}" for what in ("synthesis", "decode")]
        rows.append([row["architecture"], *cells])
    return markdown(head, rows)


def scaling_table(report: Mapping[str, Any]) -> str:
    """Time and memory over the size of the picture."""
    head, rows = ["megapixels", "encode, CPU s", "decode, CPU s", "CPU s a megapixel", "peak memory, GB"], []
    for row in report["rows"]:
        each = (row["encode_s"] + row["decode_s"]) / row["megapixels"]
        cells = [f"{row[k]:.1f}" for k in ("megapixels", "encode_s", "decode_s")]
        rows.append([*cells, f"{each:.2f}", f"{row['peak_mb'] / 1000:.2f}"])
    told = []
    if growth := report.get("growth"):
        told.append(f"Time grows with the pixels to the power of {growth['encode']:.2f} (encode) and "
                    f"{growth['decode']:.2f} (decode); 1 is linear.")  # fmt: skip
    if seams := report.get("seams"):
        cost = abs(seams["protected"]["psnr_whole"] - seams["protected"]["psnr_tiled"])
        told.append(f"At {seams['megapixels']:.1f} megapixels windows cost {cost:.6f} dB.")
    return f"{markdown(head, rows)}\n\n{' '.join(told)}" if told else markdown(head, rows)


def others_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Trained models of other architectures: fidelity, rate and attack success on one data set.

    Args:
        found: Reports of `psic evaluate`, by a name for each row.
    """
    head = ["model", "pictures", "bpp", "full", "protected", *(f"{t}, ASR %" for t in TASK_TITLES), "null, i2t"]
    rows = []
    for name, r in found.items():
        asr = [_percent(r["asr"][t]["protected"]["value"]) if t in r["asr"] else "–" for t in TASK_TITLES]
        psnr = f"{r['psnr']['full']:.2f} dB", _signed(r["psnr"]["protected"] - r["psnr"]["full"]) + " dB"
        rows.append([f"`{name}`", r["n"], f"{r['bpp']:.3f}", *psnr, *asr, _percent(r["asr"]["i2t"]["full"]["value"])])
    return markdown(head, rows)


def _by_quality(folder: Path, kind: str) -> list[tuple[int, dict[str, Any]]]:
    """The JSON files ``KIND-qN-DATASET.json``, in order."""
    files = sorted(folder.glob(f"{kind}-q[0-9]-*.json"))
    return [(int(f.name.split("-")[1][1:]), json.loads(f.read_text(encoding="utf-8"))) for f in files]


def _mean(by_rate: Mapping[int, Mapping[str, Any]], *path: str) -> float | None:
    """The mean over the rates of what stands at a path in each report; None where one has no figure there."""
    values = []
    for report in by_rate.values():
        value: Any = report
        for key in path:
            value = value.get(key) if value is not None else None
        values.append(value)
    return None if None in values else fmean(values)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _successes(asr: Mapping[str, Any], version: str) -> list[str]:
    return [f"{100 * asr[t][version]['value']:.1f}" if t in asr else "–" for t in SHORT]


def _cell(estimate: Estimate, bold: bool) -> str:
    if estimate.value != estimate.value:
        return "–"
    value, rest = interval(*estimate[:2]).split(" ", 1)
    return f"{f'**{value}**' if bold else value} {rest}"
