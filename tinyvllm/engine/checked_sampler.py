"""A sampler plugin behind the checks of its socket: its answer is right in type and range, or an error names it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinyvllm.batch import ALL_LOGPROBS, NO_LOGPROBS, LogprobColumns, SampleCall, Sampled
from tinyvllm.errors import PluginError
from tinyvllm.interfaces import Sampler
from tinyvllm.plugin_call import PluginCall, PluginName


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
        Raises:
            PluginError: the sampler raised, or its answer breaks a rule; names the sampler and the rule.
        """
        logits = call.logits.view()
        logits.flags.writeable = False
        with self._call:
            sampled = self._sampler.sample(SampleCall(logits, call.rows, call.tokens))
        return self._checked(sampled, call)

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
        self._check_logprobs(sampled.logprobs, call)
        # In range, so that no token wraps around.
        return sampled if ids.dtype == np.int32 else replace(sampled, token_ids=ids.astype(np.int32))

    def _check_logprobs(self, columns: object, call: SampleCall) -> None:
        wanted = call.rows.num_logprobs
        if num_rows_asking(wanted) == 0:
            return  # nobody reads them
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

    def _broken(self, got: str, expected: str) -> PluginError:
        return self._name.broken("sample", got, expected)


def num_rows_asking(num_logprobs: np.ndarray[tuple[int], np.dtype[np.int32]]) -> int:
    """How many rows ask for log-probabilities."""
    return int(np.count_nonzero(num_logprobs != NO_LOGPROBS))


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return "None" if value is None else f"a {type(value).__name__}"
