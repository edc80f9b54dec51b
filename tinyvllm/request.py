"""What is asked of the engine: sampling parameters and requests. Knows nothing about text, sequences or arrays.

Plain, frozen values that serialise (``dataclasses.asdict`` gives JSON, :meth:`SamplingParams.from_mapping` takes it
back). Everything that can be wrong with a value alone raises :class:`RequestError` here and nowhere later; what
depends on the model is :meth:`SamplingParams.check_vocabulary`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, NoReturn, TypeVar

from tinyvllm._checks import INT32_MAX, check_integer, check_seconds, check_token_ids, refuse, shown
from tinyvllm._nearest import nearest
from tinyvllm._sampling_checks import ASKS_NOTHING, CHECKS
from tinyvllm.errors import RequestError

_MAX_REQUEST_ID_CHARACTERS = 1024
_MAX_PROMPT_TOKENS = 2**24  # far above any model; the engine checks against max_model_len

_T = TypeVar("_T")


def _explains_misuse(cls: type[_T]) -> type[_T]:
    """``cls``, a frozen dataclass, with a RequestError for an unknown argument and for an assignment to a field."""
    generated: Callable[..., None] = cls.__init__

    @wraps(generated)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            generated(self, *args, **kwargs)
        except TypeError:
            known = _known(kwargs)
            if len(known) == len(kwargs):
                raise
            generated(self, *args, **known)

    def refuse_assignment(self: Any, name: str, value: Any) -> NoReturn:
        remedy = f"params.clone({name}={shown(value)}) is a changed copy"
        raise RequestError(f"SamplingParams cannot be changed; {remedy}")

    cls.__init__ = init  # type: ignore[method-assign]
    cls.__setattr__ = refuse_assignment  # type: ignore[method-assign]
    return cls


def _column(default: float, dtype: str, check: Callable[[str, Any], Any] | None = None) -> Any:
    """A parameter that is handed to samplers as a column, with an entry for each row of a step.

    Args:
        default: its value where a request does not say.
        dtype: of the column, as NumPy calls it.
        check: what it must be; None: as ``CHECKS`` says.
    """
    return field(default=default, metadata={"column": dtype} | ({} if check is None else {"check": check}))


@_explains_misuse
@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when it stops. Names and defaults are vLLM's.

    What differs from vLLM: a temperature between 0 and 0.01 is taken as it is, not raised to 0.01 (the maximum is
    subtracted before dividing, so nothing overflows), and as 0 where float32 has no such number; ``n > 1`` with
    temperature 0 gives ``n`` equal completions rather than an error; a temperature may exceed 2.

    Attributes:
        n: completions of the one prompt, 1 to 64.
        presence_penalty: subtracted from logits of tokens already generated; -2 to 2.
        frequency_penalty: subtracted once for each time a token was generated; -2 to 2.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or output; 1e-4 to 1e4.
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of most likely tokens whose mass reaches this, the crossing token included.
        top_k: keep this many most likely tokens; 0 (or -1) keeps all.
        min_p: keep tokens at least this likely relative to the most likely one.
        seed: 0 to 2**64 - 1, of the request's own random stream; None (or -1): the engine gives one.
        stop: strings that end a completion; a single string stands for itself. Kept as a tuple.
        stop_token_ids: tokens that end a completion. Kept as a tuple without repeats.
        ignore_eos: go on after an end-of-sequence token.
        max_tokens: maximum number of tokens of a completion; None: as many as the model's length allows.
        min_tokens: tokens before which neither end-of-sequence nor ``stop_token_ids`` may be chosen.
        logprobs: how many most likely tokens to report beside the chosen one, at most as many as the vocabulary has;
            -1: all of them.
        prompt_logprobs: how many most likely tokens to report beside each prompt token; as ``logprobs``.
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
    presence_penalty: float = _column(0.0, "float32")
    frequency_penalty: float = _column(0.0, "float32")
    repetition_penalty: float = _column(1.0, "float32")
    temperature: float = _column(1.0, "float32")
    top_p: float = _column(1.0, "float32")
    top_k: int = _column(0, "int32")
    min_p: float = _column(0.0, "float32")
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
        return cls(**_known(mapping))

    def clone(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed: ``params.clone(max_tokens=64)``. It shares no list or mapping.

        Raises:
            RequestError: as from the constructor.
        """
        return SamplingParams(**{**{name: deepcopy(getattr(self, name)) for name in _DEFAULTS}, **changes})

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
        """Return if a vocabulary of ``vocab_size`` has every token id and as many log-probabilities as named here.

        Raises:
            RequestError: naming the field, and the first id that does not exist.
        """
        for name in ("logprobs", "prompt_logprobs"):
            width = getattr(self, name)
            if width is not None and width > vocab_size:
                remedy = "-1 gives all of them"
                refuse(f"sampling.{name}", width, f"at most {vocab_size}, the size of the vocabulary", remedy)
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


