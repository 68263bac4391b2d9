"""This interpreter → the kernel that runbooks run in, whatever kernels the machine has."""

from __future__ import annotations

import sys

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager


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
