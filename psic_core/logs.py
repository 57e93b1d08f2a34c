"""Training logs as CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_log(path: Path, rows: list[dict[str, float | str]]) -> None:
    """Append rows to a CSV log, keeping rows of earlier calls that precede them; the newest columns lead."""
    old = [r for r in _read(path) if rows and int(r["step"]) < int(rows[0]["step"])]
    columns = list(dict.fromkeys(key for row in [*rows, *old] for key in row))
    _write(path, columns, [*old, *({k: _short(v) for k, v in row.items()} for row in rows)])


def join_logs(runs: Sequence[Path], out: Path, most: int = 60) -> None:
    """The logs of several phases in one small file: of each, at most so many evenly spread rows, the last included.

    Args:
        runs: Folders with a ``log.csv``, in the order of training; those without are left out.
        out: CSV file; its column ``run`` names the folder.
        most: Rows a run.
    """
    rows = []
    for run in runs:
        log = _read(run / "log.csv")
        every = -(-len(log) // most) or 1
        rows += [{"run": run.name} | row for row in log[::-1][::every][::-1]]
    _write(out, list(dict.fromkeys(key for row in rows for key in row)), rows)


def _read(path: Path) -> list[dict[str, str]]:
    """The rows of a log; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, float | str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _short(value: float | str) -> float | str:
    return float(f"{value:.5g}") if isinstance(value, float) else value
