"""The sampling kernels as machine code for every architecture: nothing spills, and a block fits in an SM."""

from __future__ import annotations

import pytest

from tinyvllm.devices.nvrtc import ARCHITECTURES, compile_cubin
from tinyvllm.errors import DeviceError
from tinyvllm.kernels.launch import source
from tinyvllm.kernels.logprobs import MAX_LISTED
from tinyvllm.kernels.sample import LIST_SIZE

# What the launchers define when they are given nothing but sizes of a model.
KERNELS: dict[str, dict[str, int]] = {
    "argmax.cu": {"THREADS": 256, "PER_THREAD": 16},
    "sample.cu": {"THREADS": 256, "PER_THREAD": 8},
    "sample_cut.cu": {"THREADS": 1024, "LIST_SIZE": LIST_SIZE},
    "logprobs.cu": {"THREADS": 1024, "LIST_SIZE": LIST_SIZE, "MAX_LISTED": MAX_LISTED},
    "penalties.cu": {"THREADS": 256, "TILE": 2048, "WINDOW": 32},
}
REGISTERS_PER_SM = 65_536
STATIC_SHARED_BYTES = 48 * 1024


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_no_spills_on_any_architecture(name: str, arch: str) -> None:
    try:
        cubin = compile_cubin(source(name), arch, KERNELS[name])
    except DeviceError as error:
        pytest.skip(str(error))
    for kernel in cubin.usage:
        assert kernel.spill_bytes == kernel.stack_bytes == 0
        assert kernel.registers * KERNELS[name]["THREADS"] <= REGISTERS_PER_SM
        assert kernel.static_shared_bytes <= STATIC_SHARED_BYTES
