"""What the ``config.json`` files of decoders have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tinyvllm.errors import LoadError
from tinyvllm.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader, as_json
from tinyvllm.models.rotary import RopeDefaults, RotaryConfig, longest_context
from tinyvllm.shapes import ModelShape

_MAX_VOCAB_SIZE = 2**31  # token ids are int32
_MAX_HEADS = 2**20
# The words of a file, and what weights are rounded to. float64 has more than is ever computed with; a file that leaves
# the choice open has whatever its tensors say, and float32 holds all of that.
_DTYPES: Mapping[str, str] = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
    "float64": "float32",
    "double": "float32",
    "auto": "float32",
}
FULL, SLIDING = "full_attention", "sliding_attention"
DEFAULT_WINDOW = 4096  # of every configuration class that has a window


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a family's configuration class takes where a key is absent.

    Attributes:
        max_position_embeddings: the context length.
        num_kv_heads: ``num_key_value_heads``; None: as many as query heads. Null means that in every family.
        head_dim: None: ``hidden_size / num_attention_heads``.
        is_null_head_dim_derived: null for ``head_dim`` means ``hidden_size / num_attention_heads``; otherwise it is an
            error, as in the configuration class.
        rms_norm_eps: of every norm.
        has_tied_embeddings: the head is the embedding table.
        rope: of the RoPE.
    """

    max_position_embeddings: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    is_null_head_dim_derived: bool = True
    rms_norm_eps: float = 1e-6
    has_tied_embeddings: bool = False
    rope: RopeDefaults = RopeDefaults()  # noqa: RUF009 - frozen


def read_shape(
    reader: ConfigReader,
    defaults: Defaults,
    read_rotary: Callable[[ConfigReader, int, int, RopeDefaults], RotaryConfig],
) -> tuple[ModelShape, RotaryConfig]:
    """The sizes of a decoder, and its RoPE, which says how far positions reach.

    Args:
        reader: the file.
        defaults: for absent keys.
        read_rotary: reads the RoPE, of a head size, of so many positions, with these defaults.
    Raises:
        LoadError: a key is missing or wrong, or sizes do not fit together.
    """
    num_heads, num_kv_heads, head_dim = _heads(reader, defaults)
    # What the file says; how far the positions go depends on the scaling of RoPE as well.
    positions = reader.integer("max_position_embeddings", defaults.max_position_embeddings, maximum=MAX_POSITIONS)
    rotary = read_rotary(reader, head_dim, positions, defaults.rope)
    limit = longest_context(rotary, positions)
    if limit > MAX_POSITIONS:
        raise LoadError(
            f"{reader.where}: max_position_embeddings = {positions} times the factor {rotary.factor:g} of RoPE "
            f"is {limit} positions, at most {MAX_POSITIONS} can be counted"
        )
    shape = ModelShape(
        num_layers=num_hidden_layers(reader),
        hidden_size=reader.integer("hidden_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=reader.integer("intermediate_size"),
        vocab_size=reader.integer("vocab_size", maximum=_MAX_VOCAB_SIZE),
        max_position_embeddings=limit,
    )
    return shape, rotary


def read_dtype(reader: ConfigReader) -> str:
    """The dtype that ``dtype`` or, as files before transformers 5 call it, ``torch_dtype`` names."""
    reader.ignore("torch_dtype")  # where the file has both, the new name wins
    key = "dtype" if reader.get("dtype") is not None else "torch_dtype"
    word = reader.get(key)
    if word is None:
        return _DTYPES["auto"]
    known = _DTYPES.get(word.removeprefix("torch.")) if isinstance(word, str) else None
    if known is None:
        raise LoadError(
            f"{reader.where}: {key} = {as_json(word)} is not supported; expected one of {', '.join(_DTYPES)}. It is "
            "what the weights were made in: correct it where it is wrong"
        )
    return known


def num_hidden_layers(reader: ConfigReader) -> int:
    """How many layers there are."""
    return reader.integer("num_hidden_layers", maximum=MAX_LAYERS)


def sliding_window(reader: ConfigReader) -> int | None:
    """``sliding_window``: absent, the 4,096 of the configuration classes; null, none."""
    if reader.get("sliding_window", DEFAULT_WINDOW) is None:
        return None
    return reader.integer("sliding_window", DEFAULT_WINDOW, maximum=MAX_POSITIONS)


def optional_window(reader: ConfigReader) -> int | None:
    """``sliding_window`` of families whose configuration class has none: absent or null, none."""
    if reader.get("sliding_window") is None:
        return None
    return reader.integer("sliding_window", maximum=MAX_POSITIONS)


def layer_types(reader: ConfigReader, known: Sequence[str]) -> list[str] | None:
    """``layer_types``, one of ``known`` for each layer; None if absent or null.

    Raises:
        LoadError: it is no such list, naming the first type that is unknown.
    """
    types = reader.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list):
        raise reader.wrong("layer_types", types, "a list")
    unknown = [each for each in types if each not in known]
    if unknown:
        raise reader.unsupported("layer_types", unknown[0], f"layers of this model are {' or '.join(known)}")
    if len(types) != num_hidden_layers(reader):
        raise LoadError(
            f"{reader.where}: layer_types has {len(types)} entries, expected one for each of the "
            f"{num_hidden_layers(reader)} layers"
        )
    return types


