"""The one import for authors of plugins: the hook, the sockets, and the values in their calls.

    from tinyvllm.plugin import Plugin, Schedule, hookimpl, pack

Nothing of the core imports this module. What a name means stands where it is defined.
"""

from __future__ import annotations

from tinyvllm.batch import Batch, BatchTensors, LayerCache, LogprobColumns, SampleCall, Sampled, SamplingRows
from tinyvllm.device import Buffer, Device, Gpu, Tensor
from tinyvllm.errors import CapacityError, KernelError, LoadError, PluginError
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import (
    API_VERSION,
    Attention,
    AttentionCall,
    AttentionContext,
    AttentionSpec,
    BindContext,
    BoundAttention,
    Checkpoint,
    GpuSampleCall,
    GpuSampler,
    HostSampler,
    Kernel,
    Loader,
    OpenCall,
    OpSpec,
    Options,
    Plugin,
    PluginContext,
    PreparingKernel,
    SampleKind,
    Sampler,
    SamplerContext,
    SamplerSpec,
    Schedule,
    Scheduler,
    SchedulerView,
    TensorMeta,
)
from tinyvllm.layers import AttentionProjection, HeadSpec, Linear, LinearSpec, Norm, RotaryTable
from tinyvllm.ops.cuda_kernel import BoundKernel, CudaSource, cuda_kernel
from tinyvllm.packing import pack
from tinyvllm.shapes import ModelShape
from tinyvllm.slots import LogprobBuffers, SampledBuffers, SlotParameters
from tinyvllm.step import Started, StartedSequence
from tinyvllm.workspace import StepLimits, Workspace

__all__ = [
    "API_VERSION", "Attention", "AttentionCall", "AttentionContext", "AttentionProjection", "AttentionSpec",
    "Batch", "BatchTensors", "BindContext", "BoundAttention", "BoundKernel", "Buffer", "CapacityError",
    "Checkpoint", "CudaSource", "Device", "Gpu", "GpuSampleCall", "GpuSampler", "HeadSpec", "HostSampler", "Kernel",
    "KernelError", "LayerCache", "Linear", "LinearSpec", "LoadError", "Loader", "LogprobBuffers", "LogprobColumns",
    "ModelShape", "Norm", "OpSpec", "OpenCall", "Options", "Plugin", "PluginContext", "PluginError",
    "PreparingKernel", "RotaryTable", "SampleCall", "SampleKind", "Sampled", "SampledBuffers", "Sampler",
    "SamplerContext", "SamplerSpec", "SamplingRows", "Schedule", "Scheduler", "SchedulerView", "SlotParameters",
    "Started", "StartedSequence", "StepLimits", "Tensor", "TensorMeta", "Workspace", "cuda_kernel", "hookimpl",
    "pack",
]  # fmt: skip
