"""The checks can fail: each is given a notebook with the fault that it is there to find."""

import base64

import checks
import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PNG = base64.b64encode(checks.PNG_MAGIC + bytes(40)).decode()
GOOD = "fast = False\nrate: float = 0.5\nlow = -1\nname = 'cat'  # a photo\nlimit = None"


def notebook(parameters: str = GOOD, *cells: NotebookNode, **metadata: object) -> NotebookNode:
    """A sound notebook: a title, parameters, and a picture."""
    shown = new_output("display_data", data={"image/png": PNG, "text/plain": "<Figure>"})
    return new_notebook(
        metadata={"psic": {"pictures": 1, "minutes_cpu": 2}, **metadata},
        cells=[
            new_markdown_cell("# 00 A title"),
            new_code_cell(parameters, metadata={"tags": ["parameters"]}, execution_count=1),
            new_code_cell("show()", outputs=[shown], execution_count=2),
            *cells,
        ],
    )


def widget_state(*outputs: dict[str, object]) -> dict[str, object]:
    model = {"model_name": "OutputModel", "state": {"outputs": list(outputs)}}
    return {checks.WIDGET_STATE: {"state": {"0123456789abcdef": model}}}


def test_a_sound_notebook_has_no_fault():
    good = notebook()
    nbformat.validate(good)
    assert checks.parameter_faults(good) == []
    assert checks.parameters(good) == {"fast": False, "rate": 0.5, "low": -1, "name": "cat", "limit": None}
    assert checks.undeclared_faults(good, ["fast", "name"]) == []
    assert checks.fast_faults(good) == []
    assert checks.error_faults(good) == []
    assert checks.unexecuted_faults(good) == []
    assert checks.picture_faults(good, 1) == []
    assert checks.stored_faults(good) == []


@pytest.mark.parametrize(
    "line",
    [
        "steps = 2 * 10",
        "sizes = [1, 2]",
        "sizes = (1, 2)",
        "options = {}",
        "device = torch.device('cpu')",
        "import os",
        "a = b = 1",
        "a, b = 1, 2",
        "a: int",
        "name = f'{1}'",
        "data = b'x'",
        "z = 1j",
    ],
)
def test_a_parameter_that_is_no_flat_literal(line: str):
    (fault,) = checks.parameter_faults(notebook(f"fast = True\n{line}"))
    assert fault.startswith("parameters cell, line 2")


def test_parameters_cell_missing_doubled_or_empty():
    bad = notebook()
    bad.cells[1].metadata.tags = []
    assert checks.parameter_faults(bad) == ["0 cells are tagged 'parameters'; exactly one must be"]
    doubled = notebook(GOOD, new_code_cell("x = 1", metadata={"tags": ["parameters"]}))
    assert checks.parameter_faults(doubled) == ["2 cells are tagged 'parameters'; exactly one must be"]
    assert checks.parameter_faults(notebook("# none")) == ["the parameters cell declares no parameter"]


def test_a_parameter_that_is_passed_but_not_declared():
    assert checks.undeclared_faults(notebook("fast = True"), ["fast", "out"]) == [
        "parameter 'out' is passed but not declared"
    ]


def test_a_long_notebook_needs_a_fast_profile():
    long = {"psic": {"pictures": 1, "minutes_cpu": 30}}
    assert checks.fast_faults(notebook("fast = True", **long)) == []
    assert checks.fast_faults(notebook("steps = 8", **long)) == [
        "a run takes 30 minutes and no parameter `fast` shortens it"
    ]
    (fault,) = checks.fast_faults(notebook(psic={"pictures": 1}))
    assert "minutes_cpu" in fault


def test_errors_in_cells_on_stderr_and_in_widgets():
    error = new_output("error", ename="ValueError", evalue="no photo", traceback=[])
    text = "Traceback (most recent call last):\n  File x\nKeyError: 'y'\n"
    loud = new_output("stream", name="stderr", text=text)
    assert checks.error_faults(notebook(GOOD, new_code_cell("f()", outputs=[error]))) == [
        "code cell 3: ValueError: no photo"
    ]
    (fault,) = checks.error_faults(notebook(GOOD, new_code_cell("f()", outputs=[loud])))
    assert fault.endswith("KeyError: 'y'")
    assert checks.error_faults(notebook(widgets=widget_state(error))) == ["widget 01234567: ValueError: no photo"]
    quiet = new_output("stream", name="stderr", text="100%|###| 8/8")
    assert checks.error_faults(notebook(GOOD, new_code_cell("f()", outputs=[quiet]))) == []


def test_cells_that_were_not_executed():
    bad = notebook(GOOD, new_code_cell("f()"), new_code_cell("  "))
    assert checks.unexecuted_faults(bad) == ["code cell 3 was not executed"]


def test_pictures_are_counted_where_they_are_pictures():
    assert checks.picture_faults(notebook(), 2) == ["1 PNG pictures in the outputs, 2 are declared"]
    inside = notebook(widgets=widget_state({"output_type": "display_data", "data": {"image/png": PNG}}))
    assert checks.picture_faults(inside, 2) == []
    broken = notebook()
    broken.cells[2].outputs[0].data["image/png"] = base64.b64encode(b"<html>not a picture").decode()
    assert checks.picture_faults(broken, 1) == ["0 PNG pictures in the outputs, 1 are declared"]


def test_what_must_not_be_stored():
    assert checks.stored_faults(notebook(GOOD, new_code_cell("x = 1\n" * 25))) == []
    assert checks.stored_faults(notebook(GOOD, new_code_cell("x = 1\n" * 26))) == [
        "code cell 3 has 26 lines, the longest may have 25"
    ]
    (fault,) = checks.stored_faults(notebook(widgets=widget_state()))
    assert "metadata.widgets" in fault
    (fault,) = checks.stored_faults(notebook(papermill={"output_path": "x"}))
    assert "metadata.papermill" in fault
    large = new_output("display_data", data={"image/png": PNG + "A" * 1_000_000})
    (fault,) = checks.stored_faults(notebook(GOOD, new_code_cell("f()", outputs=[large])))
    assert "bytes are stored" in fault


@pytest.mark.parametrize("metadata", [{"psic": {}}, {"psic": {"pictures": "many"}}, {"psic": {"pictures": -1}}])
def test_the_number_of_pictures_must_be_declared(metadata: dict[str, object]):
    (fault,) = checks.stored_faults(notebook(**metadata))
    assert "metadata.psic.pictures" in fault
