"""Typed, strict reading of ``config.json``: what is missing, mistyped or unsupported is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinyvllm.errors import LoadError

# Values that change what a model computes and that no model here implements, with the value that changes nothing.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "hidden_act": (None, "silu", "swish"),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "attention_chunk_size": (None,),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
    "use_dual_chunk_attention": (None, False),
    "dual_chunk_attention_config": (None,),
    "no_rope_layers": (None,),
}


class ConfigReader:
    """Reads values of one ``config.json``.

    Raises:
        LoadError: at once, if a value is not supported by any model.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where
        for key, harmless in _UNSUPPORTED.items():
            if raw.get(key) not in harmless:
                usable = "".join(f", or use {json.dumps(value)}" for value in harmless if value is not None)
                raise self.unsupported(key, raw[key], f"leave it out{usable}")

    def unsupported(self, key: str, value: object, remedy: str) -> LoadError:
        """The error for a value that would change the result and is not implemented."""
        return LoadError(f"{self.where}: {key} = {value!r} is not supported; {remedy}")

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least ``minimum``; absent or null: the default."""
        value = self.raw.get(key)
        if value is None:
            if default is None:
                raise LoadError(f"{self.where}: {key} is missing; expected a whole number")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise LoadError(f"{self.where}: {key} must be a whole number of at least {minimum}, got {value!r}")
        return value

    def number(self, key: str, default: float | None = None, source: Mapping[str, Any] | None = None) -> float:
        """A positive finite number; absent or null: the default."""
        value = (self.raw if source is None else source).get(key)
        if value is None:
            if default is None:
                raise LoadError(f"{self.where}: {key} is missing; expected a number")
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise LoadError(f"{self.where}: {key} must be a positive number, got {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; absent or null: the default."""
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise LoadError(f"{self.where}: {key} must be true or false, got {value!r}")
        return value

    def mapping(self, key: str) -> Mapping[str, Any] | None:
        """A mapping; None if absent or null."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise LoadError(f"{self.where}: {key} must be a mapping, got {value!r}")
        return value
