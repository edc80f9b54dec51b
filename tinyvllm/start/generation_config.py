"""What a checkpoint says about generation: its end tokens, and the sampling it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyvllm._shown import shown
from tinyvllm.errors import LoadError, RequestError
from tinyvllm.request import SamplingParams

FILE = "generation_config.json"
# generation_config.json's names, and ours.
_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_WHOLE = ("top_k", "max_tokens")
_MAX_ID = 2**31 - 1  # token ids are int32


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What holds where a request says nothing.

    Attributes:
        eos_token_ids: each of them ends a completion; all are in the vocabulary.
        sampling: fields of :class:`SamplingParams` that differ from its defaults.
        left_out: what the checkpoint says and is not obeyed, a line each, with the reason.
    """

    eos_token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def generation_defaults(
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    tokenizer_eos: int | None,
    *,
    vocab_size: int,
    takes_sampling: bool = True,
) -> GenerationDefaults:
    """The defaults from ``generation_config.json``, ``config.json`` and the tokenizer together.

    A sampling value that cannot be used is left out: it is a default, and no reason to refuse the model. So is an end
    token that is not in the vocabulary: it is never generated. Some files say -1 where they have none.

    Args:
        config, generation_config: the parsed files.
        tokenizer_eos: the tokenizer's end token; None: it has none.
        vocab_size: of the model.
        takes_sampling: False: of ``generation_config.json`` only the end tokens count.
    Raises:
        LoadError: an end token that is no token id.
    """
    eos: list[int] = []
    left_out: list[str] = []
    for where, value in (
        (FILE, generation_config.get("eos_token_id")),
        ("config.json", config.get("eos_token_id")),
        ("tokenizer", tokenizer_eos),
    ):
        for token_id in _token_ids(where, value):
            if not 0 <= token_id < vocab_size:
                left_out.append(f"{where}: eos_token_id {token_id} is not in the vocabulary of {vocab_size}, ignored")
            elif token_id not in eos:
                eos.append(token_id)
    sampling: dict[str, Any] = {}
    if takes_sampling:
        for theirs, ours in _FIELDS.items():
            value = generation_config.get(theirs)
            if value is None:
                continue
            if ours in _WHOLE and isinstance(value, float) and value.is_integer():
                value = int(value)
            try:
                SamplingParams.from_mapping({ours: value})
            except RequestError as error:
                left_out.append(f"{FILE}: {theirs} = {shown(value)} is ignored: {str(error)[:200]}")
            else:
                sampling[ours] = value
    return GenerationDefaults(tuple(eos), sampling, tuple(left_out))


def _token_ids(where: str, value: object) -> list[int]:
    """``eos_token_id`` as a list: null is none, a number one."""
    token_ids: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    for token_id in token_ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or abs(token_id) > _MAX_ID:
            expected = f"a token id or a list of them, at most {_MAX_ID}"
            raise LoadError(f"{where}: eos_token_id must be {expected}, got {shown(token_id)}")
    return token_ids
