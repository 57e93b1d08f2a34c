"""For every test: psic_core's signatures are checked at run time, and drawn examples repeat themselves."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

if not jaxtyping.config.jaxtyping_disable:  # JAXTYPING_DISABLE=1 in `make bench`: checks cost time
    assert "psic_core" not in sys.modules, "psic_core was imported before its checks were on"
    jaxtyping.install_import_hook("psic_core", "runtime_checks.typechecked")

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
