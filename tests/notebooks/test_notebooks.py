"""Every notebook runs in its fast profile, without a hidden error, and shows as many pictures as it says."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import checks
import nbformat
import pytest
import upkeep
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

TIMEOUT = 900  # seconds a notebook
DIFFERS = """\
[versions]
regex: (Python|torch|psic_core|ipywidgets) [0-9][^, \\n]*
replace: \\1 of any version
"""  # what a strict comparison lets differ, in nbval's format

each_notebook = pytest.mark.parametrize("path", upkeep.notebooks(), ids=lambda path: path.stem)
each_solution = pytest.mark.parametrize("path", upkeep.solutions(), ids=lambda path: path.stem)


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a module of this very environment, whatever other Jupyter kernels the machine knows."""
    return upkeep.run_module(folder, *command, timeout=TIMEOUT)


def papermill(source: Path, result: Path, *options: object) -> NotebookNode:
    """Execute a notebook in its own folder (with ``--prepare-only``, just fill it in); return the result."""
    here = ("--kernel", "python3", "--cwd", source.parent)
    done = run(source.parent, "papermill", *here, source, result, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    return nbformat.read(result, as_version=4)


def nbval(path: Path, strict: bool = False) -> subprocess.CompletedProcess[str]:
    """Execute a notebook cell by cell as pytest items; ``strict`` compares its text with what is stored."""
    settings = path.with_name("pytest.ini")  # this project's own settings are not meant for notebooks
    settings.write_text("[pytest]\n")
    plain = ("-c", settings, "-p", "no:cacheprovider", "-qx", "--color=no")
    mode: tuple[object, ...] = ("--nbval-lax",)
    if strict:
        differs = path.with_name("differs.cfg")
        differs.write_text(DIFFERS)
        mode = ("--nbval", "--nbval-sanitize-with", differs)
    return run(path.parent, "pytest", *plain, *mode, "--nbval-current-env", path)


def profile(path: Path, out: Path) -> dict[str, object]:
    """What a run passes: a folder for its files, and ``fast`` where the notebook knows it."""
    known = checks.parameters(nbformat.read(path, as_version=4))
    passed = {"out_dir": out, "fast": True}
    return {name: value for name, value in passed.items() if name in known}


def flags(passed: Mapping[str, object]) -> list[object]:
    return [text for name, value in passed.items() for text in ("-p", name, value)]


@each_notebook
def test_stored_notebook_is_sound(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert checks.parameter_faults(notebook) == []
    assert checks.undeclared_faults(notebook, profile(path, path)) == []
    assert checks.fast_faults(notebook) == []
    assert checks.error_faults(notebook) == []
    assert checks.stored_faults(notebook) == []


@each_notebook
def test_notebook_runs_and_shows_its_pictures(path: Path, tmp_path: Path):
    executed = papermill(path, tmp_path / path.name, *flags(profile(path, tmp_path / "out")))
    assert checks.error_faults(executed) == []
    assert checks.unexecuted_faults(executed) == []
    assert checks.picture_faults(executed, checks.declared_pictures(executed)) == []


@each_notebook
def test_notebook_passes_nbval(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """nbval sees what papermill misses, exceptions in widgets' callbacks, and runs in a folder of its own.

    A notebook whose metadata say ``psic.strict`` must print what is stored, which was stored without a data root;
    its run passes no parameters.
    """
    copy = tmp_path / path.name
    strict = nbformat.read(path, as_version=4).metadata["psic"].get("strict", False)
    if strict:
        monkeypatch.delenv("PSIC_DATA_ROOT", raising=False)
        shutil.copy(path, copy)
    else:
        papermill(path, copy, "--prepare-only", *flags(profile(path, tmp_path / "out")))
    done = nbval(copy, strict)
    assert done.returncode == 0, done.stdout[-3000:]


@each_solution
def test_solutions_run_and_hold(path: Path, tmp_path: Path):
    """Each exercise has its solution, whose asserts hold."""
    notebook = nbformat.read(path, as_version=4)
    assert checks.parameter_faults(notebook) == []
    assert sum("assert " in cell.source for cell in notebook.cells if cell.cell_type == "code") >= 3
    executed = papermill(path, tmp_path / path.name, *flags(profile(path, tmp_path / "out")))
    assert checks.error_faults(executed) == []
    assert checks.unexecuted_faults(executed) == []


def test_each_notebook_has_its_solutions():
    assert [p.name for p in upkeep.notebooks()] == [p.name for p in upkeep.solutions()]


def test_readmes_table_and_the_colab_cells_are_up_to_date(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["upkeep", "--check"])
    assert upkeep.main() == 0


def write(path: Path, *cells: str) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in cells]), path)
    return path


BROKEN_WIDGET = """\
import ipywidgets
slider = ipywidgets.IntSlider(0)
ipywidgets.interact(lambda n: 1 / (n - 1), n=slider)
slider.value = 1"""


def test_an_exception_in_a_widget_is_found(tmp_path: Path):
    """papermill reports a success here; the checks and nbval do not."""
    executed = papermill(write(tmp_path / "in.ipynb", BROKEN_WIDGET), tmp_path / "out.ipynb")
    assert any("ZeroDivisionError" in fault for fault in checks.error_faults(executed))
    done = nbval(write(tmp_path / "copy.ipynb", BROKEN_WIDGET))
    assert done.returncode == 1, done.stdout[-3000:]


def test_a_notebook_that_raises_fails(tmp_path: Path):
    source = write(tmp_path / "in.ipynb", "n = 0", "1 / n", "print('never')")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        papermill(source, tmp_path / "out.ipynb")
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert any("ZeroDivisionError" in fault for fault in checks.error_faults(executed))
    assert len(checks.unexecuted_faults(executed)) >= 1


@pytest.mark.parametrize(("stored", "passes"), [("torch 1.0\n3\n", True), ("torch 1.0\n4\n", False)])
def test_strict_finds_a_stale_number_and_forgives_a_version(tmp_path: Path, stored: str, passes: bool):
    path = write(tmp_path / "copy.ipynb", "print('torch 2.0')\nprint(3)")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].update(outputs=[new_output("stream", text=stored)], execution_count=1)
    nbformat.write(notebook, path)
    done = nbval(path, strict=True)
    assert (done.returncode == 0) == passes, done.stdout[-3000:]
