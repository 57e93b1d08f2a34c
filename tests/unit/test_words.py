"""Words that others should not read, and errors as sentences."""

import io

import pytest
import torch

from psic_core.app import words
from psic_core.app.words import private, sentence


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_words_come_from_arguments_standard_input_or_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PSIC_TEST", "from the environment")
    monkeypatch.setattr("sys.stdin", io.StringIO("my cat \nmy dog\n"))
    assert private("given", "keyword", "PSIC_TEST") == "given"
    assert [private("-", "keyword"), private("-", "passphrase")] == ["my cat ", "my dog"]
    assert private("", "keyword", "PSIC_TEST") == "from the environment"
    assert private("", "keyword", "PSIC_NOTHING") is None


def test_a_terminal_is_asked_without_echo_and_twice_where_a_slip_would_hurt(monkeypatch: pytest.MonkeyPatch):
    answers = ["my cat", "my cat", "my cat", "my cay", "once"]
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(words, "getpass", lambda question: answers.pop(0))
    assert private("-", "keyword", twice=True) == "my cat"
    with pytest.raises(ValueError, match="the two keywords differ"):
        private("-", "keyword", twice=True)
    assert private("-", "keyword") == "once"


def test_blank_words_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setenv("PSIC_TEST", " ")
    for given in (" ", "-", ""):
        with pytest.raises(ValueError, match="the keyword is blank"):
            private(given, "keyword", "PSIC_TEST")


def test_errors_are_sentences():
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (MemoryError(), torchs.value):
        assert sentence(error).startswith("too little memory; try --tile 512")
    assert sentence(KeyboardInterrupt()).startswith("interrupted")
    assert sentence(ValueError("x is 3")) == "x is 3"
    assert sentence(KeyError("x")) == "KeyError: 'x'"
    assert sentence(ValueError()) == "ValueError"
