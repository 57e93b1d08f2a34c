"""Upkeep of the course: README's table, the Colab cells, stored outputs. ``python -m psic_core.course [--check]``."""

import argparse
import base64
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from psic_core.config import repo_dir
from psic_core.readme import fill, renew
from psic_core.tables import markdown

ADDRESS = re.compile(r'REPOSITORY = \\"[^"]*\\"')  # as JSON writes it
LARGEST_PNG = 60_000  # bytes; a larger picture is stored as JPEG,
WIDEST = 1200  # of so many pixels at most
LONG_LIVED = ("papermill", "widgets")  # metadata that a stored notebook need not keep


def notebooks() -> list[Path]:
    """The course in order."""
    return sorted((repo_dir() / "notebooks").glob("[0-9]*.ipynb"))


def solutions() -> list[Path]:
    """The exercises' solutions, one notebook for each of the course."""
    return sorted((repo_dir() / "notebooks" / "solutions").glob("[0-9]*.ipynb"))


def repository() -> str:
    """The project's address: the one line of pyproject.toml that a fork changes.

    Raises:
        ValueError: pyproject.toml names none.
    """
    text = (repo_dir() / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "(https://[^"]+)"', text, re.MULTILINE)
    if not found:
        raise ValueError('pyproject.toml has no line `Repository = "https://..."` under [project.urls]')
    return found[1]


def course_table() -> str:
    """README's table, from the notebooks' metadata."""
    owner = repository().removeprefix("https://github.com/")
    rows = []
    for path in notebooks():
        about = nbformat.read(path, as_version=4).metadata["psic"]
        colab = f"[Colab](https://colab.research.google.com/github/{owner}/blob/main/notebooks/{path.name})"
        solution = f"[solutions](notebooks/solutions/{path.name})"
        title = f"[{path.stem[:2]} {about['title']}](notebooks/{path.name})"
        minutes = f"{about['minutes_cpu']} / {about['minutes_gpu']}"
        rows.append([title, about["goal"], minutes, f"{colab}, {solution}"])
    return markdown(["notebook", "goal", "minutes, CPU / GPU", "open"], rows)


def with_address(text: str) -> str:
    """A notebook's file with the project's address in its Colab cell."""
    return ADDRESS.sub(rf'REPOSITORY = \\"{repository()}\\"', text)


def run_module(folder: Path, *command: object, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python module of this very environment, whatever other Jupyter kernels the machine knows."""
    kernels = os.pathsep.join(filter(None, [f"{sys.prefix}/share/jupyter", os.environ.get("JUPYTER_PATH")]))
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=folder, env=os.environ | {"JUPYTER_PATH": kernels},
        capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Outputs as they are stored: no widgets' state, no traces of the run, large pictures as JPEG."""
    for key in LONG_LIVED:
        notebook.metadata.pop(key, None)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        kept = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        for output in kept:
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            png = base64.b64decode(data.get("image/png", ""))
            if len(png) > LARGEST_PNG:
                del data["image/png"]
                data["image/jpeg"] = _jpeg(png)
        if cell.cell_type == "code":
            cell.outputs = kept
    return notebook


def store(path: Path) -> None:
    """Execute a notebook with its default parameters and keep what it shows.

    Raises:
        RuntimeError: A cell failed; the stored notebook is left as it was.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / path.name
        here = ("--kernel", "python3", "--cwd", path.parent)
        done = run_module(path.parent, "papermill", *here, path, result, "-p", "out_dir", Path(folder) / "out")
        if done.returncode:
            raise RuntimeError(f"{path.name} failed:\n{done.stderr[-2000:]}")
        notebook = normalised(nbformat.read(result, as_version=4))
    nbformat.write(notebook, path)


def main() -> int:
    """Rewrite README's table and the Colab cells; with ``--check`` say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something is stale")
    parser.add_argument("--store", nargs="*", metavar="NN", help="first execute notebooks (default: all), keep outputs")
    args = parser.parse_args()
    for path in notebooks() if args.store is not None else []:
        if not args.store or path.stem[:2] in args.store:
            print(f"executing {path.name}")
            store(path)
    texts = {path: with_address(path.read_text(encoding="utf-8")) for path in (*notebooks(), *solutions())}
    page = repo_dir() / "README.md"
    texts[page] = fill(page.read_text(encoding="utf-8"), "course", course_table())
    return renew(texts, args.check, "python -m psic_core.course")


def _jpeg(png: bytes) -> str:
    buffer, image = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=88, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
