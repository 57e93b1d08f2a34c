"""Kernels that start at once: each is forked from a process that has loaded the libraries, which takes ten seconds."""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from jupyter_client.provisioning import local_provisioner

LIBRARIES = ("ipykernel.kernelapp", "matplotlib.pyplot", "psic_core.app.figures", "psic_core.training.checkpoints")
INLINE = "module://matplotlib_inline.backend_inline"  # what a kernel tells Matplotlib before it is loaded


class Forked:
    """What jupyter_client knows as a `subprocess.Popen`.

    Args:
        command: ``python -m ipykernel_launcher -f FILE``.
        env: Its environment. Its folder is this process's.
    """

    stdin = stdout = stderr = None

    def __init__(self, command: Sequence[str], env: Mapping[str, str], **_: Any) -> None:
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload(list(LIBRARIES))
        here, there = forks.Pipe(duplex=False)
        self.process = forks.Process(target=serve, args=(command[3:], os.getcwd(), dict(env), there))
        with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # CPython before 3.12.4 forgets it
            self.process.start()
        there.close()
        here.recv()  # from here on signals to its group reach no other process
        self.pid = self.process.pid
        self.terminate, self.kill = self.process.terminate, self.process.kill

    def poll(self) -> int | None:
        """The exit status, ``None`` while it runs."""
        return self.process.exitcode

    def wait(self) -> int | None:
        """The exit status, once it has ended."""
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """To the kernel alone."""
        os.kill(self.pid, number)


def serve(arguments: Sequence[str], cwd: str, env: Mapping[str, str], started: Connection) -> None:
    """Be a kernel, in a process group of its own."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    started.send(None)
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}", "--log-level=CRITICAL"])


@contextmanager
def own_kernels() -> Iterator[None]:
    """Within it, Jupyter's kernels are this very environment's, whatever others the machine knows, and forked.

    They are not forked on macOS, whose libraries do not bear it, or Windows.
    """
    path = os.pathsep.join(filter(None, [f"{sys.prefix}/share/jupyter", os.environ.get("JUPYTER_PATH")]))
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, JUPYTER_PATH=path))
        if sys.platform == "linux":
            stack.enter_context(patch.object(local_provisioner, "launch_kernel", Forked))
            stack.enter_context(patch.dict(os.environ, MPLBACKEND=INLINE))
        yield
