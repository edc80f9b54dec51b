"""The five sockets: what a plugin must be able to do, and what it is told.

A plugin is registered as a :class:`Plugin` through the hook of its socket (:mod:`tinyvllm.hookspecs`),
chosen by name in the configuration, and created once per engine. Every call takes one frozen context
object, which can gain fields in a later version; arguments are never added.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tinyvllm.batch import Batch, BatchTensors, LayerCache, SampleCall, Sampled, SamplingRows
from tinyvllm.device import Buffer, Gpu, Tensor
from tinyvllm.layers import HeadSpec, Linear, LinearSpec
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.shapes import Array, Int32, ModelShape
from tinyvllm.slots import LogprobBuffers, SampledBuffers, SlotParameters
from tinyvllm.step import Started
from tinyvllm.workspace import StepLimits, Workspace

API_VERSION = 1

_Socket = TypeVar("_Socket", covariant=True)


class Kind(StrEnum):
    """The five sockets. The value is the name of the section in a configuration file."""

    LOADER = "loader"
    ATTENTION = "attention"
    SCHEDULER = "scheduler"
    SAMPLER = "sampler"
    KERNEL = "kernel"

    @property
    def entry_point_group(self) -> str:
        """Where distributions announce plugins of this kind, for this version of the interface."""
        plural = "attention" if self is Kind.ATTENTION else f"{self.value}s"
        return f"tinyvllm.{plural}.v{API_VERSION}"


class Options(BaseModel):
    """Base of a plugin's own options: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What a plugin is given when it is created.

    Attributes:
        options: an instance of the plugin's own options model, validated.
        device: ``"cpu"``, ``"emulator"`` or ``"cuda"``.
        model: the sizes of the model.
        max_model_len: maximum length of a sequence, prompt and output together, in tokens.
        max_num_seqs: maximum number of sequences in one step.
        max_num_batched_tokens: maximum number of tokens in one step.
        block_size: tokens in a KV block.
        batch_invariant: whether a request's logits must have the same bits whatever else is in the batch.
        seed: the engine's, from the configuration.
    """

    options: Any
    device: str
    model: ModelShape
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    batch_invariant: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Plugin(Generic[_Socket]):
    """One registration: a name, how to create it, and the model of its options.

    Attributes:
        name: what the configuration chooses; equal to the entry point's name.
        create: called once per engine; returns the object that fills the socket.
        options: a subclass of :class:`Options`; keys of the section that are not the core's are validated by it.
        description: one line for ``plugins list``.
        api_version: the version of these interfaces that the plugin was written for.
    """

    name: str
    create: Callable[[PluginContext], _Socket]
    options: type[BaseModel] = Options
    description: str = ""
    api_version: int = API_VERSION


# ---------------------------------------------------------------- Loader


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What is known of one stored tensor without reading it.

    Attributes:
        shape: sizes, as stored.
        dtype: ``F64``, ``F32``, ``F16`` or ``BF16``, as in safetensors.
    """

    shape: tuple[int, ...]
    dtype: str


