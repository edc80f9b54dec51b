"""The devices' kernels: the launchers of ``tinyvllm/kernels`` bound to the ops they implement.

Few rows go through kernels that stream the weights once, in a version for each number of rows of ``FUSED_ROWS``; many
rows through the device's matrix products, an op made of its parts then. Launchers are compiled, and their scratch
memory allocated, when they are first called; the attention's when it is bound. Registering imports nothing of CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from tinyvllm.devices.interface import Buffer
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import API_VERSION as INTERFACE_VERSION
from tinyvllm.interfaces import BindContext, Kernel, OpSpec, Plugin, PluginContext
from tinyvllm.kernels import device_compose
from tinyvllm.kernels.add import Add
from tinyvllm.kernels.attention_decode import AttentionDecode
from tinyvllm.kernels.attention_prefill import AttentionPrefill
from tinyvllm.kernels.attention_sizes import AttentionSizes
from tinyvllm.kernels.device_values import AttentionLayer, DeviceBatch, DeviceCache
from tinyvllm.kernels.embedding import Embedding
from tinyvllm.kernels.gate_up_silu import GateUpSilu
from tinyvllm.kernels.greedy_ids import GreedyIds
from tinyvllm.kernels.linear import LinearRows
from tinyvllm.kernels.linear_residual import LinearResidual
from tinyvllm.kernels.lm_head import LmHeadArgmax, LmHeadLogits
from tinyvllm.kernels.logits import LogitsRows
from tinyvllm.kernels.qkv_rope_append import QkvRopeAppend
from tinyvllm.kernels.rms_norm import RmsNorm
from tinyvllm.kernels.rope_append import RopeAppend
from tinyvllm.kernels.silu_mul import SiluMul
from tinyvllm.kernels.tiling import Tiling, choose_tiling
from tinyvllm.layers import AttentionProjection, Linear, Norm

FUSED_ROWS = (1, 8, 16, 32)
"""Most rows of each version of the fused kernels; more rows go to the matrix products."""
FUSED_HEAD_ROWS = (1,)
"""The same of the vocabulary's projection, which is long enough for the matrix products from two rows on."""

_INVARIANT_TILE = 8
_WEIGHT_SCHEME = "rows"

Launch = Callable[..., None]


class NvrtcKernels:
    """Every op of a device but ``attention``, which is made of its two parts."""

    API_VERSION = INTERFACE_VERSION

    def __init__(self, context: PluginContext) -> None:
        """Nothing to keep: an op is told all it needs when it is bound."""

    def ops(self) -> Sequence[str]:
        """All ops that it implements."""
        return list(_BINDERS)

    def supports(self, op: str, spec: OpSpec) -> list[str]:
        """Reasons why not."""
        reasons = []
        if spec.device == "cpu":
            reasons.append("runs on cuda and the emulator, not on the CPU")
        if spec.weight_scheme != _WEIGHT_SCHEME:
            reasons.append(f"knows weights stored in {_WEIGHT_SCHEME}, not {spec.weight_scheme}")
        if spec.dtype != "bfloat16":
            reasons.append(f"computes with bfloat16, not {spec.dtype}")
        if spec.kv_layout != "HND":
            reasons.append(f"knows the KV layout HND, not {spec.kv_layout}")
        if op == "rms_norm_qkv_rope_append" and spec.has_qk_norm:
            reasons.append("heads have norms of their own, which the fused kernel does not apply")
        return reasons

    def bind(self, op: str, context: BindContext) -> Launch:
        """The op as a callable of the signature in ``DeviceOps``."""
        return _BINDERS[op](context)


# ---------------------------------------------------------------- which launcher


class _Tiers:
    """Which version of a fused kernel serves so many rows."""

    def __init__(self, context: BindContext, fused_rows: Sequence[int] = FUSED_ROWS) -> None:
        limits = context.on_device.limits
        self._fused_rows = fused_rows
        self._is_invariant = limits.batch_invariant
        self.max_tokens = limits.max_tokens
        self._max_head_rows = max(limits.max_logits_rows, limits.max_seqs)

    def rows(self, num_rows: int) -> int | None:
        """Its most rows; None: the matrix products are faster."""
        if self._is_invariant:
            return self.max_tokens
        return next((rows for rows in self._fused_rows if rows >= num_rows), None)

    def head_rows(self, num_rows: int) -> int | None:
        """The same for the vocabulary."""
        if self._is_invariant:
            return max(self._max_head_rows, num_rows)
        return next((rows for rows in self._fused_rows if rows >= num_rows), None)

    def tiling(self, size_k: int, num_outputs: int, *, may_split: bool = True) -> Tiling | None:
        """The launcher's own choice; with ``batch_invariant`` one cut for any number of rows, also for one."""
        if not self._is_invariant:
            return None
        return choose_tiling(size_k, _INVARIANT_TILE, num_outputs=num_outputs, may_split=may_split)


# ---------------------------------------------------------------- simple ops


