"""Keeps README's figures equal to data/results: ``python -m psic_core.readme [--check]``."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psic_core.config import data_dir, repo_dir

TASKS = {
    "t2i": "text→image retrieval, R@1",
    "i2t": "image→text retrieval, R@1",
    "classification": "zero-shot classification",
    "attributes": "attributes",
}
COLUMNS = {
    "protected": "protected",
    "wrong_key": "wrong keyword",
    "full": "full (null)",
    "jpeg": "JPEG (null)",
    "noise": "noise (null)",
}


def reports(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """The evaluation reports of the shipped model, by data set."""
    files = sorted((folder or data_dir() / "results").glob("psic-q2-*.json"))
    return {(r := json.loads(f.read_text()))["dataset"]: r for f in files}


def results_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Two Markdown tables: attack success with intervals and nulls; rate and fidelity."""
    head = "| pictures | task | right on the plain codec | " + " | ".join(COLUMNS.values()) + " |"
    lines = ["Attack success rate in %, with 95 % intervals:", "", head, "|---" * (3 + len(COLUMNS)) + "|"]
    for name, report in found.items():
        for task in TASKS:
            if task in report["asr"]:
                cells = " | ".join(_cell(report["asr"][task][c], c == "protected") for c in COLUMNS)
                right = 100 * report["score"][task]["backbone"]
                lines.append(f"| {name} ({report['n']}) | {TASKS[task]} | {right:.1f} % | {cells} |")
    lines += ["", "Rate and fidelity:", "", "| pictures | bpp, plain | bpp, PSIC | PSNR plain | full | protected |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for name, r in found.items():
        p = r["psnr"]
        lines.append(
            f"| {name} ({r['n']}) | {r['bpp_backbone']:.3f} | {r['bpp']:.3f} | {p['backbone']:.2f} dB"
            f" | {p['full']:.2f} dB | {p['protected']:.2f} dB |"
        )
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: The markers are not there.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text or end not in text:
        raise ValueError(f"README.md has no {start} ... {end}")
    before, rest = text.split(start, 1)
    return f"{before}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"


def main() -> int:
    """Rewrite README.md, or with ``--check`` say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    path = repo_dir() / "README.md"
    old = path.read_text(encoding="utf-8")
    new = fill(old, "results", results_table(reports()))
    if parser.parse_args().check:
        print("README.md is up to date" if new == old else "README.md is stale: run python -m psic_core.readme")
        return int(new != old)
    path.write_text(new, encoding="utf-8")
    return 0


def _cell(estimate: Mapping[str, Any], bold: bool) -> str:
    if estimate["n"] == 0:
        return "–"
    low, high = estimate["ci95"]
    value = f"{100 * estimate['value']:.1f}"
    return f"{f'**{value}**' if bold else value} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
