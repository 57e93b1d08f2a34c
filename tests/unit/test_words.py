"""Words that others should not read, and errors as sentences."""

import io
from pathlib import Path

import pytest
import torch

from psic_core.app import words
from psic_core.app.words import private, sentence


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_words_come_from_arguments_files_standard_input_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "words").write_text("from a file\r\nnot this\n")
    monkeypatch.setenv("PSIC_TEST", "from the environment")
    monkeypatch.setattr("sys.stdin", io.StringIO("my cat \nmy dog\n"))
    assert private("given", "keyword", "PSIC_TEST") == "given"
    assert private("", "keyword", "PSIC_TEST", tmp_path / "words") == "from a file"
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


def test_blank_words_and_two_sources_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "blank").write_text("\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setenv("PSIC_TEST", " ")
    for given, file in ((" ", None), ("-", None), ("", tmp_path / "blank"), ("", None)):
        with pytest.raises(ValueError, match="the keyword is blank"):
            private(given, "keyword", "PSIC_TEST", file)
    with pytest.raises(ValueError, match="as words and as a file"):
        private("words", "keyword", file=tmp_path / "blank")


def test_errors_are_sentences():
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (MemoryError(), torchs.value):
        assert sentence(error).startswith("too little memory; try --tile 512")
    assert sentence(KeyboardInterrupt()).startswith("interrupted")
    assert sentence(ValueError("x is 3")) == "x is 3"
    assert sentence(KeyError("x")) == "KeyError: 'x'"
    assert sentence(ValueError()) == "ValueError"
