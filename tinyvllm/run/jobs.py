"""The lines of a batch file: one prompt each, numbered from 0. A bad line is a job that carries its error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tinyvllm._nearest import did_you_mean
from tinyvllm.errors import RequestError
from tinyvllm.request import SamplingParams
from tinyvllm.text.chat_options import CHAT_OPTIONS

MAX_LINE_BYTES = 16 * 2**20
_SOURCES = ("prompt", "prompt_token_ids", "messages")
_KEYS = ("id", *_SOURCES, "sampling", "priority", *CHAT_OPTIONS)

ChatPrompt = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to complete, or the reason why it cannot be.

    Attributes:
        index: number of its line, from 0; what a result is known by.
        id: the user's name for it; None if there is none.
        prompt: as the engine takes it; None if there is an error.
        params: how to sample; None if there is an error.
        priority: lower is sooner, for schedulers that look at it. Checked where requests are taken.
        error: what is wrong with the line.
    """

    index: int
    id: str | int | None = None
    prompt: str | Mapping[str, Any] | None = None
    params: SamplingParams | None = None
    priority: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class JobReader:
    """Makes jobs of lines.

    Attributes:
        defaults: sampling of lines that say nothing else.
        chat_prompt: turns ``messages`` and the options of a conversation into a prompt.
        seed: of the run. A job without a seed of its own gets one from this and its index, so that it is the same
            whether the run was interrupted or not.
    """

    defaults: SamplingParams
    chat_prompt: ChatPrompt
    seed: int

    def jobs(self, lines: Iterable[tuple[int, bytes]], is_done: Callable[[int], bool]) -> Iterator[Job]:
        """A job for each numbered line that is not blank and not done."""
        for index, line in lines:
            if not is_done(index) and line.strip():
                yield self.job(index, line)

    def job(self, index: int, line: bytes) -> Job:
        """The job of one line of JSON; whatever is wrong with it is its ``error``."""
        identity: str | int | None = None
        try:
            fields = _parse(line)
            identity = _identity(fields)
            prompt = self._prompt(fields)
            params = self._params(index, fields.get("sampling"))
        except RequestError as error:
            return Job(index, identity, error=str(error))
        return Job(index, identity, prompt, params, 0 if fields.get("priority") is None else fields["priority"])

    def _prompt(self, fields: Mapping[str, Any]) -> str | Mapping[str, Any]:
        given = [source for source in _SOURCES if fields.get(source) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise RequestError(f"the line must have one of prompt, prompt_token_ids, messages; got {got}")
        value = fields[given[0]]
        options = {name: fields[name] for name in CHAT_OPTIONS if fields.get(name) is not None}
        if given[0] == "messages":
            return self.chat_prompt(value, **options)
        if options:
            raise RequestError(f"{next(iter(options))} is for messages, and the line has {given[0]}; leave it out")
        if given[0] == "prompt":
            return {"prompt": value}
        return {"prompt_token_ids": value}

    def _params(self, index: int, sampling: Any) -> SamplingParams:
        if sampling is not None and not isinstance(sampling, dict):
            raise RequestError(f"sampling must be a mapping of field to value, got {sampling!r:.100}")
        params = merged_params(self.defaults, sampling or {})
        if params.seed is not None or params.is_greedy:
            return params
        entropy = np.random.SeedSequence([self.seed, index])
        return replace(params, seed=int(entropy.generate_state(1, np.uint64)[0]))


def merged_params(defaults: SamplingParams, sampling: Mapping[str, Any]) -> SamplingParams:
    """``defaults`` with the fields of ``sampling`` in their place.

    Raises:
        RequestError: a field that there is not, or a bad value.
    """
    return SamplingParams.from_mapping({**asdict(defaults), **sampling}) if sampling else defaults


def line_of(prompt: str) -> bytes:
    """The line of a batch file that holds just ``prompt``."""
    return json.dumps({"prompt": prompt}).encode()


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) >= MAX_LINE_BYTES:
        raise RequestError(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        fields = json.loads(line.decode(), object_pairs_hook=_without_repeats)
        if b"\\u" in line:
            json.dumps(fields, ensure_ascii=False).encode()  # an escape can spell half a character
    except UnicodeDecodeError as error:
        raise RequestError(f"the line is not UTF-8: byte 0x{line[error.start]:02x} at {error.start}") from error
    except UnicodeEncodeError as error:
        raise RequestError(f"the line has a lone surrogate, {error.object[error.start]!a}, which is no text") from error
    except json.JSONDecodeError as error:
        raise RequestError(f"the line is not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the line is not JSON that can be read: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError('the line must be an object such as {"prompt": "12+7="}')
    for key in fields:
        if key not in _KEYS:
            raise RequestError(f"unknown key {key!r:.60}{did_you_mean(key, _KEYS)}; the keys are {', '.join(_KEYS)}")
    return fields


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RequestError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.60} is given twice")
    return fields


def _identity(fields: Mapping[str, Any]) -> str | int | None:
    identity = fields.get("id")
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, str | int)):
        raise RequestError(f"id must be text or a whole number, got {identity!r:.60}")
    return identity
