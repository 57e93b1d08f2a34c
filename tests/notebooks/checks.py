"""What every notebook of the course must keep; each function returns the list of faults that it finds."""

import ast
import base64
from collections.abc import Iterable, Iterator

import nbformat
from nbformat import NotebookNode

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
LONGEST_CELL = 25  # lines of code
LARGEST_FILE = 1_000_000  # bytes of a stored notebook, outputs included
LONGEST_RUN = 2  # minutes on a CPU that a notebook may take without a fast profile
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"  # a run shows PNG; only stored outputs are JPEG where that is smaller


def parameter_faults(notebook: NotebookNode) -> list[str]:
    """Faults of the `parameters` cell: papermill needs one, and reads nothing but ``name = literal``."""
    cells = _tagged(notebook, "parameters")
    if len(cells) != 1:
        return [f"{len(cells)} cells are tagged 'parameters'; exactly one must be"]
    faults = [
        f"parameters cell, line {statement.lineno}: {ast.unparse(statement)!r} is not `name = literal`"
        for statement in ast.parse(cells[0].source).body
        if _flat_assignment(statement) is None
    ]
    return faults or ([] if parameters(notebook) else ["the parameters cell declares no parameter"])


def parameters(notebook: NotebookNode) -> dict[str, object]:
    """Names and defaults of the declared parameters."""
    statements = (s for cell in _tagged(notebook, "parameters") for s in ast.parse(cell.source).body)
    return dict(pair for s in statements if (pair := _flat_assignment(s)))


def undeclared_faults(notebook: NotebookNode, passed: Iterable[str]) -> list[str]:
    """Parameters that a run passes and the notebook does not declare: papermill only warns of them."""
    declared = parameters(notebook)
    return [f"parameter {name!r} is passed but not declared" for name in passed if name not in declared]


def fast_faults(notebook: NotebookNode) -> list[str]:
    """A notebook that takes long (``psic.minutes_cpu`` of its metadata) and has no ``fast`` to shorten it."""
    minutes = notebook.metadata.get("psic", {}).get("minutes_cpu")
    if not isinstance(minutes, int | float):
        return ["metadata.psic.minutes_cpu does not say how long a run takes"]
    if minutes > LONGEST_RUN and "fast" not in parameters(notebook):
        return [f"a run takes {minutes} minutes and no parameter `fast` shortens it"]
    return []


def error_faults(notebook: NotebookNode) -> list[str]:
    """Errors in the outputs of an executed notebook.

    papermill stops at an exception in a cell; one inside a widget's callback it takes for a success. Such a
    traceback stands in the widgets' state, in the cell's outputs, or as text on stderr.
    """
    faults = []
    for where, output in _outputs(notebook):
        if output.get("output_type") == "error":
            faults.append(f"{where}: {output.get('ename')}: {output.get('evalue')}")
        elif output.get("name") == "stderr" and "Traceback (most recent call last)" in _text(output["text"]):
            faults.append(f"{where}: a traceback on stderr: {_text(output['text']).strip().splitlines()[-1]}")
    return faults


def unexecuted_faults(notebook: NotebookNode) -> list[str]:
    """Code cells that an executed notebook has left out."""
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    return [f"code cell {n} was not executed" for n, c in enumerate(code, 1) if c.execution_count is None]


def picture_faults(notebook: NotebookNode, least: int) -> list[str]:
    """Too few pictures in an executed notebook: a run may report success and show none."""
    found = sum(1 for _, output in _outputs(notebook) if _is_png(output))
    return [] if found >= least else [f"{found} PNG pictures in the outputs, {least} are declared"]


def declared_pictures(notebook: NotebookNode) -> int:
    """How many pictures the notebook's metadata promise, ``psic.pictures``; -1 where they say nothing."""
    return notebook.metadata.get("psic", {}).get("pictures", -1)


def stored_faults(notebook: NotebookNode) -> list[str]:
    """Faults of a notebook as it is stored in the repository; `make format` mends those of its metadata."""
    faults = [
        f"code cell {n} has {lines} lines, the longest may have {LONGEST_CELL}"
        for n, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1)
        if (lines := len(cell.source.splitlines())) > LONGEST_CELL
    ]
    for key in ("widgets", "papermill"):
        if key in notebook.metadata:
            faults.append(f"metadata.{key} is stored; run `make format`")
    if not isinstance(declared_pictures(notebook), int) or declared_pictures(notebook) < 0:
        faults.append("metadata.psic.pictures does not say how many pictures a run shows")
    size = len(nbformat.writes(notebook).encode())
    if size > LARGEST_FILE:
        faults.append(f"{size} bytes are stored, {LARGEST_FILE} are allowed: show smaller or fewer pictures")
    return faults


def _tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code" and tag in c.metadata.get("tags", [])]


def _flat_assignment(statement: ast.stmt) -> tuple[str, object] | None:
    """Name and value of ``name = literal`` or ``name: type = literal``; None for anything else."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            pass
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            pass
        case _:
            return None
    try:
        literal = ast.literal_eval(value)
    except ValueError:
        return None
    return (name, literal) if literal is None or isinstance(literal, str | int | float) else None


def _outputs(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Every output with the place where it stands: those of cells, then those inside widgets."""
    code = [c for c in notebook.cells if c.cell_type == "code"]
    for n, cell in enumerate(code, 1):
        yield from ((f"code cell {n}", output) for output in cell.outputs)
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for name, model in widgets.items():
        yield from ((f"widget {name[:8]}", output) for output in model.get("state", {}).get("outputs", []))


def _is_png(output: NotebookNode) -> bool:
    data = _text(output.get("data", {}).get("image/png", ""))
    return base64.b64decode(data[:16] + "=" * (-len(data[:16]) % 4)).startswith(PNG_MAGIC)


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)
