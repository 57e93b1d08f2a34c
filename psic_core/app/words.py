"""What the command line asks in private, and what it says of errors."""

import os
import sys
from getpass import getpass


def private(given: str, what: str, variable: str = "", twice: bool = False) -> str | None:
    """Words that other users of the machine should not read in its list of processes.

    Args:
        given: The words themselves; ``-`` asks for them on a terminal, else reads a line of standard input.
        what: ``keyword`` or ``passphrase``, for questions and errors.
        variable: Of the environment, looked up where nothing is given.
        twice: Ask again: a mistyped word would lock its owner out.

    Returns:
        ``None`` where there are none.

    Raises:
        ValueError: They are blank, or differ.
    """
    words = given or os.environ.get(variable)
    if given == "-" and sys.stdin.isatty():
        words = getpass(f"{what}: ")
        if twice and getpass(f"{what}, again: ") != words:
            raise ValueError(f"the two {what}s differ")
    elif given == "-":
        words = sys.stdin.readline().rstrip("\r\n")
    if words is not None and not words.strip():
        raise ValueError(f"the {what} is blank; give at least one character that is no space")
    return words


def sentence(error: BaseException) -> str:
    """An error in words, for those who do not read tracebacks."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the files that are there are whole"
    if isinstance(error, MemoryError) or any(w in str(error) for w in ("can't allocate memory", "out of memory")):
        return "too little memory; try --tile 512 or a smaller picture"
    known = isinstance(error, (ValueError, OSError)) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}".rstrip(": ")


def say(message: Warning | str, *_: object) -> None:
    """A warning as a sentence on stderr; takes the place of `warnings.showwarning`."""
    print(f"psic: {message}", file=sys.stderr)


class InputError(ValueError):
    """What the reader has typed or uploaded cannot be used; the sentence says what to do."""


def prompt_list(text: str) -> list[str]:
    """Prompts, one a line; empty lines and repetitions are left out."""
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 2 <= len(prompts) <= 12:
        raise InputError(f"Type 2 to 12 different prompts, one a line; here are {len(prompts)}.")
    return prompts
