"""Training logs as CSV."""

import csv
from pathlib import Path


def write_log(path: Path, rows: list[dict[str, float | str]]) -> None:
    """Append rows to a CSV log, keeping rows of earlier calls that precede them; the newest columns lead."""
    old = []
    if path.is_file():
        with path.open(newline="") as file:
            old = [r for r in csv.DictReader(file) if rows and int(r["step"]) < int(rows[0]["step"])]
    columns = list(dict.fromkeys(key for row in [*rows, *old] for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([*old, *({k: _short(v) for k, v in row.items()} for row in rows)])


def _short(value: float | str) -> float | str:
    return float(f"{value:.5g}") if isinstance(value, float) else value
