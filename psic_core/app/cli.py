"""The command line, on tyro: ``psic`` or ``python -m psic_core``.

Each command is a dataclass, whose fields are its options and whose comments are their help; ``run`` does the work.
Heavy libraries are imported there, so that ``psic --help`` need not wait for PyTorch.
"""

import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Annotated, Any, Union

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, subcommand

from psic_core.app import cli_files, cli_models
from psic_core.app.words import say, sentence

COMMANDS: dict[str, type] = {
    "protect": cli_files.Protect,
    "encode": cli_files.Encode,
    "decode": cli_files.Decode,
    "info": cli_files.Info,
    "train": cli_models.Train,
    "recipe": cli_models.RunRecipe,
    "evaluate": cli_models.Evaluate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; whatever goes wrong is one sentence on stderr and exit status 2, Ctrl-C 130.

    PSIC_TRACEBACK=1 shows where it went wrong.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            command = parsed(words)
    except SystemExit as stop:
        if stop.code:
            print(f"psic: {_sentence(said.getvalue(), words)}", file=sys.stderr)
        return int(stop.code or 0)
    warnings.showwarning = say
    try:
        if "" in words:
            raise ValueError(f"what follows {words[words.index('') - 1]} is blank")
        command.run()
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("PSIC_TRACEBACK"):
            raise
        print(f"psic {words[0]}: {sentence(error)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    return 0


def parsed(words: Sequence[str]) -> Any:
    """The command that the words name, its options filled in.

    Raises:
        SystemExit: They name none, or ask for help.
    """
    choices = Union[tuple(Annotated[kind, subcommand(name)] for name, kind in COMMANDS.items())]  # noqa: UP007
    about = "Privacy-Shielded Image Compression"
    return tyro.cli(choices, prog="psic", description=about, args=words, config=(OmitArgPrefixes, FlagCreatePairsOff))


def _sentence(box: str, words: Sequence[str]) -> str:
    """What tyro says in a box, on one line: parts are divided by rules, and the last says where there is more."""
    bare = re.sub(r"\x1b\[[\d;]*m", "", box)  # colours, on a terminal
    lines = (line.strip("│| ") for line in bare.splitlines()[1:-1])
    *told, _ = " ".join(";" if line and set(line) <= set("─-") else line for line in lines).split(" ; ")
    said = "; ".join(told).partition(" Got errors:")[0].rstrip(" .;")
    return f"{said}; psic {words[0] + ' ' if words and words[0] in COMMANDS else ''}--help says more"
