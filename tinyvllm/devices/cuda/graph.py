"""CUDA graphs: what is queued in a ``with`` block is recorded, and replayed by one call."""

from __future__ import annotations

import weakref
from typing import Any

from tinyvllm.devices.cuda.driver import Driver
from tinyvllm.errors import KernelError


class CudaGraph:
    """A sequence of launches recorded once; usable after the ``with`` block that recorded it.

    The buffers and kernels in it live as long as it does.
    """

    def __init__(self, driver: Driver, stream: Any) -> None:
        self.kernels: list[str] = []
        """Names of the launches, fills, copies and GEMMs in it, in order."""
        self._driver = driver
        self._stream = stream
        self._kept: list[object] = []
        self._handle: Any = None
        self._summary = "an empty graph"
        # Relaxed: other threads, and cuBLAS when it loads a kernel, may allocate meanwhile.
        mode = driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        driver.call(driver.api.cuStreamBeginCapture, stream, mode)

    def add(self, name: str, *kept: object) -> None:
        """Notes a launch, and what must stay alive for it."""
        self.kernels.append(name)
        self._kept.extend(kept)

    def finish(self) -> None:
        """Ends the recording and prepares the replay."""
        driver = self._driver
        graph = driver.call(driver.api.cuStreamEndCapture, self._stream)
        try:
            self._handle = driver.call(driver.api.cuGraphInstantiate, graph, 0)
        finally:
            driver.call(driver.api.cuGraphDestroy, graph)
        weakref.finalize(self, _destroy, driver, self._handle)
        driver.call(driver.api.cuGraphUpload, self._handle, self._stream)
        if self.kernels:
            self._summary = f"a graph of {len(self.kernels)} launches ({self.kernels[0]} to {self.kernels[-1]})"

    def abandon(self) -> None:
        """Ends the recording after an error in the ``with`` block."""
        api = self._driver.api
        status, graph = api.cuStreamEndCapture(self._stream)
        if status == 0:
            api.cuGraphDestroy(graph)

    def replay(self) -> None:
        """Queues the whole sequence again.

        Raises:
            KernelError: it is still being recorded, or its recording failed; or an earlier kernel failed.
        """
        if self._handle is None:
            raise KernelError("replay of a graph whose capture has not ended, or failed")
        self._driver.recent.append(self._summary)
        self._driver.call(self._driver.api.cuGraphLaunch, self._handle, self._stream)


def _destroy(driver: Driver, handle: Any) -> None:
    driver.api.cuGraphExecDestroy(handle)
