"""What an engine asks of whoever implements its ops and its attention."""

from __future__ import annotations

from tinyvllm.interfaces import AttentionSpec, OpSpec, PluginContext
from tinyvllm.models.decoder import DecoderConfig

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


def attention_specs(config: DecoderConfig, context: PluginContext) -> list[AttentionSpec]:
    """What attention must be able to do, for each layer."""
    return [
        AttentionSpec(
            device=context.device,
            num_heads=config.shape.num_heads,
            num_kv_heads=config.shape.num_kv_heads,
            head_dim=config.shape.head_dim,
            block_size=context.block_size,
            dtype=_dtype(context),
            scale=config.shape.head_dim**-0.5,
            sliding_window=window,
            batch_invariant=context.batch_invariant,
        )
        for window in config.sliding_windows
    ]


def _dtype(context: PluginContext) -> str:
    return _DTYPES.get(context.device, "bfloat16")