def no_windows(reader: ConfigReader) -> None:
    """Return if every layer sees all positions: a window that is named in the file is used by nobody.

    Raises:
        LoadError: ``layer_types`` names another attention.
    """
    reader.ignore("sliding_window")
    layer_types(reader, (FULL,))


def switched_sliding_windows(reader: ConfigReader) -> tuple[int | None, ...]:
    """Qwen's windows, where ``use_sliding_window`` is set: of the layers that ``layer_types`` names, or of all from
    ``max_window_layers`` on.

    Raises:
        LoadError: ``layer_types`` has the wrong length, a type that is not implemented, or a window that is off.
    """
    num_layers = num_hidden_layers(reader)
    reader.ignore("sliding_window")  # where it is switched off
    window = sliding_window(reader) if reader.flag("use_sliding_window", False) else None
    types = layer_types(reader, (FULL, SLIDING))
    if types is None:
        first = reader.integer("max_window_layers", 28, minimum=0)
        return tuple(window if i >= first else None for i in range(num_layers))
    return windows_of(reader, types, window, "set use_sliding_window and sliding_window")


def windows_of(reader: ConfigReader, types: Sequence[str], window: int | None, remedy: str) -> tuple[int | None, ...]:
    """The window of each layer: those of type ``sliding_attention`` have one.

    Raises:
        LoadError: there is such a layer, and no window.
    """
    if window is None and SLIDING in types:
        raise reader.unsupported("layer_types", SLIDING, f"there is no window; {remedy}, or use {FULL} throughout")
    return tuple(window if each == SLIDING else None for each in types)


def _heads(reader: ConfigReader, defaults: Defaults) -> tuple[int, int, int]:
    """Query heads, KV heads and the size of a head."""
    hidden_size = reader.integer("hidden_size")
    num_heads = reader.integer("num_attention_heads", maximum=_MAX_HEADS)
    absent = num_heads if defaults.num_kv_heads is None else defaults.num_kv_heads
    num_kv_heads = reader.integer("num_key_value_heads", absent, null=num_heads, maximum=_MAX_HEADS)
    if num_heads % num_kv_heads:
        said = "" if reader.get("num_key_value_heads") is not None else " (the default where it is absent)"
        raise LoadError(
            f"{reader.where}: num_attention_heads = {num_heads} is not a multiple of "
            f"num_key_value_heads = {num_kv_heads}{said}"
        )
    derived = max(1, hidden_size // num_heads)
    null = derived if defaults.is_null_head_dim_derived else None
    head_dim = reader.integer("head_dim", defaults.head_dim or derived, null=null, maximum=_MAX_HEADS)
    is_derived = reader.get("head_dim") is None and (defaults.head_dim is None or reader.has("head_dim"))
    if is_derived and hidden_size % num_heads:
        raise LoadError(
            f"{reader.where}: head_dim is missing, and hidden_size = {hidden_size} is not a multiple of "
            f"num_attention_heads = {num_heads}"
        )
    if head_dim % 2:
        raise reader.unsupported("head_dim", head_dim, "rotary embedding needs an even head size")
    return num_heads, num_kv_heads, head_dim