class Checkpoint(Protocol):
    """An opened checkpoint."""

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        ...

    def meta(self, name: str) -> TensorMeta:
        """Shape and dtype of one tensor."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """The tensor, an array in its stored dtype (bfloat16 by ``ml_dtypes``) that nobody writes to afterwards.

        An array that is not C-contiguous is copied.
        """
        ...

    def close(self) -> None:
        """Release files; reading afterwards is an error."""
        ...


@dataclass(frozen=True, slots=True)
class OpenCall:
    """What a loader is given.

    Attributes:
        path: the checkpoint folder, in Hugging Face layout.
        expected: every tensor that the model needs, with its shape.
        dtype: the dtype name that ``config.json`` states, for loaders that make tensors up.
        seed: the engine's, for loaders that make tensors up.
    """

    path: Path
    expected: Mapping[str, tuple[int, ...]]
    dtype: str
    seed: int


@runtime_checkable
class Loader(Protocol):
    """Opens checkpoints. Never unpickles, never runs code that came with a checkpoint."""

    def open(self, call: OpenCall) -> Checkpoint:
        """The checkpoint at ``call.path``: it names and describes at least the tensors of ``call.expected``.

        Raises:
            LoadError: naming the file and what is wrong with it.
        """
        ...


# ---------------------------------------------------------------- Attention


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Attention of one kind of layer. Layers of a model may differ; each kind is one spec.

    Attributes:
        device: ``"cpu"``, ``"emulator"`` or ``"cuda"``.
        num_heads: ``H``, query heads.
        num_kv_heads: ``K``; ``H`` is a multiple of it, and query head ``h`` reads KV head ``h // (H // K)``.
        head_dim: ``D``.
        block_size: tokens in a KV block.
        dtype: of queries, results and cache: ``"float32"`` on the CPU, ``"bfloat16"`` elsewhere.
        scale: multiplies ``q @ k``; usually ``1 / sqrt(D)``.
        sliding_window: a query at ``p`` sees positions ``p - sliding_window + 1 .. p``; None: all up to ``p``.
        batch_invariant: whether a row's result must have the same bits whatever else is in the batch.
    """

    device: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    scale: float
    sliding_window: int | None
    batch_invariant: bool


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """What an attention is given when it is bound to an engine.

    Attributes:
        specs: the kinds of layers that the model has, each once. The plugin supports all of them.
        workspace: the device, the limits of a step, and memory.
    """

    specs: tuple[AttentionSpec, ...]
    workspace: Workspace


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Attention of one layer over the paged cache, in which the K and V of this step's tokens are already.

    Attributes:
        out: ``[T, H, D]``; ``forward`` writes it.
        query: ``[T, H, D]``, rotated; on the CPU read-only.
        cache: the layer's blocks.
        batch: which tokens the step computes, and where their keys and values are.
        plan: what ``plan`` returned for this step.
        spec: of the layer.
        is_first: whether this is the first layer of a step. On a GPU the arrays of ``batch`` may be written by the
            kernel just before; a dependent launch of a later layer may read them before it waits.
    """

    out: Array
    query: Array
    cache: LayerCache
    batch: BatchTensors
    plan: Any
    spec: AttentionSpec
    is_first: bool


@runtime_checkable
class BoundAttention(Protocol):
    """Attention that is ready to be called, for one engine."""

    def host_plan(self, batch: Batch) -> Int32 | None:
        """What is worth computing of a step's arrays while they are on the host: ``[N]`` int32, or None.

        Called before every step. ``N`` is the same for all steps; the array goes up with the step's own. On a GPU it is
        called at the start too, with a step that has no token: what that gives goes with steps of padding alone, and if
        that is None it is not called again.

        Args:
            batch: the arrays of the step, read-only, without padding; a token that the host has not seen is negative.
        """
        ...

    def plan(self, batch: BatchTensors, host_plan: Tensor | None) -> Any:
        """Whatever is worth computing once a step rather than once a layer; given back in every call.

        On the CPU it runs in every step, before the first layer. On a GPU it runs when a step is recorded, and what it
        queues runs in every step: it sees shapes and buffers, never values.
        """
        ...

    def forward(self, call: AttentionCall) -> None:
        """Write each query's attention over its own sequence to ``call.out``; on a GPU: queue that."""
        ...


@runtime_checkable
class Attention(Protocol):
    """Causal attention over a paged KV cache."""

    def supports(self, spec: AttentionSpec) -> list[str]:
        """Reasons why this implementation cannot serve ``spec``; empty if it can."""
        ...

    def bind(self, context: AttentionContext) -> BoundAttention:
        """The attention of one engine, with all the memory that it will ever need."""
        ...


# ---------------------------------------------------------------- Scheduler


