"""What the ``config.json`` files of the Llama family have in common."""

from __future__ import annotations

from tinyvllm.errors import LoadError
from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.rotary import read_rotary
from tinyvllm.shapes import ModelShape

_DTYPES = ("bfloat16", "float16", "float32")


def decoder_config(
    reader: ConfigReader,
    *,
    default_head_dim: int | None = None,
    default_num_kv_heads: int | None = None,
    has_qkv_bias: bool = False,
    has_output_bias: bool = False,
    has_mlp_bias: bool = False,
    has_qk_norm: bool = False,
    sliding_windows: tuple[int | None, ...] | None = None,
) -> DecoderConfig:
    """The decoder, from the keys that all models share and what a model's own file says of the rest.

    Args:
        reader: the file.
        default_head_dim: where ``head_dim`` is absent; None: ``hidden_size / num_attention_heads``.
        default_num_kv_heads: where ``num_key_value_heads`` is absent (null means as many as query heads); None: as
            many as query heads.
        has_qkv_bias, has_output_bias, has_mlp_bias, has_qk_norm: as in :class:`DecoderConfig`.
        sliding_windows: of each layer; None: no layer has one.
    Raises:
        LoadError: a key is missing or wrong, or sizes do not fit together.
    """
    shape = _shape(reader, default_head_dim, default_num_kv_heads)
    dtype = str(reader.raw.get("dtype") or reader.raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in _DTYPES:
        raise reader.unsupported("dtype", dtype, f"supported are {', '.join(_DTYPES)}")
    return DecoderConfig(
        shape=shape,
        dtype=dtype,
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        rotary=read_rotary(reader),
        has_qkv_bias=has_qkv_bias,
        has_output_bias=has_output_bias,
        has_mlp_bias=has_mlp_bias,
        has_qk_norm=has_qk_norm,
        has_tied_embeddings=reader.flag("tie_word_embeddings", False),
        sliding_windows=sliding_windows or (None,) * shape.num_layers,
    )


def layered_sliding_windows(reader: ConfigReader) -> tuple[int | None, ...]:
    """Qwen's windows: ``layer_types`` names the layers that have one, or all from ``max_window_layers`` on do.

    Raises:
        LoadError: ``layer_types`` has the wrong length or a type that is not implemented.
    """
    num_layers = reader.integer("num_hidden_layers")
    if not reader.flag("use_sliding_window", False):
        types = reader.raw.get("layer_types") or ()
        if any(t != "full_attention" for t in types):
            raise reader.unsupported("layer_types", types, "set use_sliding_window, or use full_attention throughout")
        return (None,) * num_layers
    window = reader.integer("sliding_window", 4096)
    types = reader.raw.get("layer_types")
    if types is None:
        first = reader.integer("max_window_layers", 28, minimum=0)
        return tuple(window if i >= first else None for i in range(num_layers))
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != num_layers or any(t not in known for t in types):
        raise reader.unsupported("layer_types", types, f"expected {num_layers} of {', '.join(known)}")
    return tuple(known[t] for t in types)


def _shape(reader: ConfigReader, default_head_dim: int | None, default_num_kv_heads: int | None) -> ModelShape:
    hidden_size, num_heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    is_absent = "num_key_value_heads" not in reader.raw and default_num_kv_heads is not None
    num_kv_heads = default_num_kv_heads if is_absent else reader.integer("num_key_value_heads", num_heads)
    assert num_kv_heads is not None
    if num_heads % num_kv_heads:
        raise LoadError(
            f"{reader.where}: num_attention_heads = {num_heads} is not a multiple of "
            f"num_key_value_heads = {num_kv_heads}"
        )
    if default_head_dim is None:
        if reader.raw.get("head_dim") is None and hidden_size % num_heads:
            raise LoadError(
                f"{reader.where}: head_dim is missing, and hidden_size = {hidden_size} is not a multiple of "
                f"num_attention_heads = {num_heads}"
            )
        default_head_dim = max(1, hidden_size // num_heads)
    head_dim = reader.integer("head_dim", default_head_dim)
    if head_dim % 2:
        raise reader.unsupported("head_dim", head_dim, "rotary embedding needs an even head size")
    return ModelShape(
        num_layers=reader.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=reader.integer("intermediate_size"),
        vocab_size=reader.integer("vocab_size"),
        max_position_embeddings=reader.integer("max_position_embeddings", 2048),
    )
