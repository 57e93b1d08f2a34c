"""For every test: signatures are checked at run time, drawn examples repeat themselves, and what ships loads once."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

if not jaxtyping.config.jaxtyping_disable:  # JAXTYPING_DISABLE=1 in `make bench`: checks cost time
    assert "psic_core" not in sys.modules, "psic_core was imported before its checks were on"
    jaxtyping.install_import_hook("psic_core", "runtime_checks.typechecked")

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.models.vlp import Target, load_target
from psic_core.training.checkpoints import load_checkpoint

keys.COSTS[1] = 2**4  # a slot in no time; test_keys tests the real cost
keys._scrypt = functools.cache(keys._scrypt)  # a passphrase takes 0.3 s only once

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lies in tests/benchmarks is a benchmark."""
    benchmarks = Path(__file__).parent / "benchmarks"
    for item in items:
        if benchmarks in item.path.parents:
            item.add_marker("benchmark")


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Let the function's own checks answer, as for users, and not the tests' runtime type checker."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


# --- what ships, loaded once in a process; no test changes one ----------------------------------------------


@pytest.fixture(scope="session")
def lite_clip() -> Target:
    """The reader that the shipped models were trained against."""
    return load_target("lite-clip")


@pytest.fixture(scope="session")
def target() -> Target:
    """A small random reader."""
    return load_target("tiny")


@pytest.fixture(scope="session")
def psic_q2() -> PSIC:
    """A shipped model."""
    return load_checkpoint("psic-q2").eval()


@pytest.fixture(scope="session")
def plain_q2() -> PSIC:
    """The same without its triggers."""
    return load_checkpoint("psic-q2", plain=True).eval()