_DEFAULTS = {f.name: f.default for f in fields(SamplingParams)}
_CHECKS = {f.name: f.metadata.get("check") or CHECKS[f.name] for f in fields(SamplingParams)}
SAMPLING_COLUMNS: Mapping[str, str] = {
    f.name: f.metadata["column"] for f in fields(SamplingParams) if "column" in f.metadata
}
"""The parameters that samplers get as columns, and the dtype of each; see ``SamplingRows`` in ``batch.py``."""


def _known(given: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields among ``given``, without vLLM's further ones where their values ask for nothing.

    Raises:
        RequestError: a name that is no field, with the nearest one and the list.
    """
    known = {}
    for name, value in given.items():
        if name in _DEFAULTS:
            known[name] = value
        elif isinstance(name, str) and name in ASKS_NOTHING:
            if not asks_nothing(name, value):
                got = f"got {shown(value)}; leave it out"
                raise RequestError(f"sampling.{name} is not available in this version, {got}")
        else:
            near = nearest(name, _DEFAULTS)
            hint = f"did you mean {near}? " if near else ""
            names = ", ".join(_DEFAULTS)
            raise RequestError(
                f"sampling: {shown(name)} is not a field of SamplingParams; {hint}the fields are {names}"
            )
    return known


def asks_nothing(name: Any, value: Any) -> bool:
    """Whether ``name`` is a field of vLLM's that is not served, and ``value`` asks for nothing."""
    accepted = ASKS_NOTHING.get(name, ()) if isinstance(name, str) else ()
    return any(type(value) is type(nothing) and value == nothing for nothing in accepted)


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
        priority: lower is sooner; an integer that int32 can hold.
        deadline: seconds on the engine's clock; infinity if there is none.
        arrival_time: seconds on the engine's clock.

    Raises:
        RequestError: a field of the wrong type or outside its range; no prompt tokens, or one that is not a token id.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    deadline: float = math.inf
    arrival_time: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.request_id, str) or not 0 < len(self.request_id) <= _MAX_REQUEST_ID_CHARACTERS:
            refuse("request_id", self.request_id, f"a string of 1 to {_MAX_REQUEST_ID_CHARACTERS} characters")
        if self.prompt is not None and not isinstance(self.prompt, str):
            refuse("prompt", self.prompt, "a string, or None if only tokens are given")
        check_params("params", self.params)
        priority = check_integer("priority", self.priority, -INT32_MAX - 1, remedy="lower is sooner")
        deadline = check_seconds("deadline", self.deadline, "infinity is none")
        arrival_time = check_seconds("arrival_time", self.arrival_time)
        token_ids = check_token_ids("prompt_token_ids", self.prompt_token_ids, max_items=_MAX_PROMPT_TOKENS)
        if not token_ids:
            raise RequestError(
                f"request {shown(self.request_id)} has an empty prompt, expected at least one token; "
                "start it with the tokenizer's beginning-of-sequence token"
            )
        for name, value in (("priority", priority), ("deadline", deadline), ("arrival_time", arrival_time)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "prompt_token_ids", token_ids)


def check_params(where: str, value: Any) -> SamplingParams:
    """``value`` itself, which must be a SamplingParams.

    Raises:
        RequestError: it is something else; naming ``where``, and how a mapping becomes one.
    """
    if not isinstance(value, SamplingParams):
        is_mapping = isinstance(value, Mapping)
        remedy = "give SamplingParams.from_mapping(...) of it" if is_mapping else "as in SamplingParams(max_tokens=16)"
        refuse(where, value, "a SamplingParams", remedy)
    return value
