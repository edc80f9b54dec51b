"""Launches ``download.cu``: a few bytes to the host, such as the tokens of a step."""

from __future__ import annotations

import numpy as np

from tinyvllm.devices.compile_cache import INCLUDE_DIR
from tinyvllm.devices.interface import Buffer, Device
from tinyvllm.errors import KernelError

MOST_BYTES = 8192
"""Above it the copy engine is as fast."""
_SOURCE = INCLUDE_DIR.parent / "download.cu"
_THREADS = 256
_WORD_BYTES = 4


class SmallDownload:
    """A copy by a kernel, to memory of the host that the device can address.

    Args:
        device: where it runs.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._function = device.compile(_SOURCE, {"THREADS": _THREADS}).function("download")

    def __call__(self, target: Buffer, source: Buffer) -> None:
        """Queue it.

        Args:
            target: at an address of a multiple of 4.
            source: as many bytes.
        Raises:
            KernelError: their sizes differ, or the target lies elsewhere.
        """
        if target.nbytes != source.nbytes or target.pointer % _WORD_BYTES:
            raise KernelError(
                f"download: {source.nbytes} bytes to {target.nbytes} at address {target.pointer:#x}, expected as many "
                f"at a multiple of {_WORD_BYTES}"
            )
        arguments = (target, source, np.int32(source.nbytes))
        self._device.launch(self._function, (1, 1, 1), (_THREADS, 1, 1), arguments, pdl=True)
