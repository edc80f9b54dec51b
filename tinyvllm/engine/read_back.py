"""Reading a step back: its tokens go to the token store, and to the completions that need them now."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Int32, Sampled
from tinyvllm.engine.books import Books
from tinyvllm.engine.failures import request_failure_of
from tinyvllm.engine.sequence_table import NUM_STOP_IDS, SequenceTable
from tinyvllm.engine.step_launcher import InFlight
from tinyvllm.plugin_call import is_fatal


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
    if result.sampled is not None:
        _take_tokens(step, result.sampled, books)


def _take_tokens(step: InFlight, sampled: Sampled, books: Books) -> None:
    is_alive, needs_look = _store_tokens(step, sampled.token_ids, books.table)
    if step.are_last is not None:
        needs_look |= step.are_last
    if sampled.is_corrupt is not None:
        needs_look |= sampled.is_corrupt
    books.counts.generation_tokens += int(np.count_nonzero(is_alive))
    now = time.monotonic()
    for i in np.flatnonzero(needs_look & is_alive).tolist():
        completion = step.completions[i]
        if completion.is_finished:  # with a sibling that has just failed
            continue
        books.outbox.open(completion)
        try:
            _take_token(step, sampled, i, now, books)
        except BaseException as error:
            if is_fatal(error):
                raise
            state = completion.request
            books.fail(state, request_failure_of(state.request_id, error))
            continue
        if completion.is_finished:
            books.end(completion)


def _take_token(step: InFlight, sampled: Sampled, i: int, now: float, books: Books) -> None:
    """Gives row ``i`` of a step its token."""
    completion, num_tokens = step.completions[i], int(step.known[i])
    if sampled.is_corrupt is not None and sampled.is_corrupt[i]:
        books.counts.generation_tokens -= 1
        completion.catch_up(num_tokens - 1)
        completion.abort("the logits are not numbers, or the rules of the request forbid every token")
        return
    if sampled.logprobs is not None:
        completion.add_logprobs(sampled.logprobs, i)
    completion.add_token(int(sampled.token_ids[i]), num_tokens, now)
    if completion.num_output == 1:
        has_many_stops = len(completion.stop_ids) > NUM_STOP_IDS
        books.table.is_watched[completion.row] = completion.needs_each_token or has_many_stops


def _store_tokens(
    step: InFlight, token_ids: Int32, table: SequenceTable
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Writes a step's tokens to the store.

    Returns:
        ``[S]`` each: which sequences have not ended meanwhile, and whose completion must take the token now.
    """
    rows = step.rows
    is_alive: NDArray[np.bool_] = table.arrival.take(rows) == step.arrivals
    table.num_in_flight[rows[is_alive]] -= 1
    if not step.is_stored:
        has_slot = table.slot.take(rows) >= 0
        is_stored = has_slot & is_alive
        if is_stored.all():
            table.store(rows, token_ids, step.known)
        else:
            table.store(rows[is_stored], token_ids[is_stored], step.known[is_stored])
            for i in np.flatnonzero(is_alive & ~has_slot).tolist():  # preempted: its tokens are its own now
                step.completions[i].tokens.append(int(token_ids[i]))
                table.last_token[rows[i]] = token_ids[i]
    needs_look: NDArray[np.bool_] = table.is_watched.take(rows)
    needs_look |= (table.stop_ids.take(rows, axis=0) == token_ids[:, None]).any(axis=1)
    return is_alive, needs_look