class SchedulerView(Protocol):
    """What a scheduler sees: the live sequences, one a row, as read-only columns.

    ``waiting`` and ``running`` hold indices of rows; every other array is indexed by row. The arrays are the engine's
    own: what they hold changes between steps, and the row of a sequence that has ended is used again.
    """

    @property
    def waiting(self) -> Int32:
        """``[num_waiting]`` rows that are not running, in order of arrival (a preempted sequence keeps its arrival)."""
        ...

    @property
    def running(self) -> Int32:
        """``[num_running]`` rows that hold a slot, in order of arrival."""
        ...

    @property
    def num_tokens(self) -> Int32:
        """``[rows]`` known tokens plus those in flight: prompt, generated, sampled but not yet read back."""
        ...

    @property
    def num_computed(self) -> Int32:
        """``[rows]`` tokens whose K and V are in the cache, or will be once the step in flight ends."""
        ...

    @property
    def num_in_flight(self) -> Int32:
        """``[rows]`` sampled tokens not yet read back."""
        ...

    @property
    def num_blocks(self) -> Int32:
        """``[rows]`` KV blocks held."""
        ...

    @property
    def arrival(self) -> NDArray[np.int64]:
        """``[rows]`` order of arrival."""
        ...

    @property
    def priority(self) -> Int32:
        """``[rows]`` lower is sooner; 0 unless the request says otherwise."""
        ...

    @property
    def deadline(self) -> NDArray[np.float64]:
        """``[rows]`` seconds on the clock of ``now``; infinity if there is none."""
        ...

    @property
    def now(self) -> float:
        """Seconds on a monotonic clock."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens in a KV block."""
        ...

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that can be handed out now."""
        ...

    @property
    def budget(self) -> int:
        """Maximum number of tokens of this step, ``max_num_batched_tokens``."""
        ...

    @property
    def max_num_seqs(self) -> int:
        """Maximum number of sequences that run at once."""
        ...

    @property
    def num_free_slots(self) -> int:
        """How many waiting sequences may start now."""
        ...

    def request_id(self, row: int) -> str:
        """The request of a row (several rows may share one when ``n > 1``)."""
        ...

    def blocks_freed_by(self, rows: Sequence[int] | Int32) -> int:
        """KV blocks that would become free if these rows were preempted; a shared block, once no row holds it."""
        ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """A decision for one step.

    Attributes:
        rows: ``[B]``, int32; sequences that compute something, each once.
        num_tokens: ``[B]``, int32; how many tokens each of them computes, at least 1.
        preempt: ``[P]``, int32; rows that lose their blocks and slot first, in order; their tokens are kept.
    """

    rows: Int32
    num_tokens: Int32
    preempt: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))


@runtime_checkable
class Scheduler(Protocol):
    """Decides what the next step computes. A pure decision: the engine validates it and carries it out."""

    def schedule(self, view: SchedulerView) -> Schedule | Mapping[str, int]:
        """The next step; a mapping of request id to number of tokens is accepted as a convenience."""
        ...


# ---------------------------------------------------------------- Sampler


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """What a sampler must be able to do for an engine.

    Attributes:
        device: ``"cpu"``, ``"emulator"`` or ``"cuda"``.
        vocab_size: ``V``.
    """

    device: str
    vocab_size: int


@dataclass(frozen=True, slots=True)
class SamplerContext:
    """What a sampler is given when it is bound to an engine.

    Attributes:
        spec: what it must be able to do.
        workspace: the device, the limits of a step, and memory.
    """

    spec: SamplerSpec
    workspace: Workspace


@runtime_checkable
class HostSampler(Protocol):
    """A sampler that knows arrays of the host alone.

    On the CPU that is all there is. On a GPU the logits come down for it, and a sequence must wait for its token
    before its next step can be decided; the start-up report says so. A plugin may be one itself: it then serves every
    device, and needs neither ``supports`` nor ``bind``.
    """

    def sample(self, call: SampleCall) -> Sampled:
        """One token a row, from the row's own random stream, whatever else is in the step."""
        ...


@dataclass(frozen=True, slots=True)
class SampleKind:
    """Which work the rows of a step need, as far as it decides what is queued. A graph is recorded for each kind.

    Attributes:
        needs_logits: false if the most likely token of each row is all that is wanted; the projection to the
            vocabulary may then be one kernel with the choice of the token, and ``sample`` is not called.
        num_listed: log-probabilities to give of each row, beside the chosen token's; None: none at all.
        detail: the sampler's own part of the kind.
    """

    needs_logits: bool
    num_listed: int | None
    detail: Hashable = None


@dataclass(frozen=True, slots=True)
class GpuSampleCall:
    """What a sampler on a GPU is given: buffers of ``n`` rows.

    Attributes:
        kind: what ``kind`` returned.
        logits: ``[n, V]``, float32, as the model gave them; they must stay as they are.
        slots: ``[n]``, int32; the slot of each row's sequence, below zero for padding, which samples nothing.
        positions: ``[n]``, int32; position that each new token will have in its sequence.
        parameters: by slot.
        out: where the tokens go, and whether a row's logits were corrupt.
        logprobs: where log-probabilities go, ``1 + kind.num_listed`` columns; None if the kind has none.
    """

    kind: SampleKind
    logits: Buffer
    slots: Buffer
    positions: Buffer
    parameters: SlotParameters
    out: SampledBuffers
    logprobs: LogprobBuffers | None


