"""What is asked of the engine: sampling parameters and requests. Knows nothing about text, sequences or arrays.

Plain, frozen values that serialise (``dataclasses.asdict`` gives JSON, :meth:`SamplingParams.from_mapping` takes it
back). Everything that can be wrong with a value alone raises :class:`RequestError` here and nowhere later; what
depends on the model is :meth:`SamplingParams.check_vocabulary`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NoReturn

from tinyvllm.checks import (
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

_MAX_PROMPT_TOKENS = 2**24  # far above any model; the engine checks against max_model_len


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when it stops. Names and defaults are vLLM's.

    What differs from vLLM: a temperature between 0 and 0.01 is taken as it is, not raised to 0.01 (the maximum is
    subtracted before dividing, so nothing overflows); ``n > 1`` with temperature 0 gives ``n`` equal completions
    rather than an error; a temperature may exceed 2.

    Attributes:
        n: completions of the one prompt, 1 to 64.
        presence_penalty: subtracted from logits of tokens already generated; -2 to 2.
        frequency_penalty: subtracted once for each time a token was generated; -2 to 2.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or output; above 0.
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of most likely tokens whose mass reaches this, the crossing token included.
        top_k: keep this many most likely tokens; 0 (or -1) keeps all.
        min_p: keep tokens at least this likely relative to the most likely one.
        seed: 0 to 2**64 - 1, of the request's own random stream; None (or -1): the engine gives one.
        stop: strings that end a completion; a single string stands for itself. Kept as a tuple.
        stop_token_ids: tokens that end a completion. Kept as a tuple without repeats.
        ignore_eos: go on after an end-of-sequence token.
        max_tokens: most tokens of a completion; None: as many as the model's length allows.
        min_tokens: tokens before which neither end-of-sequence nor ``stop_token_ids`` may be chosen.
        logprobs: how many most likely tokens to report beside the chosen one; -1: the whole vocabulary.
        prompt_logprobs: the same for each prompt token.
        detokenize: make text of the tokens.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put a space between special tokens in the text.
        include_stop_str_in_output: leave the stop string in the text.
        logit_bias: token id to a number added to its logit; ids may be decimal strings, as in JSON.
        allowed_token_ids: the only tokens that may be chosen. Kept as a tuple without repeats.
        bad_words: words that may not be completed by a chosen token. Kept as a tuple without repeats.
        structured_outputs: not available in this version; must be None.
        extra_args: for plugins; never looked at by the core.

    Raises:
        RequestError: a value of the wrong type or outside its range; naming field, value and range.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    structured_outputs: Any = None
    extra_args: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value is not default:  # most are their default, and a request's way to its first token begins here
                object.__setattr__(self, name, _CHECKS[name](f"sampling.{name}", value))  # frozen from here on
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            refuse("sampling.min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        if self.stop and not self.detokenize:
            refuse("sampling.stop", self.stop, "empty when detokenize is false", "use stop_token_ids instead")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> SamplingParams:
        """The parameters that a configuration file or a line of JSON spells.

        Raises:
            RequestError: an unknown field, with the nearest name and the list; or a bad value.
        """
        if not isinstance(mapping, Mapping):
            raise RequestError(f"sampling must be a mapping of field to value, got {shown(mapping)}")
        names = [f.name for f in fields(cls)]
        for name in mapping:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise RequestError(
                    f"sampling: {shown(name)} is not a field of SamplingParams; {hint}the fields are {', '.join(names)}"
                )
        return cls(**mapping)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on tokens that came before."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def has_rules(self) -> bool:
        """Whether anything but temperature, ``top_k``, ``top_p`` and ``min_p`` may change a logit."""
        return (
            self.has_penalties
            or self.min_tokens > 0
            or self.allowed_token_ids is not None
            or bool(self.logit_bias)
            or bool(self.bad_words)
        )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Return if every token id named here exists in a vocabulary of ``vocab_size``.

        Raises:
            RequestError: naming the field and the first id that does not.
        """
        named: tuple[tuple[str, Iterable[int] | None], ...] = (
            ("stop_token_ids", self.stop_token_ids),
            ("logit_bias", self.logit_bias),
            ("allowed_token_ids", self.allowed_token_ids),
        )
        for name, token_ids in named:
            for token_id in token_ids or ():
                if token_id >= vocab_size:
                    raise RequestError(
                        f"sampling.{name} names token {token_id}, but the last one is {vocab_size - 1}; remove it"
                    )


