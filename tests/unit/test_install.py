"""install.py on paper: what it asks pip for, what it leaves alone, how it fails. `make colab` replays it in full."""

import subprocess
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import install


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Run install.py in a world with these packages; what pip was asked for, constraints first."""

    def world(*words: str, code: int = 0, after: dict[str, str] | None = None, **there: str) -> list[list[str]]:
        commands, states = [], iter([there])

        def run(command: list[str], check: bool) -> SimpleNamespace:
            kept = command.index("--constraint") + 1
            with open(command[kept], encoding="utf-8") as file:
                commands.append([file.read(), *command[kept + 1 :]])
            return SimpleNamespace(returncode=code)

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(install, "installed", lambda: next(states, after or there))
        world.code = install.main(words)
        return commands

    return world


def test_compressai_comes_alone_and_last(asked: Callable[..., list[list[str]]]):
    first, second, third = asked("lab")
    assert first[0] == ""
    assert any(word.startswith("numpy") for word in first[1:])
    assert any(word.startswith("jupyterlab") for word in first[1:])
    assert not any(word.startswith("compressai") for word in first[1:])
    assert second[1:] == ["--no-deps", "compressai==1.2.8"]
    assert third[1:3] == ["--no-deps", "--editable"]


def test_what_is_there_stays(asked: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]):
    names = {install.canonicalize_name(r.name): "1" for r in install.requirements()}
    lacking = {name: v for name, v in names.items() if name not in ("tyro", "kornia", "compressai")}
    first, second, third = asked("--keep", **(lacking | {"numpy": "1.26.2"}))
    assert "numpy==1.26.2\n" in first[0]
    assert sorted(install.Requirement(word).name for word in first[1:]) == ["kornia", "tyro"]
    assert second[0] == ""  # --no-deps changes nothing
    assert third[-1] == str(install.ROOT)
    said = capsys.readouterr().out
    assert "torch 1 stays; tested with " in said
    assert "numpy" not in said
    assert asked("--keep", **names, **{"psic-core": "0.1.0"}) == []  # a second time


def test_failures_are_sentences(asked: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]):
    asked(code=1)
    assert asked.code == 1
    assert "install.py: pip install torch" in capsys.readouterr().err
    asked("labs")
    assert capsys.readouterr().err == "install.py: no extra 'labs'; there are lab, test, tested\n"
    asked("--keep", numpy="1.26.2", after={"numpy": "1.26.4"})
    assert "numpy 1.26.2 -> 1.26.4; restart the session" in capsys.readouterr().err
