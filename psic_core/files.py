"""Files that are there whole or not at all, and training logs as CSV."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

Row = dict[str, float | str]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which takes its name at the end; it vanishes where the writing fails.

    Args:
        path: The file, in a folder that is there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def store_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, replaced atomically; its folder is made where missing.

    Args:
        tensors: By name, on any device.
        path: The file.
        metadata: Of its header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial, metadata)


def write_log(path: Path, rows: list[Row]) -> None:
    """Append rows to a CSV log, keeping rows of earlier calls that precede them; the newest columns lead."""
    old = [r for r in _read_log(path) if rows and int(r["step"]) < int(rows[0]["step"])]
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
        log = _read_log(run / "log.csv")
        every = -(-len(log) // most) or 1
        rows += [{"run": run.name} | row for row in log[::-1][::every][::-1]]
    _write(out, list(dict.fromkeys(key for row in rows for key in row)), rows)


def _read_log(path: Path) -> list[dict[str, str]]:
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
