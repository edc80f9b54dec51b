"""A model on its device, ready to carry out steps: ops and attention bound, weights loaded, the KV cache sized."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinyvllm.config.schema import CacheConfig, Config
from tinyvllm.device import Device, Gpu
from tinyvllm.errors import ConfigError
from tinyvllm.interfaces import AttentionSpec, Checkpoint, PluginContext
from tinyvllm.models.decoder import Decoder
from tinyvllm.models.model import Model
from tinyvllm.models.weights import CheckpointReader, WeightReader
from tinyvllm.ops.table import OpTable
from tinyvllm.runner.caches import allocate_caches
from tinyvllm.runner.checked_sampler import CheckedGpuSampler, CheckedHostSampler
from tinyvllm.runner.gpu_runner import GpuRunner
from tinyvllm.runner.host_inputs import HostInputs
from tinyvllm.runner.inputs import GpuInputs
from tinyvllm.runner.runner import ModelRunner
from tinyvllm.runner.token_sampling import TokenSampling
from tinyvllm.start.cache_size import block_bytes, free_memory_bytes, num_kv_blocks
from tinyvllm.start.cpu_threads import with_threads
from tinyvllm.start.sockets import Sockets
from tinyvllm.start.specs import attention_specs, op_spec
from tinyvllm.start.tune import tune_products
from tinyvllm.start.warm_up import record_common, rehearse
from tinyvllm.step import Runner
from tinyvllm.workspace import StepLimits, Workspace

# Logits of so many rows are held at once: 256 rows of 128k take 131 MB.
_LOGITS_ROWS = 256
# Prompt log-probabilities need logits of every prompt position, so many at a time.
_MIN_LOGITS_ROWS = 64


@dataclass(frozen=True, slots=True)
class StartedModel:
    """What carries out steps, and the number of KV blocks that it has."""

    runner: Runner
    num_blocks: int


def start_model(
    device: Device,
    model: Model,
    checkpoint: Checkpoint,
    context: PluginContext,
    config: Config,
    sockets: Sockets,
    report: Callable[[str], None],
) -> StartedModel:
    """Load a model and bind everything that a step needs.

    Args:
        device: where to.
        model: what it is.
        checkpoint: its weights.
        context: what plugins were told.
        config: what the user chose.
        sockets: the plugins.
        report: takes a line for the start-up report.
    Raises:
        ConfigError, PluginError, DeviceError: something asked for does not exist on this device.
        CapacityError: the device's memory does not hold the model and one block.
    """
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    if device.name != "cpu" and dtype != "bfloat16":
        raise ConfigError(f"dtype is {dtype}; on device {device.name} weights are bfloat16: set dtype: bfloat16")
    if device.name == "cuda":
        gc.collect()  # an engine that is gone may hold memory of the card until its cycles are collected
    limits = _limits(context, holds_all_logits=device.name == "cpu")
    workspace = Workspace(device, limits)
    ops = sockets.ops(op_spec(context, device.properties.arch if isinstance(device, Gpu) else None), workspace)
    specs = attention_specs(model, context)
    attention = sockets.attention(specs, workspace)
    room = _Room(device, config.cache, context)
    weights = model.load(
        WeightReader(
            CheckpointReader(
                checkpoint,
                device,
                dtype=dtype,
                max_model_len=context.max_model_len,
                num_positions=room.num_positions(),
                prepare=ops.prepared,
            )
        ),
    )
    sampler = sockets.sampler(workspace)
    samples_here = isinstance(sampler, CheckedGpuSampler)
    decoder = Decoder(model, weights, ops, attention, specs, workspace, is_greedy_here=samples_here)
    ops.check_used()
    if isinstance(device, Gpu):
        if not samples_here:
            report(f"sampler {config.sampler.name}: on the host; logits come down, and no step is decided ahead")
        if config.autotune and not limits.batch_invariant:
            report(tune_products(device, weights, limits))
        inputs = GpuInputs(device, limits, attention)
        started = _start_on_gpu(device, decoder, specs, limits, inputs, config, sampler, room, report)
    else:
        assert isinstance(sampler, CheckedHostSampler), "what the CPU's samplers are bound to"
        num_blocks = room.num_blocks()
        caches = allocate_caches(device, specs, num_blocks)
        runner = ModelRunner(device, decoder, caches, limits, HostInputs(attention), sampler)
        threaded = with_threads(runner, model.shape, config.num_threads, batch_invariant=config.batch_invariant)
        if threaded is not runner:
            report(f"threads: {threaded}")
        started = StartedModel(threaded, num_blocks)
    _report(ops, room, started.num_blocks, context, report)
    return started


def _start_on_gpu(
    device: Gpu,
    decoder: Decoder,
    specs: Sequence[AttentionSpec],
    limits: StepLimits,
    inputs: GpuInputs,
    config: Config,
    sampler: CheckedGpuSampler | CheckedHostSampler,
    room: _Room,
    report: Callable[[str], None],
) -> StartedModel:
    chooses: TokenSampling | CheckedHostSampler
    if isinstance(sampler, CheckedGpuSampler):
        chooses = TokenSampling(device, sampler, decoder.vocab_size, limits, inputs.newest)
    else:
        chooses = sampler

    def make_runner(num_blocks: int) -> GpuRunner:
        caches = allocate_caches(device, specs, num_blocks)
        return GpuRunner(device, decoder, caches, limits, inputs, chooses, enforce_eager=config.enforce_eager)

    if prepares_early(device):
        report(rehearse(make_runner(1), limits))
    num_blocks = room.num_blocks()
    runner = make_runner(num_blocks)
    if prepares_early(device) and not config.enforce_eager:
        report(record_common(runner, limits))
    return StartedModel(runner, num_blocks)


def prepares_early(device: Device) -> bool:
    """Whether kernels are prepared and graphs recorded before the first request, rather than when they are needed.

    A GPU does so. On the emulator a start would take minutes.
    """
    return device.name == "cuda"


class _Room:
    """How much of the device's memory is left for the KV cache, asked before and after the weights are loaded."""

    def __init__(self, device: Device, cache: CacheConfig, context: PluginContext) -> None:
        self._device, self._cache, self._context = device, cache, context
        self._max_blocks: int | None = None
        self.element_bytes = device.activation_dtype.itemsize

    def num_positions(self) -> int:
        """How many positions a rotary table must cover: no sequence on the CPU is longer than the cache could be."""
        if isinstance(self._device, Gpu):
            return self._context.max_model_len
        self._max_blocks = self._affordable()
        return min(self._context.max_model_len, self._max_blocks * self._cache.block_size)

    def num_blocks(self) -> int:
        """KV blocks beside what is on the device now."""
        affordable = self._affordable()
        return affordable if self._max_blocks is None else min(self._max_blocks, affordable)

    def _affordable(self) -> int:
        if isinstance(self._device, Gpu):
            total = self._device.properties.memory_bytes
            free = self._device.memory.free_bytes()
            share = int(total * self._cache.gpu_memory_utilization) - (total - free)
        else:
            free = free_memory_bytes()
            share = int(free * self._cache.gpu_memory_utilization)
        return num_kv_blocks(self._cache, self._context, self.element_bytes, free_bytes=free, share_bytes=share)


def _limits(context: PluginContext, *, holds_all_logits: bool) -> StepLimits:
    """What a step can be; a CPU has room for the logits of all its rows."""
    max_seqs = context.max_num_seqs
    return StepLimits(
        max_tokens=max(context.max_num_batched_tokens, context.max_num_seqs),
        max_seqs=max_seqs,
        max_context_len=context.max_model_len,
        block_size=context.block_size,
        max_logits_rows=max(_MIN_LOGITS_ROWS, max_seqs) if holds_all_logits else min(_LOGITS_ROWS, max_seqs),
        batch_invariant=context.batch_invariant,
    )


def _report(ops: OpTable, room: _Room, num_blocks: int, context: PluginContext, report: Callable[[str], None]) -> None:
    mib = num_blocks * block_bytes(context.model, context.block_size, room.element_bytes) / 2**20
    report(f"kv cache: {num_blocks} blocks of {context.block_size} tokens, {mib:.0f} MiB when all are used")
    for each in ops.report():
        report(str(each))
