"""Install PSIC for the Python that runs this: ``python install.py``; with ``lab`` or ``test``, their extras too.

pip alone does not do it everywhere: CompressAI 1.2.8 asks for NumPy below 2, although it runs with NumPy 2. So what it
really needs stands in pyproject.toml, and it is installed last, without what it asks for. Where it has no wheel
(CPython 3.13) pip builds it, which takes a C++ compiler.

A PyTorch that is there stays. On Linux the default one brings NVIDIA's libraries: an environment of 6 to 7 GB, with
``lab`` and ``test``. With PyTorch's CPU build it takes 2.1 GB (seen with torch 2.13): install that one first, with the
command that pytorch.org shows for pip and CPU (its torchvision is not yet tried), then run this.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent
ALONE = "compressai"  # installed without what it asks for


def main(argv: Sequence[str] | None = None) -> int:
    """Install; a mistake is one sentence on stderr and exit status 1."""
    parser = argparse.ArgumentParser("python install.py", description=__doc__)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="lab (with JupyterLab), test, tested")
    parser.add_argument("--keep", action="store_true", help="install what is missing, change nothing that is there")
    args = parser.parse_args(argv)
    try:
        wanted = requirements(args.extras)
        before = installed()
        if args.keep:
            say_what_is_untested(wanted, before)
            wanted = [r for r in wanted if canonicalize_name(r.name) not in before]
        pip(*(str(r) for r in wanted if r.name != ALONE), frozen=before if args.keep else {})
        pip("--no-deps", *(f"{r.name}{r.specifier}" for r in wanted if r.name == ALONE))
        if not (args.keep and "psic-core" in before):
            pip("--no-deps", "--editable", str(ROOT))
        after = installed()
        changed = [f"{n} {v} -> {after.get(n)}" for n, v in before.items() if after.get(n) != v]
        if args.keep and changed:
            raise RuntimeError(f"packages changed that should have stayed: {', '.join(changed)}; restart the session")
    except (ValueError, RuntimeError) as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1
    print("PSIC is installed.")
    return 0


def requirements(extras: Iterable[str] = ()) -> list[Requirement]:
    """What pyproject.toml asks for on this Python; CompressAI on every Python.

    Raises:
        ValueError: There is no such extra.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known, lines = project["optional-dependencies"], list(project["dependencies"])
    for extra in extras:
        if extra not in known:
            raise ValueError(f"no extra {extra!r}; there are {', '.join(known)}")
        lines += known[extra]
    found = [Requirement(line) for line in lines]
    return [r for r in found if r.name == ALONE or not r.marker or r.marker.evaluate()]


def installed() -> dict[str, str]:
    """The version of each package that is there, by its canonical name."""
    found = ((d.metadata["Name"], d.version) for d in metadata.distributions())
    return {canonicalize_name(name): version for name, version in found if name}


def say_what_is_untested(wanted: Iterable[Requirement], before: dict[str, str]) -> None:
    """Name the packages that stay although pyproject.toml asks for other versions."""
    for r in wanted:
        version = before.get(canonicalize_name(r.name))
        if version and not r.specifier.contains(version, prereleases=True):
            print(f"{r.name} {version} stays; tested with {r.specifier}")


def pip(*words: str, frozen: dict[str, str] | None = None) -> None:
    """``pip install`` with what is ``frozen`` left as it is; nothing where only options are named.

    Raises:
        RuntimeError: pip failed; it has said why.
    """
    if all(word.startswith("--") for word in words):
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text("".join(f"{name}=={version}\n" for name, version in (frozen or {}).items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(kept), *words]
        if subprocess.run(command, check=False).returncode:
            raise RuntimeError(f"pip install {' '.join(words)} failed; what pip says above is why")


if __name__ == "__main__":
    sys.exit(main())
