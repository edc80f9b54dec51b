"""Makes a kernel fail on the card and prints the errors; in a process of its own, which is lost afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tinyvllm.device import Buffer
from tinyvllm.devices.cuda import CudaDevice
from tinyvllm.errors import TinyvllmError

SOURCE = """#include "tinyvllm/prelude.cuh"
extern "C" __global__ void writes_elsewhere(float* out) { out[0] = 1.0f; }
extern "C" __global__ void stops_itself(float* out) { device_assert(out == nullptr); }
"""


def main(folder: Path, kernel: str, check_each_launch: bool) -> None:
    """Launches ``kernel`` badly and prints what the launch, the wait and the next call raise."""
    source = folder / "fault.cu"
    source.write_text(SOURCE)
    cuda = CudaDevice(cache_dir=folder, check_each_launch=check_each_launch)
    function = cuda.compile(source).function(kernel)
    elsewhere = Buffer(1 << 44, (1,), np.dtype(np.float32), None)
    for step in (
        lambda: cuda.launch(function, (1, 1, 1), (32, 1, 1), [elsewhere]),
        cuda.synchronize,
        lambda: cuda.memory.alloc((1,), np.float32),
    ):
        try:
            step()
            print("nothing")
        except TinyvllmError as error:
            print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], len(sys.argv) > 3)
