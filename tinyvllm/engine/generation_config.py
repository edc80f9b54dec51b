"""What a checkpoint says about generation: its end tokens, and the sampling it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyvllm.errors import LoadError, RequestError
from tinyvllm.request import SamplingParams

# generation_config.json's names, and ours.
_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What holds where a request says nothing.

    Attributes:
        eos_token_ids: each of them ends a completion.
        sampling: fields of :class:`SamplingParams` that differ from its defaults.
    """

    eos_token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]


def generation_defaults(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], tokenizer_eos: int | None
) -> GenerationDefaults:
    """The defaults from ``generation_config.json``, ``config.json`` and the tokenizer together.

    Raises:
        LoadError: an end token that is no token id, or a sampling value out of its range.
    """
    eos: list[int] = []
    for where, value in (
        ("generation_config.json", generation_config.get("eos_token_id")),
        ("config.json", config.get("eos_token_id")),
        ("tokenizer", tokenizer_eos),
    ):
        for token_id in [] if value is None else value if isinstance(value, list) else [value]:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
                raise LoadError(f"{where}: eos_token_id must be a token id or a list of them, got {value!r}")
            if token_id not in eos:
                eos.append(token_id)
    sampling = {
        ours: generation_config[theirs] for theirs, ours in _FIELDS.items() if generation_config.get(theirs) is not None
    }
    try:
        SamplingParams.from_mapping(sampling)
    except RequestError as error:
        raise LoadError(f"generation_config.json: {error}") from error
    return GenerationDefaults(tuple(eos), sampling)
