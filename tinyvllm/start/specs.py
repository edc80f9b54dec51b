"""What an engine tells its plugins, and what it asks of whoever implements its ops and its attention."""

from __future__ import annotations

from tinyvllm.config import Config
from tinyvllm.interfaces import AttentionSpec, OpSpec, PluginContext
from tinyvllm.models.model import Model
from tinyvllm.shapes import ModelShape

_DTYPES = {"cpu": "float32"}
SAFETENSORS_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""From the dtype of a model to its name in the files."""


def plugin_context(config: Config, shape: ModelShape, device: str, max_model_len: int | None = None) -> PluginContext:
    """What every plugin is created with, but for its options.

    Args:
        config: names the limits.
        shape: of the model.
        device: chosen: ``cpu``, ``emulator`` or ``cuda``.
        max_model_len: None: what the configuration says, or the longest that the model takes.
    """
    return PluginContext(
        options=None,
        device=device,
        model=shape,
        max_model_len=max_model_len or config.max_model_len or shape.max_position_embeddings,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        block_size=config.cache.block_size,
        batch_invariant=config.batch_invariant,
        seed=config.seed,
    )


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
