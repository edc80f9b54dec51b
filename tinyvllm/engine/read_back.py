"""Reading a step back: its tokens go to the token store, and to the completions that need them now."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Sampled
from tinyvllm.engine.books import Books
from tinyvllm.engine.failures import request_failure_of
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.engine.step_launcher import InFlight
from tinyvllm.engine.step_rows import StepRows
from tinyvllm.plugin_call import is_fatal
from tinyvllm.shapes import Int32


def read_back(step: InFlight, books: Books) -> None:
    """Wait for a step and take what it gives. Completions that end give up row, slot and blocks.

    A request whose text or log-probabilities cannot be made fails alone.

    Args:
        step: the oldest one in flight. It stays in ``books.in_flight``.
        books: of the engine that launched it.
    """
    began = time.perf_counter()
    result = step.pending.wait()
    books.counts.wait_s += time.perf_counter() - began
    for state, columns in zip(step.prompt_states, result.prompt_logprobs, strict=True):
        if not state.is_finished:
            try:
                state.add_prompt_logprobs(columns)
            except BaseException as error:
                if is_fatal(error):
                    raise
                books.fail(state, request_failure_of(state.request_id, error))
    if step.rows is not None and result.sampled is not None:
        _take_tokens(step, step.rows, result.sampled, books)


def _take_tokens(step: InFlight, rows: StepRows, sampled: Sampled, books: Books) -> None:
    """Gives the tokens of a step to the store, and to the completions that need them now."""
    token_ids, is_alive = sampled.token_ids, None
    if rows.version != books.table.version:  # otherwise nobody has lost a slot since
        is_alive = books.table.arrival.take(rows.rows) == rows.arrival
    _store_tokens(step, rows, token_ids, is_alive, books.table)
    books.counts.generation_tokens += len(token_ids) if is_alive is None else int(np.count_nonzero(is_alive))
    places = _places_to_take(step, rows, sampled)
    if not places:
        return
    now, listed, num_tokens = time.monotonic(), token_ids.tolist(), step.num_tokens.tolist()
    for i in places:
        completion = rows.completions[i]
        if completion.finish_reason is not None:  # before, or with a sibling that has just failed
            continue
        books.outbox.open(completion)
        try:
            if sampled.is_corrupt is not None and sampled.is_corrupt[i]:
                books.counts.generation_tokens -= 1
                completion.catch_up(num_tokens[i] - 1)
                completion.abort("the logits are not numbers, or the rules of the request forbid every token")
            else:
                if sampled.logprobs is not None:
                    completion.add_logprobs(sampled.logprobs, i)
                completion.add_token(listed[i], num_tokens[i], now)
        except BaseException as error:
            if is_fatal(error):
                raise
            state = completion.request
            books.fail(state, request_failure_of(state.request_id, error))
            continue
        if completion.finish_reason is not None:
            books.end(completion)
        elif not completion.needs_each_token and completion.num_output == 1:
            books.table.stop_watching(completion.row)


def _store_tokens(
    step: InFlight, rows: StepRows, token_ids: Int32, is_alive: NDArray[np.bool_] | None, table: SequenceTable
) -> None:
    """Writes a step's tokens to the store.

    Args:
        step, rows: the step, and those of its rows that got a token.
        token_ids: ``[S]``.
        is_alive: ``[S]``, which sequences have not ended meanwhile; None: none has, and none was preempted.
        table: of the rows.
    """
    if is_alive is None:
        table.num_read[rows.rows] = step.num_tokens
        if not step.is_stored:
            table.store(rows.slots, token_ids, step.num_before, step.num_tokens)
            table.set_last_token(rows.rows, token_ids)
        return
    places = is_alive.nonzero()[0]
    alive, token_ids, num_tokens = rows.rows.take(places), token_ids.take(places), step.num_tokens.take(places)
    table.num_read[alive] = num_tokens
    if step.is_stored:
        return
    slots = table.slot.take(alive)
    has_slot = slots >= 0
    table.store(slots[has_slot], token_ids[has_slot], num_tokens[has_slot] - 1, num_tokens[has_slot])
    table.set_last_token(alive[has_slot], token_ids[has_slot])
    for i in (~has_slot).nonzero()[0].tolist():  # preempted: its tokens are its own now
        rows.completions[places[i]].tokens.append(int(token_ids[i]))
        table.last_token[alive[i]] = token_ids[i]


def _places_to_take(step: InFlight, rows: StepRows, sampled: Sampled) -> Sequence[int]:
    """Places of the rows whose completion must take its token now, ascending."""
    found: list[NDArray[np.bool_]] = []
    if rows.stop_ids is not None:
        is_stop = rows.stop_ids == sampled.token_ids[:, None]
        if np.count_nonzero(is_stop):
            found.append(is_stop.any(axis=1))
    found += [flags for flags in (step.are_last, sampled.is_corrupt) if flags is not None]
    if not found:
        return rows.watched
    return sorted({*rows.watched, *np.logical_or.reduce(found).nonzero()[0].tolist()})