@dataclass(frozen=True, slots=True)
class SamplingRules:
    """What the sampler needs beside :class:`SamplingParams`, and only the tokenizer and checkpoint can tell.

    Attributes:
        eos_token_ids: the end-of-sequence tokens, which ``min_tokens`` holds back.
        bad_words_token_ids: for each spelling of each bad word its tokens; the last may not follow the others.
    """

    eos_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and what is wanted of it.

    Attributes:
        request_id: unique among live requests.
        prompt: the text, or None if only tokens were given.
        prompt_token_ids: at least one; a list or array is kept as a tuple.
        params: how to sample.
        priority: lower is sooner.
        deadline: seconds on the engine's clock; infinity if there is none.
        arrival_time: seconds on the engine's clock.

    Raises:
        RequestError: no prompt tokens, or one that is not a token id.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    deadline: float = math.inf
    arrival_time: float = 0.0

    def __post_init__(self) -> None:
        token_ids = check_token_ids("prompt_token_ids", self.prompt_token_ids, most=_MAX_PROMPT_TOKENS)
        if not token_ids:
            raise RequestError(
                f"request {shown(self.request_id)} has an empty prompt, expected at least one token; "
                "start it with the tokenizer's beginning-of-sequence token"
            )
        object.__setattr__(self, "prompt_token_ids", token_ids)


def _check_seed(where: str, value: Any) -> int | None:
    seed = check_integer(where, value, -1, 2**64 - 1, remedy="leave it out for one given by the engine")
    return None if seed == -1 else seed


def _check_max_tokens(where: str, value: Any) -> int | None:
    return None if value is None else check_integer(where, value, 1)


def _check_num_logprobs(where: str, value: Any) -> int:
    return check_integer(where, value, -1, remedy="-1 gives the whole vocabulary")


def _check_stop_token_ids(where: str, value: Any) -> tuple[int, ...]:
    return tuple(dict.fromkeys(check_token_ids(where, value, most=MAX_STOP_TOKEN_IDS)))


def _check_allowed_token_ids(where: str, value: Any) -> tuple[int, ...]:
    token_ids = tuple(dict.fromkeys(check_token_ids(where, value, most=MAX_ALLOWED_TOKEN_IDS)))
    if not token_ids:
        refuse(where, [], "a list of at least one token id", "leave it out to allow all")
    return token_ids


def _check_extra_args(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        refuse(where, value, "a mapping with strings as keys")
    return dict(value)


def _refuse_structured_outputs(where: str, value: Any) -> NoReturn:
    raise RequestError(f"{where} is not available in this version, got {shown(value)}; leave it out")


_DEFAULTS = {f.name: f.default for f in fields(SamplingParams)}
_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "n": partial(check_integer, low=1, high=MAX_N, remedy="send several requests for more"),
    "presence_penalty": partial(check_number, low=-2, high=2),
    "frequency_penalty": partial(check_number, low=-2, high=2),
    "repetition_penalty": partial(check_number, low=0, high=1e4, open_low=True, remedy="1 changes nothing"),
    "temperature": partial(check_number, low=0, high=MAX_TEMPERATURE, remedy="0 is greedy"),
    "top_p": partial(check_number, low=0, high=1, open_low=True, remedy="1 keeps all tokens"),
    "top_k": lambda where, value: max(check_integer(where, value, -1, remedy="0 or -1 keeps all tokens"), 0),
    "min_p": partial(check_number, low=0, high=1, remedy="0 keeps all tokens"),
    "seed": _check_seed,
    "stop": partial(check_strings, most=MAX_STOP_STRINGS, most_characters=MAX_STRING_CHARACTERS),
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
    "logit_bias": partial(check_token_numbers, most=MAX_LOGIT_BIAS, largest=MAX_LOGIT_BIAS_VALUE),
    "allowed_token_ids": _check_allowed_token_ids,
    "bad_words": partial(check_strings, most=MAX_BAD_WORDS, most_characters=MAX_STRING_CHARACTERS),
    "structured_outputs": _refuse_structured_outputs,
    "extra_args": _check_extra_args,
}
"""What each field of ``SamplingParams`` must be: a value, with the name that the user wrote, in a plain type."""
