"""What an engine asks of whoever implements its ops and its attention."""

from __future__ import annotations

from tinyvllm.interfaces import AttentionSpec, OpSpec, PluginContext
from tinyvllm.models.model import Model

_DTYPES = {"cpu": "float32"}


def op_spec(context: PluginContext, arch: int | None = None) -> OpSpec:
    """What every op must be able to do, whatever the layer.

    Args:
        context: what plugins are created with.
        arch: of the GPU, once it is open.
    """
    return OpSpec(
        device=context.device,
        model=context.model,
        dtype=_dtype(context),
        block_size=context.block_size,
        batch_invariant=context.batch_invariant,
        arch=arch,
    )


def attention_specs(model: Model, context: PluginContext) -> list[AttentionSpec]:
    """What attention must be able to do, for each layer."""
    return [
        AttentionSpec(
            device=context.device,
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            head_dim=layer.head_dim,
            block_size=context.block_size,
            dtype=_dtype(context),
            scale=layer.scale,
            sliding_window=layer.sliding_window,
            batch_invariant=context.batch_invariant,
        )
        for layer in model.attention_layers
    ]


def _dtype(context: PluginContext) -> str:
    return _DTYPES.get(context.device, "bfloat16")
