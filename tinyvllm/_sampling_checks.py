"""What each field of ``SamplingParams`` must be, and the caps on what one request may cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

from tinyvllm._checks import (
    check_flag,
    check_integer,
    check_number,
    check_strings,
    check_token_ids,
    check_token_numbers,
    refuse,
    shown,
)
from tinyvllm.errors import RequestError

# Fields of vLLM's that are not served, with the values that ask for nothing.
ASKS_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "early_stopping": (None, False),
    "flat_logprobs": (None, False),
    "guided_decoding": (None,),
    "length_penalty": (None, 1.0),
    "logits_processors": (None, []),
    "repetition_detection": (None,),
    "thinking_token_budget": (None,),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
}
# Caps on what one request may cost, so that a single line of JSON cannot occupy the engine.
MAX_N = 64
MAX_STOP_STRINGS = 16
MAX_STRING_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 1024
MAX_ALLOWED_TOKEN_IDS = 2**20
MAX_TEMPERATURE = 100.0
# Forces or forbids any token, and leaves room for the penalties below the largest float32.
MAX_LOGIT_BIAS_VALUE = 1e6
# Samplers keep float32 columns, where a smaller number would be 0 or lose its digits.
_MIN_FLOAT32 = 2.0**-126


def _check_temperature(where: str, value: Any) -> float:
    temperature = check_number(where, value, 0, MAX_TEMPERATURE, remedy="0 is greedy")
    return temperature if temperature >= _MIN_FLOAT32 else 0.0


def _check_top_p(where: str, value: Any) -> float:
    return max(check_number(where, value, 0, 1, open_low=True, remedy="1 keeps all tokens"), _MIN_FLOAT32)


def _check_seed(where: str, value: Any) -> int | None:
    seed = check_integer(where, value, -1, 2**64 - 1, remedy="leave it out for one given by the engine")
    return None if seed == -1 else seed


def _check_max_tokens(where: str, value: Any) -> int | None:
    return None if value is None else check_integer(where, value, 1)


def _check_num_logprobs(where: str, value: Any) -> int:
    return check_integer(where, value, -1, remedy="-1 gives the whole vocabulary")


def _check_stop_token_ids(where: str, value: Any) -> tuple[int, ...]:
    return tuple(dict.fromkeys(check_token_ids(where, value, max_items=MAX_STOP_TOKEN_IDS)))


def _check_allowed_token_ids(where: str, value: Any) -> tuple[int, ...]:
    token_ids = tuple(dict.fromkeys(check_token_ids(where, value, max_items=MAX_ALLOWED_TOKEN_IDS)))
    if not token_ids:
        refuse(where, [], "a list of at least one token id", "leave it out to allow all")
    return token_ids


def _check_extra_args(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        refuse(where, value, "a mapping with strings as keys")
    return dict(value)


def _refuse_structured_outputs(where: str, value: Any) -> NoReturn:
    raise RequestError(f"{where} is not available in this version, got {shown(value)}; leave it out")


CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "n": partial(check_integer, low=1, high=MAX_N, remedy="send several requests for more"),
    "presence_penalty": partial(check_number, low=-2, high=2),
    "frequency_penalty": partial(check_number, low=-2, high=2),
    "repetition_penalty": partial(check_number, low=1e-4, high=1e4, remedy="1 changes nothing"),
    "temperature": _check_temperature,
    "top_p": _check_top_p,
    "top_k": lambda where, value: max(check_integer(where, value, -1, remedy="0 or -1 keeps all tokens"), 0),
    "min_p": partial(check_number, low=0, high=1, remedy="0 keeps all tokens"),
    "seed": _check_seed,
    "stop": partial(check_strings, max_items=MAX_STOP_STRINGS, max_characters=MAX_STRING_CHARACTERS),
    "stop_token_ids": _check_stop_token_ids,
    "ignore_eos": check_flag,
    "max_tokens": _check_max_tokens,
    "min_tokens": partial(check_integer, low=0),
    "logprobs": _check_num_logprobs,
    "prompt_logprobs": _check_num_logprobs,
    "detokenize": check_flag,
    "skip_special_tokens": check_flag,
    "spaces_between_special_tokens": check_flag,
    "include_stop_str_in_output": check_flag,
    "logit_bias": partial(check_token_numbers, max_items=MAX_LOGIT_BIAS, max_size=MAX_LOGIT_BIAS_VALUE),
    "allowed_token_ids": _check_allowed_token_ids,
    "bad_words": partial(check_strings, max_items=MAX_BAD_WORDS, max_characters=MAX_STRING_CHARACTERS),
    "structured_outputs": _refuse_structured_outputs,
    "extra_args": _check_extra_args,
}
"""What each field of ``SamplingParams`` must be: a value, with the name that the user wrote, in a plain type."""
