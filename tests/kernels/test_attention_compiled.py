"""Both attention kernels compiled to machine code for every architecture: no spills, and room for two blocks an SM."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tinyvllm.devices.nvrtc import ARCHITECTURES, compile_cubin
from tinyvllm.errors import DeviceError
from tinyvllm.kernels.attention_decode import decode_defines
from tinyvllm.kernels.attention_prefill import prefill_defines
from tinyvllm.kernels.attention_sizes import BLOCK_SIZES, HEAD_DIMS, AttentionSizes
from tinyvllm.kernels.launch import source

Defines = Callable[[AttentionSizes], dict[str, str | int]]
KERNELS: dict[str, Defines] = {"attention_decode": decode_defines, "attention_prefill": prefill_defines}
_MAX_SHARED_BYTES = 99 * 1024
"""Of one block, where there is least: sm_86, sm_89 and sm_120."""


def _check(name: str, arch: str, sizes: AttentionSizes) -> None:
    defines = KERNELS[name](sizes)
    try:
        cubin = compile_cubin(source(f"{name}.cu"), arch, defines)
    except DeviceError as error:
        pytest.skip(str(error))
    (usage,) = cubin.usage
    assert usage.name == name
    assert usage.spill_bytes == 0
    assert usage.stack_bytes == 0
    assert usage.static_shared_bytes + int(defines["SHARED_BYTES"]) <= _MAX_SHARED_BYTES


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_the_llama_shape_compiles_without_spills(name: str, arch: str) -> None:
    _check(name, arch, AttentionSizes(32, 8, 64, 16, 256, 4096))


@pytest.mark.slow
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_head_size_compiles_without_spills(name: str, arch: str, head_dim: int, batch_invariant: bool) -> None:
    _check(name, arch, AttentionSizes(32, 8, head_dim, 16, 256, 4096, batch_invariant=batch_invariant))


@pytest.mark.slow
@pytest.mark.parametrize("group_size", range(1, 9))
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_ratio_of_heads_and_block_size_compiles_without_spills(
    name: str, block_size: int, group_size: int
) -> None:
    _check(name, "90a", AttentionSizes(2 * group_size, 2, 64, block_size, 256, 4096))