def _embedding(context: BindContext) -> Launch:
    return Embedding(context.on_device.device, hidden_size=context.spec.model.hidden_size)


def _rms_norm(context: BindContext) -> Launch:
    device = context.on_device.device
    made = cache(lambda size, eps: RmsNorm(device, hidden_size=size, eps=eps))

    def rms_norm(out: Buffer, x: Buffer, norm: Norm) -> None:
        made(x.shape[1], norm.eps)(out, x, norm.weight)

    return rms_norm


def _linear(context: BindContext) -> Launch:
    device, tiers = context.on_device.device, _Tiers(context)

    @cache
    def made(out_features: int, in_features: int, max_rows: int) -> LinearRows:
        return LinearRows(
            device, in_features=in_features, out_features=out_features, max_rows=max_rows,
            tiling=tiers.tiling(in_features, out_features),
        )  # fmt: skip

    def linear(out: Buffer, x: Buffer, layer: Linear) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None and layer.bias is None:
            device.gemm(out, x, layer.weight)
        else:
            made(*layer.weight.shape, rows or tiers.max_tokens)(out, x, layer.weight, layer.bias)

    return linear


def _add(context: BindContext) -> Launch:
    return Add(context.on_device.device, hidden_size=context.spec.model.hidden_size)


def _rope_append(context: BindContext) -> Launch:
    device = context.on_device.device
    made = cache(lambda h, k, d, eps: RopeAppend(device, num_heads=h, num_kv_heads=k, head_dim=d, eps=eps))

    def rope_append(
        query: Buffer, cache: DeviceCache, qkv: Buffer, projection: AttentionProjection, batch: DeviceBatch
    ) -> None:
        p, q_norm, k_norm = projection, projection.q_norm, projection.k_norm
        launch = made(p.num_heads, p.num_kv_heads, p.head_dim, 0.0 if q_norm is None else q_norm.eps)
        launch(
            query, *cache, qkv, p.rotary.cos, p.rotary.sin, batch.positions, batch.slot_mapping,
            query_norm=None if q_norm is None else q_norm.weight, key_norm=None if k_norm is None else k_norm.weight,
        )  # fmt: skip

    return rope_append


def _silu_mul(context: BindContext) -> Launch:
    return SiluMul(context.on_device.device, intermediate_size=context.spec.model.intermediate_size)


def _lm_head(context: BindContext) -> Launch:
    device, tiers = context.on_device.device, _Tiers(context, FUSED_HEAD_ROWS)

    @cache
    def made(vocab_size: int, hidden_size: int, max_rows: int) -> LogitsRows:
        return LogitsRows(
            device, hidden_size=hidden_size, vocab_size=vocab_size, max_rows=max_rows,
            tiling=tiers.tiling(hidden_size, vocab_size, may_split=False),
        )  # fmt: skip

    def lm_head(logits: Buffer, x: Buffer, head: Linear) -> None:
        rows = tiers.head_rows(x.shape[0])
        if rows is None:
            device.gemm(logits, x, head.weight)
        else:
            made(*head.weight.shape, rows)(logits, x, head.weight)

    return lm_head


def _argmax(context: BindContext) -> Launch:
    workspace, model = context.on_device, context.spec.model
    return GreedyIds(workspace.device, vocab_size=model.vocab_size, max_rows=workspace.limits.max_logits_rows)


# ---------------------------------------------------------------- attention


def _attention_decode(context: BindContext) -> Launch:
    by_window = {
        window: AttentionDecode(context.on_device.device, sizes=_attention_sizes(context, window))
        for window in context.spec.sliding_windows
    }

    def attention_decode(
        out: Buffer, query: Buffer, cache: DeviceCache, batch: DeviceBatch, layer: AttentionLayer
    ) -> None:
        by_window[layer.sliding_window](
            out, query, *cache, batch.block_tables, batch.context_lens,
            cu_seqlens_q=batch.cu_seqlens_q, is_plan_older=not layer.is_first,
        )  # fmt: skip

    return attention_decode


def _attention_prefill(context: BindContext) -> Launch:
    by_window = {
        window: AttentionPrefill(context.on_device.device, sizes=_attention_sizes(context, window))
        for window in context.spec.sliding_windows
    }

    def attention_prefill(
        out: Buffer, query: Buffer, cache: DeviceCache, batch: DeviceBatch, layer: AttentionLayer
    ) -> None:
        assert batch.cu_seqlens_q is not None
        by_window[layer.sliding_window](
            out, query, *cache, batch.block_tables, batch.context_lens, batch.cu_seqlens_q,
            min_queries=2, is_plan_older=not layer.is_first,
        )  # fmt: skip

    return attention_prefill


def _attention_sizes(context: BindContext, window: int | None) -> AttentionSizes:
    model, limits = context.spec.model, context.on_device.limits
    return AttentionSizes(
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        block_size=limits.block_size,
        max_batch=limits.max_seqs,
        max_context_len=limits.max_context_len,
        sliding_window=window,
        batch_invariant=limits.batch_invariant,
    )


