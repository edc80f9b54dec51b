"""What an engine asks of whoever implements its ops."""

from __future__ import annotations

from tinyvllm.interfaces import OpSpec, PluginContext
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.device_weights import WEIGHT_SCHEME


def op_spec(
    config: DecoderConfig, context: PluginContext, *, attention: str, sampler: str, arch: int | None = None
) -> OpSpec:
    """The spec of a model on the device of ``context``.

    Args:
        config: the model.
        context: what kernel plugins were created with.
        attention, sampler: the plugins in use.
        arch: of the device, once it is open.
    """
    is_cpu = context.device == "cpu"
    return OpSpec(
        device=context.device,
        model=config.shape,
        dtype="float32" if is_cpu else "bfloat16",
        weight_scheme="dense" if is_cpu else WEIGHT_SCHEME,
        block_size=context.block_size,
        batch_invariant=context.batch_invariant,
        attention=attention,
        sampler=sampler,
        has_qk_norm=config.has_qk_norm,
        sliding_windows=tuple(dict.fromkeys(config.sliding_windows)),
        arch=arch,
    )
