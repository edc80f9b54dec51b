"""A sampler plugin behind the checks of its socket: its answer is right in type and range, or an error names it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import ALL_LOGPROBS, NO_LOGPROBS, LogprobColumns, SampleCall, Sampled
from tinyvllm.errors import PluginError
from tinyvllm.interfaces import Sampler
from tinyvllm.plugin_call import PluginCall, PluginName

_MAX_LOGPROB = 0.01  # a sum in float32 may end a little above 0


class CheckedSampler:
    """Asks a sampler, and holds its answer against the rules of the socket.

    Args:
        sampler: the plugin's.
        name: the plugin, for messages.
        vocab_size: ``V``.
    """

    def __init__(self, sampler: Sampler, name: PluginName, vocab_size: int) -> None:
        self._sampler, self._name, self._vocab_size = sampler, name, vocab_size
        self._call = PluginCall(name, "sample")

    def sample(self, call: SampleCall) -> Sampled:
        """One token for each of the ``B`` rows.

        Args:
            call: its logits are made read-only.
        Returns:
            an answer that is the caller's own: a sampler may use its arrays again.
        Raises:
            PluginError: the sampler raised, or its answer breaks a rule; names the sampler and the rule.
        """
        logits = call.logits.view()
        logits.flags.writeable = call.rows.position.flags.writeable = False
        with self._call:  # the checks too: an answer may be any object, and fail when it is looked at
            return self._checked(self._sampler.sample(SampleCall(logits, call.rows, call.tokens)), call)

    def _checked(self, sampled: object, call: SampleCall) -> Sampled:
        num_rows = len(call.rows)
        if not isinstance(sampled, Sampled):
            raise self._broken(_described(sampled), f"Sampled(token_ids), token_ids int32 of shape ({num_rows},)")
        ids = sampled.token_ids
        if not (isinstance(ids, np.ndarray) and ids.dtype.kind in "iu" and ids.shape == (num_rows,)):
            raise self._broken(f"token_ids {_described(ids)}", f"int32 of shape ({num_rows},), one token a row")
        is_corrupt = sampled.is_corrupt
        if is_corrupt is not None and not (
            isinstance(is_corrupt, np.ndarray) and is_corrupt.dtype == np.bool_ and is_corrupt.shape == (num_rows,)
        ):
            raise self._broken(f"is_corrupt {_described(is_corrupt)}", f"None or bool of shape ({num_rows},)")
        if num_rows and (ids.min() < 0 or ids.max() >= self._vocab_size):
            row = int(np.argmax((ids < 0) | (ids >= self._vocab_size)))
            raise self._broken(f"token {int(ids[row])} for row {row}", f"a token of 0 to {self._vocab_size - 1}")
        logprobs = None
        wanted = call.rows.num_logprobs
        if np.count_nonzero(wanted != NO_LOGPROBS):  # otherwise nobody reads them
            logprobs = self._checked_logprobs(sampled.logprobs, call)
            is_sound = wanted != NO_LOGPROBS if is_corrupt is None else (wanted != NO_LOGPROBS) & ~is_corrupt
            self._check_values(logprobs, ids, is_sound)
        # The tokens are in range, so that none wraps around.
        return Sampled(ids.astype(np.int32), logprobs, None if is_corrupt is None else is_corrupt.copy())

    def _checked_logprobs(self, columns: object, call: SampleCall) -> LogprobColumns:
        wanted = call.rows.num_logprobs
        most = self._vocab_size if (wanted == ALL_LOGPROBS).any() else min(int(wanted.max()), self._vocab_size)
        if not isinstance(columns, LogprobColumns):
            raise self._broken(f"logprobs {_described(columns)}", f"LogprobColumns, as a row asks for {most}")
        num_rows = len(call.rows)
        for name, array, kind, shape in (
            ("token_ids", columns.token_ids, np.int32, (num_rows, None)),
            ("logprobs", columns.logprobs, np.float32, (num_rows, None)),
            ("rank", columns.rank, np.int32, (num_rows,)),
        ):
            is_right = isinstance(array, np.ndarray) and array.dtype == kind and array.ndim == len(shape)
            is_right = is_right and array.shape[0] == num_rows and (len(shape) == 1 or array.shape[1] >= 1 + most)
            if not is_right:
                columns_wanted = "" if len(shape) == 1 else f", {1 + most} or more"
                raise self._broken(
                    f"logprobs.{name} {_described(array)}", f"{kind.__name__} of shape ({num_rows}{columns_wanted})"
                )
        if columns.token_ids.shape != columns.logprobs.shape:
            raise self._broken(
                f"logprobs of {columns.token_ids.shape} token_ids and {columns.logprobs.shape} values", "equal shapes"
            )
        if int(columns.token_ids.min()) < 0 or int(columns.token_ids.max()) >= self._vocab_size:
            raise self._broken("logprobs of a token outside the vocabulary", f"tokens of 0 to {self._vocab_size - 1}")
        return LogprobColumns(columns.token_ids.copy(), columns.logprobs.copy(), columns.rank.copy())

    def _check_values(self, columns: LogprobColumns, ids: NDArray[Any], is_sound: NDArray[np.bool_]) -> None:
        """What the columns say of the rows that ask for them and are not corrupt."""
        for row in np.flatnonzero(is_sound).tolist():
            first, rank, values = int(columns.token_ids[row, 0]), int(columns.rank[row]), columns.logprobs[row]
            if first != ids[row]:
                got = f"logprobs that begin with token {first} for row {row}"
                raise self._broken(got, f"the chosen token first, which is {int(ids[row])}")
            if not 1 <= rank <= self._vocab_size:
                raise self._broken(f"rank {rank} for row {row}", f"a rank of 1 to {self._vocab_size}")
            if np.isnan(values).any() or float(values.max()) > _MAX_LOGPROB:
                wrong = next(value for value in values.tolist() if not value <= _MAX_LOGPROB)
                raise self._broken(f"log-probability {wrong:g} for row {row}", "numbers of at most 0")
            if (values[2:] > values[1:-1]).any():
                raise self._broken(f"logprobs of row {row} out of order", "the most likely token first, after column 0")

    def _broken(self, got: str, expected: str) -> PluginError:
        return self._name.broken("sample", got, expected)


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return "None" if value is None else f"a {type(value).__name__}"
