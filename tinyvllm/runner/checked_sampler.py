"""A sampler plugin behind the checks of its socket: its answer is right in type and range, or an error names it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import ALL_LOGPROBS, NO_LOGPROBS, LogprobColumns, SampleCall, Sampled, SamplingRows
from tinyvllm.device import Buffer
from tinyvllm.errors import PluginError, RequestError, TinyvllmError
from tinyvllm.interfaces import GpuSampleCall, GpuSampler, HostSampler, SampleKind, Sampler, SamplerContext
from tinyvllm.plugin_call import PluginCall, PluginName, checked_reasons
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.shapes import Int32
from tinyvllm.slots import SlotParameters
from tinyvllm.step import Started

_MAX_LOGPROB = 0.01  # a sum in float32 may end a little above 0


def bound_sampler(
    sampler: Sampler | HostSampler, name: PluginName, context: SamplerContext
) -> CheckedHostSampler | CheckedGpuSampler:
    """A sampler plugin bound to an engine, checked at every call.

    Args:
        sampler: what the plugin created.
        name: the plugin, for messages.
        context: of the engine.
    Raises:
        PluginError: it cannot serve the engine, or breaks a rule of its socket.
        KernelError: the compiler refuses its source.
        CapacityError: no memory for what it keeps.
    """
    if not isinstance(sampler, Sampler):
        return CheckedHostSampler(sampler, name, context.spec.vocab_size)
    with PluginCall(name, "supports"):
        returned: Any = sampler.supports(context.spec)
    reasons = checked_reasons(name, "supports", returned)
    if reasons:
        raise PluginError(f"sampler {name.name!r} cannot serve this model here: {'; '.join(reasons)}")
    with PluginCall(name, "bind", passes=TinyvllmError):
        bound: Any = sampler.bind(context)
        is_gpu, is_host = isinstance(bound, GpuSampler), isinstance(bound, HostSampler)
    if is_gpu and context.spec.device != "cpu":
        return CheckedGpuSampler(bound, name, context.spec.vocab_size)
    if not is_host or is_gpu:
        wanted = "a HostSampler" if context.spec.device == "cpu" else "a GpuSampler or a HostSampler"
        raise name.broken("bind", _described(bound), f"{wanted}, with all its methods")
    return CheckedHostSampler(bound, name, context.spec.vocab_size)


class CheckedGpuSampler:
    """Implements ``GpuSampler`` by a plugin's, whose answers are held against the rules of the socket.

    Args:
        sampler: the plugin's.
        name: the plugin, for messages.
        vocab_size: ``V``.

    Attributes:
        host: what samples sequences that the plugin cannot sample on the GPU; None: there is nothing.
    """

    def __init__(self, sampler: GpuSampler, name: PluginName, vocab_size: int) -> None:
        self._sampler, self._name, self._vocab_size = sampler, name, vocab_size
        self._sampling, self._kind = PluginCall(name, "sample"), PluginCall(name, "kind")
        with PluginCall(name, "host"):
            host: Any = getattr(sampler, "host", None)
        if host is not None and not isinstance(host, HostSampler):
            raise name.broken("host", _described(host), "a HostSampler or None")
        self.host = None if host is None else CheckedHostSampler(host, name, vocab_size)

    def can_sample(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Whether a sequence with these parameters is sampled on the GPU.

        Raises:
            RequestError: it is not, and nothing samples it on the host.
        """
        with PluginCall(self._name, "can_sample"):
            can: Any = self._sampler.can_sample(params, rules)
        if not isinstance(can, bool):
            raise self._name.broken("can_sample", _described(can), "True or False")
        if not can and self.host is None:
            raise RequestError(
                f"the sampler {self._name.name!r} cannot sample with {params}; ask for less, or choose another"
            )
        return can

    def start(self, started: Started) -> None:
        """Tell the plugin of sequences that have been given a slot."""
        with PluginCall(self._name, "start", passes=TinyvllmError):
            self._sampler.start(started)

    def kind(self, rows: SamplingRows) -> SampleKind:
        """Which work these rows need."""
        with self._kind:
            kind: Any = self._sampler.kind(rows)
            hash(kind)
        if not isinstance(kind, SampleKind):
            raise self._name.broken("kind", _described(kind), "a SampleKind")
        asked = int(rows.num_logprobs.max())
        if asked != NO_LOGPROBS and (kind.num_listed is None or kind.num_listed < asked):
            raise self._name.broken("kind", f"num_listed {kind.num_listed}", f"{asked} or more, as a row asks for")
        return kind

    def sample(self, call: GpuSampleCall) -> None:
        """Have the choice of a token for each row queued."""
        with self._sampling:
            returned: Any = self._queue(call)
        if returned is not None:
            raise self._name.broken("sample", _described(returned), "None: on a GPU it writes to call.out")

    def record(self, token_ids: Buffer, parameters: SlotParameters, slots: Buffer) -> None:
        """Have tokens recorded that the host has chosen."""
        with PluginCall(self._name, "record"):
            self._sampler.record(token_ids, parameters, slots)

    def check_tokens(self, token_ids: Int32, is_corrupt: NDArray[np.bool_]) -> None:
        """Return if every row has a token of the vocabulary, or is corrupt."""
        if (len(token_ids) and int(token_ids.max()) >= self._vocab_size) or (token_ids[~is_corrupt] < 0).any():
            row = int(np.argmax((token_ids >= self._vocab_size) | ((token_ids < 0) & ~is_corrupt)))
            raise self._name.broken(
                "sample", f"token {int(token_ids[row])} for row {row}", f"a token of 0 to {self._vocab_size - 1}"
            )

    def _queue(self, call: GpuSampleCall) -> Any:
        sampler: Any = self._sampler
        return sampler.sample(call)


class CheckedHostSampler:
    """Implements ``HostSampler`` by a plugin's, whose answers are held against the rules of the socket.

    Args:
        sampler: the plugin's.
        name: the plugin, for messages.
        vocab_size: ``V``.
    """

    def __init__(self, sampler: HostSampler, name: PluginName, vocab_size: int) -> None:
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
