"""For every test: signatures are checked at run time, drawn examples repeat themselves, and what ships loads once."""

import functools
import importlib
import sys
from collections.abc import Iterator

import jaxtyping
import pytest
from hypothesis import settings

if not jaxtyping.config.jaxtyping_disable:  # JAXTYPING_DISABLE=1 in `make bench`: checks cost time
    assert "psic_core" not in sys.modules, "psic_core was imported before its checks were on"
    jaxtyping.install_import_hook("psic_core", "runtime_checks.typechecked")

import psic_core  # its parts wait until a test wants them: pytest's main process, which runs none, starts at once

sys.modules["rfc3987_syntax"] = None  # nbformat would load it for addresses that no notebook has: three seconds
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Workers, which need all, load what psic_core loads: what is first imported within the hook is compiled anew."""
    if hasattr(config, "workerinput"):
        for name in ("compressai", "open_clip", "kornia", "matplotlib.pyplot"):
            importlib.import_module(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: no process waits at the end for another's last one."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(scope="session", autouse=True)
def _cheap_keys() -> None:
    from psic_core import keys

    keys.COSTS[1] = 2**4  # a slot in no time; test_keys tests the real cost
    keys._scrypt = functools.cache(keys._scrypt)  # a passphrase takes 0.3 s only once


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Let the function's own checks answer, as for users, and not the tests' runtime type checker."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


# --- what ships, loaded once in a process; no test changes one ----------------------------------------------


@pytest.fixture(scope="session")
def lite_clip() -> "psic_core.models.vlp.Target":
    """The reader that the shipped models were trained against."""
    return psic_core.load_target("lite-clip")


@pytest.fixture(scope="session")
def target() -> "psic_core.models.vlp.Target":
    """A small random reader."""
    return psic_core.load_target("tiny")


@pytest.fixture(scope="session")
def psic_q2() -> "psic_core.PSIC":
    """A shipped model."""
    return psic_core.load_checkpoint("psic-q2").eval()


@pytest.fixture(scope="session")
def plain_q2() -> "psic_core.PSIC":
    """The same without its triggers."""
    return psic_core.load_checkpoint("psic-q2", plain=True).eval()
