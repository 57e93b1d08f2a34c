"""Every notebook and every solution runs once, in its fast profile, without a hidden error."""

import base64
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import kernels
import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest
import torch
import upkeep
from IPython.display import display
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

TIMEOUT = 900  # seconds a cell, or a notebook that nbval compares
LONGEST_CELL = 30  # lines of code
LARGEST_FILE = 1_000_000  # bytes of a stored notebook, outputs included
LONGEST_RUN = 2  # minutes on a CPU that a notebook may take without a fast profile
DIFFERS = """\
[versions]
regex: (Python|torch|psic_core|ipywidgets) [0-9][^, \\n]*
replace: \\1 of any version
"""  # what a strict comparison lets differ, in nbval's format
STATE = "application/vnd.jupyter.widget-state+json"

kernels.LIBRARIES += ("quick",)
#: The later ones, which take longer, first. Notebook 00 runs in `make check`, too.
NOTEBOOKS, SOLUTIONS = upkeep.notebooks()[::-1], upkeep.solutions()[::-1]
EACH = [pytest.param(p, marks=[] if p.stem[:2] == "00" else pytest.mark.slow, id=p.stem) for p in NOTEBOOKS]


def passed(folder: Path) -> dict[str, object]:
    """The parameters of a test's run, for a notebook that knows them."""
    return {"out_dir": str(folder / "out"), "fast": True}


def executed(source: Path, result: Path, timeout: float = TIMEOUT) -> NotebookNode:
    """Execute a notebook in its own folder, with an ``out_dir`` and with ``fast`` where it knows that."""
    known = papermill.inspect_notebook(str(source))
    flags = {name: value for name, value in passed(result.parent).items() if name in known}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # papermill's own
        return upkeep.execute(source, result, flags, execution_timeout=timeout)


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """Those of cells, then those inside widgets."""
    for cell in notebook.cells:
        yield from cell.get("outputs", [])
    for model in notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {}).values():
        yield from model.get("state", {}).get("outputs", [])


def errors(notebook: NotebookNode) -> list[str]:
    """papermill stops at an exception in a cell; one inside a widget's callback it takes for a success."""
    found = [f"{o.get('ename')}: {o.get('evalue')}" for o in outputs(notebook) if o.get("output_type") == "error"]
    texts = ["".join(o["text"]) for o in outputs(notebook) if o.get("name") == "stderr"]
    return found + [text for text in texts if "Traceback (most recent call last)" in text]


def pictures(notebook: NotebookNode) -> int:
    png = (base64.b64decode("".join(o.get("data", {}).get("image/png", ""))[:8]) for o in outputs(notebook))
    return sum(start.startswith(b"\x89PNG") for start in png)


@pytest.mark.parametrize("path", EACH)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One whose metadata say ``psic.strict`` prints what is stored, which was stored without a data root."""
    about = nbformat.read(path, as_version=4).metadata["psic"]
    if not about.get("strict"):
        notebook = executed(path, tmp_path / path.name)
        assert errors(notebook) == []
        assert pictures(notebook) >= about["pictures"]
        return
    monkeypatch.delenv("PSIC_DATA_ROOT", raising=False)
    shutil.copy(path, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # this project's own settings are not meant for notebooks
    (tmp_path / "differs.cfg").write_text(DIFFERS)
    monkeypatch.chdir(tmp_path)
    command = [
        "-c", "pytest.ini", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-qsx", "--color=no", "--nbval",
        "--nbval-sanitize-with", "differs.cfg", "--nbval-current-env", path.name,
    ]  # fmt: skip
    with kernels.own_kernels():
        assert pytest.main(command) == pytest.ExitCode.OK


@pytest.mark.slow
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_run_and_hold(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each exercise has its solution, whose asserts hold.

    The cells run in this process, where the libraries are loaded: they use neither magics nor a kernel. An exception
    inside a widget's callback reaches the test here.
    """
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert sum("assert " in cell.source for cell in cells) >= 3
    monkeypatch.chdir(path.parent)
    names = {"__name__": "__main__", "display": display}
    with torch.enable_grad():  # what a notebook switches off for itself is on again for the next
        for cell in cells:
            exec(compile(cell.source, f"{path.name}, cell {cell.id}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= {name: value for name, value in passed(tmp_path).items() if name in names}
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook_is_sound(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert errors(notebook) == []
    assert max(len(c.source.splitlines()) for c in notebook.cells if c.cell_type == "code") <= LONGEST_CELL
    assert not {"widgets", "papermill"} & set(notebook.metadata), "run `make format`"
    assert path.stat().st_size <= LARGEST_FILE
    declared = papermill.inspect_notebook(str(path))
    assert "out_dir" in declared
    assert "fast" in declared or notebook.metadata["psic"]["minutes_cpu"] <= LONGEST_RUN
    assert [p.name for p in NOTEBOOKS] == [p.name for p in SOLUTIONS]


def test_readmes_table_and_the_colab_cells_are_up_to_date(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["upkeep", "--check"])
    assert upkeep.main() == 0


@pytest.mark.slow
def test_an_exception_in_a_widget_is_found(tmp_path: Path):
    """papermill reports a success here."""
    source = "import ipywidgets\nslider = ipywidgets.IntSlider(0)\n"
    source += "ipywidgets.interact(lambda n: 1 / (n - 1), n=slider)\nslider.value = 1"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path / "in.ipynb")
    found = errors(executed(tmp_path / "in.ipynb", tmp_path / "out.ipynb", timeout=120))
    assert any("ZeroDivisionError" in error for error in found)
