"""A step as data, what it gives, and whoever carries out steps: the contract between the engine and a runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Batch, LogprobColumns, Sampled, SamplingRows
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.shapes import Int32


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Which log-probabilities of prompt tokens a step must give.

    Attributes:
        first: index in the step's tokens of the position that predicts the first of ``targets``.
        targets: ``[n]``, the tokens that follow, one after the other.
        num_logprobs: how many beside the target; ``ALL_LOGPROBS`` for the vocabulary.
    """

    first: int
    targets: Int32
    num_logprobs: int


@dataclass(frozen=True, slots=True)
class TableUpdates:
    """What is new in a step's block tables: ``block_tables[rows[i], columns[i]] = blocks[i]``, ``[n]`` int32 each."""

    rows: Int32
    columns: Int32
    blocks: Int32


@dataclass(frozen=True, slots=True)
class StartedSequence:
    """One sequence as it was when it was given a slot.

    Attributes:
        params: how the sequence is sampled.
        rules: what the tokenizer and checkpoint add to ``params``.
        token_ids: ``[n]``, int32, read-only: the prompt; after a preemption, what was generated before it too.
        num_prompt_tokens: how many of the tokens are the prompt.
    """

    params: SamplingParams
    rules: SamplingRules
    token_ids: Int32
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Started:
    """Sequences that have just been given a slot.

    Attributes:
        slots: ``[n]``, which.
        sampling: their parameters, ``n`` rows; ``position`` means nothing.
        sequences: ``n`` of them: tokens, parameters and rules. Whoever needs the tokens of later steps keeps these and
            adds what each step chooses.
    """

    slots: Int32
    sampling: SamplingRows
    sequences: Sequence[StartedSequence]


@dataclass(frozen=True, slots=True)
class Step:
    """Everything that one step needs, as plain values that could be sent to another process.

    What a runner needs of earlier steps (tokens, parameters, block tables), it keeps. No array changes after ``launch``
    has returned, except ``batch.block_tables``, which may be a view of the engine's own: a copy would cost each step
    the length of its contexts, and a runner that keeps block tables needs them only without ``table_updates``.

    Attributes:
        batch: the arrays. A token id of ``-1 - slot`` is not known to the host yet: it is the newest token of the
            sequence in that slot (:func:`~tinyvllm.engine.sequence_table.unseen_token`).
        sampled: ``[S]``, which of the ``B`` sequences get a new token. With ``offsets`` these are pairs, ascending, no
            pair twice.
        offsets: ``[S]``, int32; the new token follows this one of the tokens that its sequence computes in this step,
            counted from 0. The engine samples after the last of them.
        slots: ``[S]``, slots of the sampled sequences.
        sampling: the parameters of those, or None if there is none.
        started: sequences that were given a slot since the last step that was launched; None: none was.
        table_updates: what is new in ``batch.block_tables`` since the last step that was launched, if both steps have
            the same sequences in the same places; None: the tables may differ everywhere.
        prompt_logprobs: which log-probabilities of prompt tokens are wanted.
    """

    batch: Batch
    sampled: NDArray[np.intp]
    offsets: Int32
    slots: Int32
    sampling: SamplingRows | None
    started: Started | None = None
    table_updates: TableUpdates | None = None
    prompt_logprobs: Sequence[PromptLogprobs] = ()

    @property
    def sampled_rows(self) -> Int32:
        """``[S]``, int32: for each pair of ``sampled`` and ``offsets``, its index in the step's ``T`` tokens."""
        rows: Int32 = self.batch.cu_seqlens_q.take(self.sampled) + self.offsets
        return rows


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave: the sampler's answer, and the log-probabilities of prompts in the order they were asked for."""

    sampled: Sampled | None
    prompt_logprobs: Sequence[LogprobColumns]


class Pending(Protocol):
    """A step that was launched."""

    @property
    def is_done(self) -> bool:
        """Whether ``wait`` returns at once, now that the step was launched."""
        ...

    def wait(self) -> StepResult:
        """What the step gave."""
        ...


class Runner(Protocol):
    """Whatever carries out steps, one after the other."""

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Whether a step may be launched before the tokens of the last one are known, with such a sequence in it."""
        ...

    def launch(self, step: Step) -> Pending:
        """Begin a step; it may still be under way when this returns."""
        ...

    def recover(self) -> None:
        """Be ready for the next step after ``launch`` or ``wait`` has raised.

        Every step that began is over when this returns. The next step names all its sequences as started, or its
        sequences are none of those in the step that failed.

        Raises:
            DeviceError: the device is lost; no further step can be launched.
        """
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """A step that is over."""

    result: StepResult
    is_done: bool = True

    def wait(self) -> StepResult:
        """What the step gave."""
        return self.result