# ---------------------------------------------------------------- fused ops


def _qkv(context: BindContext) -> Launch:
    device, composed = context.on_device.device, device_compose.compose_qkv(context)
    tiers = _Tiers(context)
    model = context.spec.model
    num_outputs = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim

    @cache
    def made(eps: float, max_rows: int) -> QkvRopeAppend:
        return QkvRopeAppend(
            device, hidden_size=model.hidden_size, num_heads=model.num_heads, num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim, eps=eps, max_rows=max_rows, tiling=tiers.tiling(model.hidden_size, num_outputs),
        )  # fmt: skip

    def rms_norm_qkv_rope_append(
        query: Buffer, cache: DeviceCache, x: Buffer, norm: Norm, projection: AttentionProjection, batch: DeviceBatch
    ) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None:
            composed(query, cache, x, norm, projection, batch)
            return
        qkv, rotary = projection.qkv, projection.rotary
        made(norm.eps, rows)(
            query, *cache, x, norm.weight, qkv.weight, qkv.bias, rotary.cos, rotary.sin, batch.positions,
            batch.slot_mapping,
        )  # fmt: skip

    return rms_norm_qkv_rope_append


def _linear_residual(context: BindContext) -> Launch:
    device, tiers = context.on_device.device, _Tiers(context)

    @cache
    def made(out_features: int, in_features: int, max_rows: int) -> LinearResidual:
        return LinearResidual(
            device, in_features=in_features, out_features=out_features, max_rows=max_rows,
            tiling=tiers.tiling(in_features, out_features),
        )  # fmt: skip

    def linear_residual(residual: Buffer, x: Buffer, layer: Linear) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None and layer.bias is None:
            device.gemm(residual, x, layer.weight, accumulate=True)
        else:
            made(*layer.weight.shape, rows or tiers.max_tokens)(residual, x, layer.weight, layer.bias)

    return linear_residual


def _gate_up(context: BindContext) -> Launch:
    device, composed = context.on_device.device, device_compose.compose_gate_up(context)
    tiers = _Tiers(context)
    model = context.spec.model

    @cache
    def made(eps: float, max_rows: int) -> GateUpSilu:
        return GateUpSilu(
            device, hidden_size=model.hidden_size, intermediate_size=model.intermediate_size, eps=eps,
            max_rows=max_rows, tiling=tiers.tiling(model.hidden_size, 2 * model.intermediate_size),
        )  # fmt: skip

    def rms_norm_gate_up_silu(out: Buffer, x: Buffer, norm: Norm, gate_up: Linear) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None:
            composed(out, x, norm, gate_up)
        else:
            made(norm.eps, rows)(out, x, norm.weight, gate_up.weight)

    return rms_norm_gate_up_silu


def _rms_norm_lm_head(context: BindContext) -> Launch:
    return _bind_head(LmHeadLogits, context, device_compose.compose_lm_head(context))


def _lm_head_argmax(context: BindContext) -> Launch:
    return _bind_head(LmHeadArgmax, context, device_compose.compose_lm_head_argmax(context))


def _bind_head(
    launcher: type[LmHeadLogits] | type[LmHeadArgmax], context: BindContext, composed: Callable[..., None]
) -> Launch:
    device, tiers = context.on_device.device, _Tiers(context, FUSED_HEAD_ROWS)

    @cache
    def made(vocab_size: int, hidden_size: int, eps: float, max_rows: int) -> LmHeadLogits | LmHeadArgmax:
        return launcher(
            device, hidden_size=hidden_size, vocab_size=vocab_size, eps=eps, max_rows=max_rows,
            tiling=tiers.tiling(hidden_size, vocab_size, may_split=False),
        )  # fmt: skip

    def head_of_rows(out: Buffer, x: Buffer, norm: Norm, head: Linear) -> None:
        rows = tiers.head_rows(x.shape[0])
        if rows is None:
            composed(out, x, norm, head)
        else:
            made(*head.weight.shape, norm.eps, rows)(out, x, norm.weight, head.weight)

    return head_of_rows


_BINDERS: Mapping[str, Callable[[BindContext], Launch]] = {
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "add": _add,
    "rope_append": _rope_append,
    "silu_mul": _silu_mul,
    "lm_head": _lm_head,
    "argmax": _argmax,
    "attention_decode": _attention_decode,
    "attention_prefill": _attention_prefill,
    "rms_norm_qkv_rope_append": _qkv,
    "linear_residual": _linear_residual,
    "rms_norm_gate_up_silu": _gate_up,
    "rms_norm_lm_head": _rms_norm_lm_head,
    "lm_head_argmax": _lm_head_argmax,
}


@hookimpl
def register_kernels() -> list[Plugin[Kernel]]:
    """The plugin ``nvrtc``."""
    return [Plugin("nvrtc", NvrtcKernels, description="CUDA C++ kernels, on cuda and the emulator")]
