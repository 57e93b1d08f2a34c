"""The house stands: one source of pins, what ships is there, commands exist, runtime checks are on."""

import ast
import importlib
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from psic_core import objectives

tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

# A folder that only one machine has, in text or code; the pattern does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|root|opt|srv|mnt|home/\w+|Users/\w+)/")
# A version in a command that installs a package, and in a list of packages.
COMMAND_PIN = re.compile(r"pip install\b.*[=~<>]=\s*\d")
LISTED_PIN = re.compile(r"^\s*-\s*[A-Za-z][\w.\[\]-]*\s*[=~<>]=\s*\d", re.MULTILINE)
# Somebody's own package index, or a file in place of one.
INDEX = re.compile(r"--(?:extra-)?index-url|--find-links|--trusted-host|file:/{2}")


def requirements(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def names(wanted: list[Requirement]) -> set[str]:
    return {canonicalize_name(r.name) for r in wanted}


def imported(folder: Path) -> dict[str, Path]:
    """Top-level names of all absolute imports under a folder, also inside functions, and where one stands."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            found |= {module.partition(".")[0]: path for module in modules}
    return found


def undeclared(folder: Path, declared: set[str], own: set[str]) -> dict[str, str]:
    """Imports of a folder that are neither the standard library nor in a declared package."""
    packages = packages_distributions()
    return {
        module: str(path.relative_to(ROOT))
        for module, path in imported(folder).items()
        if module not in own | sys.stdlib_module_names
        and not declared & {canonicalize_name(name) for name in packages.get(module, [])}
    }


def repository_files() -> list[Path]:
    """What is or would be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no git checkout: the repository's files cannot be listed")
    paths = [ROOT / name for name in listed.split("\0") if name]
    assert paths, "git lists no file"
    return [p for p in paths if p.is_file()]


def texts() -> dict[str, str]:
    """Every text file of the repository by its name."""
    found = {}
    for path in repository_files():
        try:
            found[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return found


# --- dependencies -----------------------------------------------------------------------------------

SEES_PACKAGES = pytest.mark.skipif(sys.version_info < (3, 11), reason="CPython 3.10 knows few packages' modules")


@SEES_PACKAGES
def test_psic_core_imports_only_what_it_declares():
    """Jupyter is an extra: only the widgets need it."""
    found = undeclared(ROOT / "psic_core", names(requirements()), {"psic_core"})
    assert found == dict.fromkeys(("ipywidgets", "traitlets"), "psic_core/app/widgets.py")
    assert set(found) <= names(requirements("lab"))


@SEES_PACKAGES
def test_tests_import_only_what_they_declare():
    own = {"psic_core"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    own |= {"install"} | {path.stem for name in ("data", "notebooks") for path in (ROOT / name).rglob("*.py")}
    assert undeclared(ROOT / "tests", names(requirements("lab", "test")), own) == {}


def test_versions_stand_in_pyproject_alone():
    rivals = ["setup.py", "setup.cfg", "Pipfile", "poetry.lock", "uv.lock", "constraints.txt"]
    assert [name for name in rivals if (ROOT / name).exists()] == []
    assert [path.name for path in ROOT.glob("requirements*")] == []
    own = Path(__file__).relative_to(ROOT).as_posix()
    commands = {name: COMMAND_PIN.findall(text) for name, text in texts().items() if name != own}
    assert {name: pins for name, pins in commands.items() if pins} == {}
    assert LISTED_PIN.findall((ROOT / "environment.yml").read_text(encoding="utf-8")) == []


# --- what ships -------------------------------------------------------------------------------------


def test_every_checkpoint_has_a_card():
    folder = ROOT / "data" / "checkpoints"
    weights = {path.stem for path in folder.glob("*.safetensors")}
    cards = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.md"))
    assert [stem for stem in sorted(weights) if stem not in cards] == []


def test_readme_links_to_files_that_are_there():
    links = re.findall(r"\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)", README.read_text(encoding="utf-8"))
    local = [link for pair in links for link in pair if link and not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (ROOT / link.partition("#")[0]).exists()] == []


# --- style of the whole -----------------------------------------------------------------------------


def test_no_path_of_one_machine_and_no_private_index():
    own = Path(__file__).relative_to(ROOT).as_posix()
    found = {
        name: match.group()
        for name, text in texts().items()
        if (match := MACHINE_PATH.search(text) or (INDEX.search(text) if name != own else None))
    }
    assert found == {}


def test_runtime_checks_are_on_unless_switched_off():
    """The two shapes differ; PyTorch would broadcast them without a word."""
    if jaxtyping.config.jaxtyping_disable:
        pytest.skip("JAXTYPING_DISABLE is set")
    with pytest.raises(jaxtyping.TypeCheckError):
        objectives.naive_loss(torch.ones(2, 3), torch.ones(1, 3))


def test_the_house_stays_small():
    """Lines of Python; a package that grows needs a reason, and this number one more commit."""
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "psic_core").rglob("*.py")}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 300} == {}
    assert sum(lengths.values()) <= 8_300
    assert len([p for p in (ROOT / "psic_core").iterdir() if p.name != "__pycache__"]) <= 16
    assert sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "tests").rglob("*.py")) <= 8_500