@runtime_checkable
class GpuSampler(Protocol):
    """A sampler on a GPU: what it queues is recorded with the step.

    A sampler may also have ``host``, a :class:`HostSampler` for the sequences that it cannot sample itself.
    """

    def can_sample(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Whether a sequence with these parameters can be sampled here; if not, ``host`` does it."""
        ...

    def start(self, started: Started) -> None:
        """Learn of sequences that have been given a slot; again after a preemption."""
        ...

    def kind(self, rows: SamplingRows) -> SampleKind:
        """Which work these rows need; asked when the rows of a step are others than those of the step before."""
        ...

    def sample(self, call: GpuSampleCall) -> None:
        """Queue the choice of a token for each row. Runs when a step is recorded: it sees buffers, never values."""
        ...

    def record(self, token_ids: Buffer, parameters: SlotParameters, slots: Buffer) -> None:
        """Queue whatever depends on tokens that the host has chosen, ``[n]`` int32, as if they were chosen here."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Chooses the next token of each row."""

    def supports(self, spec: SamplerSpec) -> list[str]:
        """Reasons why this implementation cannot serve ``spec``; empty if it can."""
        ...

    def bind(self, context: SamplerContext) -> HostSampler | GpuSampler:
        """The sampler of one engine, with all the memory that it will ever need."""
        ...


# ---------------------------------------------------------------- Kernel


@dataclass(frozen=True, slots=True)
class OpSpec:
    """What an implementation of an op must be able to do for one kind of layer of an engine.

    Attributes:
        device: ``"cpu"``, ``"emulator"`` or ``"cuda"``.
        model: the sizes of the model.
        dtype: of activations: ``"float32"`` on the CPU, ``"bfloat16"`` on a GPU.
        block_size: tokens in a KV block.
        batch_invariant: whether a row's bits must depend on its own sequence only.
        arch: of the card or of the one emulated, 90 for sm_90; None on the CPU, and before a device is opened.
        linear: the linear layer that the op applies; None where it applies none, or any.
        heads: the heads that the op splits its rows into; None where it does not.
    """

    device: str
    model: ModelShape
    dtype: str
    block_size: int
    batch_invariant: bool
    arch: int | None = None
    linear: LinearSpec | None = None
    heads: HeadSpec | None = None


@dataclass(frozen=True, slots=True)
class BindContext:
    """What a kernel is given when it is bound to an engine.

    Attributes:
        spec: what it must be able to do.
        op: resolves the name of an op to the callable that serves it for the same layer; for fused ops made of others.
            A kernel that the configuration names for an op gets what serves the others where nothing is replaced.
        workspace: the device, the limits of a step, and memory between kernels.
    """

    spec: OpSpec
    op: Callable[[str], Callable[..., None]]
    workspace: Workspace

    @property
    def limits(self) -> StepLimits:
        """The largest step."""
        return self.workspace.limits

    @property
    def gpu(self) -> Gpu:
        """The device, for a kernel that serves nothing but GPUs."""
        return self.workspace.gpu

    @property
    def linear(self) -> LinearSpec:
        """The linear layer that the op applies."""
        assert self.spec.linear is not None, "the op applies no linear layer"
        return self.spec.linear

    def rows(self, name: str, width: int) -> Tensor:
        """``[max_tokens, width]`` of the activations' type: memory between the parts of an op, by what it holds."""
        return self.workspace.buffer(name, (self.limits.max_tokens, width))


@runtime_checkable
class Kernel(Protocol):
    """One implementation of one or more named ops for some device.

    A kernel may also have ``prepare(op, layer) -> Linear``, see :class:`PreparingKernel`.
    """

    def ops(self) -> Sequence[str]:
        """Names of the ops that it implements."""
        ...

    def supports(self, op: str, spec: OpSpec) -> list[str]:
        """Reasons why it cannot serve ``spec``; empty if it can."""
        ...

    def bind(self, op: str, context: BindContext) -> Callable[..., None]:
        """A callable with the signature of the op, which :mod:`tinyvllm.ops.simple` or ``fused`` declares.

        It writes to the op's outputs and returns None. Weights are read-only.
        """
        ...


@runtime_checkable
class PreparingKernel(Kernel, Protocol):
    """A kernel that wants the weights of linear layers in another order than a checkpoint has them."""

    def prepare(self, op: str, layer: Linear) -> Linear:
        """The layer with its weight stored anew, under a scheme's name of the kernel's choice; or ``layer`` itself.

        Called while a model is loaded, tensor by tensor, if every op that is called with the layer is served by this
        kernel for the new scheme too. What it returns replaces the layer.
        """
        ...


SOCKETS: Mapping[Kind, type] = {
    Kind.LOADER: Loader,
    Kind.ATTENTION: Attention,
    Kind.SCHEDULER: Scheduler,
    Kind.SAMPLER: Sampler,
    Kind.KERNEL: Kernel,
}
