"""The interpreter that runs → the kernel that runbooks run in, whatever kernels the machine has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync


class OpsKernelManager(AsyncKernelManager):
    """
    Starts this interpreter's own kernel.

    No kernelspec is looked up, so none can shadow it; the transport is encrypted, for other users of the machine can
    reach a loopback port.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**{"transport_encryption": "auto", **options})

    @property
    def kernel_spec(self) -> KernelSpec:
        """The one kernel that this manager starts."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        metadata = {"supported_encryption": ["curve"]}
        return KernelSpec(argv=argv, display_name="ops", language="python", metadata=metadata)


@contextmanager
def started(folder: Path) -> Iterator[OpsKernelManager]:
    """
    Start a kernel in a folder and end it with the `with` block.

    It boots while the caller goes on: what the caller imports meanwhile costs a run nothing. Where the block is
    interrupted, so is the kernel: a change on its way then lets go of its lock.
    """
    manager = OpsKernelManager(kernel_name="python3")
    # A kernel that is interrupted logs a traceback of its own sockets, onto the terminal of who pressed Ctrl-C.
    quiet = ["--HistoryManager.hist_file=:memory:", "--log-level=CRITICAL"]
    run_sync(manager.start_kernel)(cwd=str(folder), extra_arguments=quiet)
    try:
        yield manager
    except KeyboardInterrupt:
        run_sync(manager.shutdown_kernel)(now=False)  # interrupts it first, and once
        raise
    finally:
        if run_sync(manager.is_alive)():
            run_sync(manager.shutdown_kernel)(now=True)
