"""Which device an engine runs on, and its runner there."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinyvllm.config.schema import CacheConfig
from tinyvllm.device import Gpu
from tinyvllm.errors import ConfigError, DeviceError, PluginError
from tinyvllm.interfaces import Checkpoint, OpSpec, PluginContext
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.device_decoder import DeviceDecoder
from tinyvllm.models.device_weights import load_device_weights, unsupported_on_device
from tinyvllm.ops.device_values import DeviceLimits, Workspace
from tinyvllm.ops.table import OpTable
from tinyvllm.runner.checked_sampler import CheckedSampler
from tinyvllm.runner.device_runner import DeviceRunner, allocate_device_caches
from tinyvllm.runner.sampling import DEVICE_SAMPLER, DeviceSampling
from tinyvllm.start.cache_size import num_kv_blocks
from tinyvllm.start.op_spec import op_spec
from tinyvllm.start.tune import tune_products
from tinyvllm.start.warm_up import record_common, rehearse

_BFLOAT16_BYTES = 2
_MIN_BLOCK_SIZE = 8
_ATTENTION = "paged"
NUMPY_ALONE = "plugins of the Attention socket compute with NumPy, on device: cpu"
"""Why an attention plugin cannot serve on a device."""
# Logits of so many rows are held at once: 256 rows of 128k take 131 MB.
_LOGITS_ROWS = 256


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The device's name and why it was chosen."""

    name: str
    reason: str


def choose_device(wanted: str) -> DeviceChoice:
    """What ``device:`` means here. ``auto`` is the GPU if there is a usable one, else the CPU.

    Raises:
        DeviceError: it is not available, saying what is missing.
    """
    if wanted != "auto":
        return DeviceChoice(wanted, "named in the configuration")
    from tinyvllm.devices.cuda import find_driver, probe

    if find_driver() is None:  # no extra of ours would help
        return DeviceChoice("cpu", "auto: no NVIDIA driver here")
    found = probe()
    if found.is_usable:
        return DeviceChoice("cuda", f"auto: {found.device_name}")
    missing = found.problems[0] if found.problems else "no CUDA device"
    return DeviceChoice("cpu", f"auto: {missing}")


def open_device(name: str, *, batch_invariant: bool) -> Gpu:
    """The emulator, or the first GPU.

    Raises:
        DeviceError: what is missing, and how to install it.
    """
    if name == "emulator":
        from tinyvllm.devices.emulator.device import EmulatorDevice

        return EmulatorDevice()
    from tinyvllm.devices.cuda import CudaDevice

    return CudaDevice(batch_invariant=batch_invariant)


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What the configuration says that matters to a device.

    Attributes:
        cache: how large the KV cache may be.
        dtype: of weights and cache; bfloat16 only.
        attention, sampler: names of the plugins chosen.
        enforce_eager: no graphs.
        autotune: time the library's matrix products at the first start on a card.
        is_card: whether it is a card, where kernels are prepared and graphs recorded before the first request.
    """

    cache: CacheConfig
    dtype: str
    attention: str
    sampler: str
    enforce_eager: bool
    autotune: bool
    is_card: bool


def build_device_runner(
    device: Gpu,
    config: DecoderConfig,
    checkpoint: Checkpoint,
    context: PluginContext,
    settings: DeviceSettings,
    make_sampler: Callable[[PluginContext], CheckedSampler],
    make_table: Callable[[OpSpec, Workspace], OpTable],
    tell: Callable[[str], None],
) -> tuple[DeviceRunner, int]:
    """Weights, ops, buffers and cache on the device; the runner and the number of KV blocks.

    Args:
        device, config, checkpoint, context, settings: what runs where, and how.
        make_sampler: for what the device does not sample.
        make_table: who serves each op.
        tell: takes a line for the start-up report.
    Raises:
        ConfigError, PluginError, DeviceError: something asked for does not exist on this device.
        CapacityError: the device's memory does not hold the model and one block.
    """
    _check(config, context, settings)
    if settings.is_card:
        gc.collect()  # an engine that is gone may hold memory of the card until its cycles are collected
    limits = DeviceLimits(
        max_tokens=max(context.max_num_batched_tokens, context.max_num_seqs),
        max_seqs=context.max_num_seqs,
        max_context_len=context.max_model_len,
        block_size=context.block_size,
        max_logits_rows=min(_LOGITS_ROWS, max(context.max_num_seqs, 1)),
        batch_invariant=context.batch_invariant,
    )
    weights = load_device_weights(config, checkpoint, device, context.max_model_len)
    workspace = Workspace(device, limits)
    spec = op_spec(config, context, attention=settings.attention, sampler=settings.sampler, arch=device.properties.arch)
    table = make_table(spec, workspace)
    samples_here = settings.sampler == DEVICE_SAMPLER
    decoder = DeviceDecoder(config.shape, weights, table.op, workspace, is_greedy_here=samples_here)
    table.check_used()
    if settings.autotune and not limits.batch_invariant:
        tell(tune_products(device, weights, limits))
    sampling = DeviceSampling(
        device,
        vocab_size=config.shape.vocab_size,
        num_slots=limits.max_seqs,
        max_rows=limits.max_logits_rows,
        max_context_len=limits.max_context_len,
        is_chosen=samples_here,
    )
    sampler = make_sampler(context)

    def make_runner(num_blocks: int) -> DeviceRunner:
        caches = allocate_device_caches(device, config.shape, num_blocks, context.block_size)
        return DeviceRunner(device, decoder, caches, limits, sampling, sampler, enforce_eager=settings.enforce_eager)

    if settings.is_card:
        tell(rehearse(make_runner(1), limits))
    num_blocks = _num_blocks(device, context, settings.cache)
    runner = make_runner(num_blocks)
    if settings.is_card and not settings.enforce_eager:
        tell(record_common(runner, limits))
    return runner, num_blocks


def is_attention_of_devices(name: str) -> bool:
    """Whether a configuration may name this attention on a device, where ops do its work."""
    return name == _ATTENTION


def attention_on_device(device: str) -> str:
    """What computes attention on a device."""
    return f"on {device} attention is the ops attention_decode and attention_prefill, which kernels: can replace"


def _check(config: DecoderConfig, context: PluginContext, settings: DeviceSettings) -> None:
    name = context.device
    if context.block_size < _MIN_BLOCK_SIZE:
        raise ConfigError(
            f"cache.block_size is {context.block_size}; on device {name} it is {_MIN_BLOCK_SIZE}, 16, 32 or 64, "
            "because a kernel loads whole rows of a block"
        )
    if settings.dtype != "bfloat16":
        raise ConfigError(f"dtype is {settings.dtype}; on device {name} weights are bfloat16: set dtype: bfloat16")
    if not is_attention_of_devices(settings.attention):
        raise PluginError(f"attention {settings.attention!r}: {NUMPY_ALONE}; {attention_on_device(name)}")
    reasons = unsupported_on_device(config)
    if reasons:
        raise DeviceError(f"device {name} cannot run this model: {'; '.join(reasons)}")


def _num_blocks(device: Gpu, context: PluginContext, cache: CacheConfig) -> int:
    """KV blocks beside the weights and buffers that are on the device."""
    total = device.properties.memory_bytes
    memory: Any = device.memory
    free = int(memory.free_bytes()) if hasattr(memory, "free_bytes") else total
    share = int(total * cache.gpu_memory_utilization) - (total - free)
    return num_kv_blocks(cache, context, _BFLOAT16_BYTES, free_bytes=free, share_bytes=share)
