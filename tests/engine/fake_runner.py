"""A runner without a model: its KV cache holds token ids, so that whatever reads a wrong block is seen at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.engine.fake_tokenizer import text_of
from tests.engine.faults import FailingBlocks, Faults
from tests.engine.watch import Watch, WatchedScheduler
from tinyvllm.batch import NO_LOGPROBS, LogprobColumns, SampleCall, Sampled, SamplingRows
from tinyvllm.engine.admission import Admission
from tinyvllm.engine.engine import Engine
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.errors import DeviceError
from tinyvllm.interfaces import HostSampler, Kind, PluginContext, Scheduler
from tinyvllm.plugin_call import PluginName
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.runner.checked_sampler import CheckedHostSampler
from tinyvllm.runner.histories import Histories, StepHistories
from tinyvllm.shapes import ModelShape
from tinyvllm.step import Pending, PromptLogprobs, StartedSequence, Step, StepResult
from tinyvllm_schedulers.continuous import ContinuousScheduler
from tinyvllm_schedulers.static import StaticScheduler

VOCAB_SIZE = 97
EOS = 96
SCHEDULERS: dict[str, Any] = {"continuous": ContinuousScheduler, "static": StaticScheduler}


def next_token(tokens: list[int]) -> int:
    """A made-up model: any change in any token of the context changes what follows."""
    value = 0
    for position, token in enumerate(tokens):
        value = (value * 31 + token * (position + 1) + 7) % 1_000_003
    return value % VOCAB_SIZE


def continuation(prompt: list[int], length: int) -> list[int]:
    """The tokens that follow a prompt, whatever they are."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + length:
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def complete(prompt: list[int], most_output: int, stop: str | None = None) -> tuple[list[int], str, str]:
    """Tokens, text and finish reason that a request must yield, without any engine."""
    output: list[int] = []
    text = ""
    while len(output) < most_output:
        output.append(next_token(prompt + output))
        if output[-1] == EOS:
            return output, text, "stop"
        text += text_of(output[-1:])
        if stop is not None and stop in text:
            return output, text[: text.index(stop)], "stop"
    return output, text, "length"


def logprob_of(token_id: int, before: int) -> float:
    """The made-up log-probability of a token after another one."""
    return -((31 * before + token_id) % 100) / 16


def logprob_columns(before: list[int], chosen: list[int], num_listed: int) -> LogprobColumns:
    """Columns of the chosen tokens, and of ``num_listed`` made-up ones beside each."""
    ids = [[token, *((token + j) % VOCAB_SIZE for j in range(1, num_listed + 1))] for token in chosen]
    values = [[logprob_of(token, last) for token in row] for row, last in zip(ids, before, strict=True)]
    shape = (len(chosen), 1 + num_listed)
    return LogprobColumns(
        np.array(ids, np.int32).reshape(shape),
        np.array(values, np.float32).reshape(shape),
        np.ones(len(chosen), np.int32),
    )


@dataclass
class History:
    """A sequence as its slot got it, and the tokens that were chosen since."""

    started: StartedSequence
    tokens: list[int]

    def add(self, position: int, token: int) -> None:
        """A token; nothing if it is there, or if a step before it has failed, which ends the sequence."""
        if len(self.tokens) == position:
            self.tokens.append(token)


@dataclass(frozen=True)
class Launched:
    """A step that was launched. A late one shows its tokens only to who waits for them, as a device's.

    Attributes:
        histories: those that its rows had when it was launched.
        kept: what the product keeps of them.
    """

    result: StepResult
    is_done: bool
    faults: Faults
    watch: Watch
    request_ids: frozenset[str]
    positions: list[int]
    histories: list[History]
    kept: StepHistories | None

    def wait(self) -> StepResult:
        self.watch.touched |= self.request_ids
        self.faults.pass_through("wait")
        if self.result.sampled is not None and self.kept is not None:
            token_ids = self.result.sampled.token_ids
            for history, position, token in zip(self.histories, self.positions, token_ids.tolist(), strict=True):
                history.add(position, token)
            self.kept.append(token_ids)
        return self.result


class FakeRunner:
    """Writes token ids where keys would go, reads whole contexts through the block tables, and continues them.

    With ``is_late`` it keeps what it chose to itself until it is asked, as a device does, and cannot do so for
    requests with a penalty. It keeps block tables and tokens by slot as a device does. It holds the tables against the
    step's, the tokens against its cache, and against them those that the product's runners keep of rows with rules.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        is_late: bool = False,
        faults: Faults | None = None,
        watch: Watch | None = None,
        sampler: CheckedHostSampler | None = None,
    ) -> None:
        self._sampler = sampler
        self._stored = np.full(num_blocks * block_size, -1, np.int64)
        self._block_size, self._is_late = block_size, is_late
        self._faults, self._watch = faults or Faults(), watch or Watch()
        self._newest: dict[int, int] = {}  # by slot
        self._is_lost = False
        self._tables = np.zeros((0, 0), np.int32)
        self._histories: dict[int, History] = {}  # by slot
        self._kept = Histories()

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        self._faults.pass_through("can_run_ahead")
        return not (self._is_late and params.presence_penalty)

    def launch(self, step: Step) -> Pending:
        self._faults.pass_through("launch")
        batch = step.batch
        self._follow(step)
        self._start(step)
        assert len(np.unique(batch.slot_mapping)) == batch.num_tokens, "two tokens go to one slot"
        assert self._is_late or (batch.token_ids >= 0).all()
        token_ids = [self._newest[-1 - t] if t < 0 else t for t in batch.token_ids.tolist()]
        self._stored[batch.slot_mapping] = token_ids
        histories = [self._histories[slot] for slot in step.slots.tolist()]
        chosen, before, positions_after = [], [], []
        can_be_late = all(self.can_run_ahead(each.started.params, each.started.rules) for each in histories)
        num_unknown = (0, 1) if self._is_late and can_be_late else (0,)
        for b, row, history in zip(step.sampled.tolist(), step.sampled_rows.tolist(), histories, strict=True):
            positions = np.arange(batch.positions[row] + 1)
            slots = batch.block_tables[b, positions // self._block_size] * self._block_size
            seen = self._stored[slots + positions % self._block_size].tolist()
            known = history.tokens
            assert len(seen) - len(known) in num_unknown
            assert seen[: len(known)] == known, "the cache does not hold the sequence's tokens"
            chosen.append(next_token(seen))
            before.append(seen[-1])
            positions_after.append(len(seen))
        self._faults.pass_through("sample")
        self._newest |= dict(zip(step.slots.tolist(), chosen, strict=True))
        sampled = kept = None
        if step.sampling is not None:
            kept = self._kept.of(step.slots, step.sampling)
            _check_rows(step.sampling, histories, kept)
            sampled = Sampled(np.array(chosen, np.int32), _listed(before, chosen, step.sampling))
            if self._sampler is not None:
                logits = np.zeros((len(chosen), VOCAB_SIZE), np.float32)
                logits[np.arange(len(chosen)), chosen] = 5
                sampled = self._sampler.sample(SampleCall(logits, step.sampling, kept.tokens))
        prompts = [_of_prompt(token_ids, wanted) for wanted in step.prompt_logprobs]
        is_done = not (self._is_late and chosen and can_be_late)
        self._faults.pass_through("launched")
        request_ids = frozenset(self._watch.decided)
        result = StepResult(sampled, prompts)
        return Launched(result, is_done, self._faults, self._watch, request_ids, positions_after, histories, kept)

    def _start(self, step: Step) -> None:
        if step.started is not None:
            self._kept.start(step.started)
            for slot, each in zip(step.started.slots.tolist(), step.started.sequences, strict=True):
                self._histories[slot] = History(each, each.token_ids.tolist())

    def _follow(self, step: Step) -> None:
        """Keeps block tables of its own, as a device does, and holds them against the step's."""
        tables, updates = step.batch.block_tables, step.table_updates
        if updates is None:
            self._tables = np.zeros((tables.shape[0], 64), np.int32)
            self._tables[:, : tables.shape[1]] = tables
        else:
            self._tables[updates.rows, updates.columns] = updates.blocks
        for b, length in enumerate(step.batch.context_lens.tolist()):
            count = -(-length // self._block_size)
            assert np.array_equal(self._tables[b, :count], tables[b, :count]), "an update of a block table is missing"

    def recover(self) -> None:
        self._newest.clear()  # nobody may count on them
        self._tables = np.zeros((0, 0), np.int32)
        if self._is_lost:
            raise DeviceError("injected")
        try:
            self._faults.pass_through("recover")
        except KeyboardInterrupt:
            raise
        except BaseException:
            self._is_lost = True  # for good, as a device: whoever is interrupted as it hears of it may ask again
            raise


def _check_rows(rows: SamplingRows, histories: list[History], kept: StepHistories) -> None:
    given = [(float(p), int(s)) for p, s in zip(rows.min_p, rows.top_k, strict=True)]
    params = [each.started.params for each in histories]
    assert given == [(float(np.float32(each.min_p)), each.top_k) for each in params], "parameters of another sequence"
    for history, tokens in zip(histories, kept.tokens, strict=True):
        assert (tokens is not None) == history.started.params.has_rules
        if tokens is not None:
            assert tokens.all.tolist() == history.tokens
            assert tokens.num_prompt_tokens == history.started.num_prompt_tokens


def _listed(before: list[int], chosen: list[int], rows: SamplingRows) -> LogprobColumns | None:
    most = int(rows.num_logprobs.max())
    return None if most == NO_LOGPROBS else logprob_columns(before, chosen, most)


def _of_prompt(token_ids: list[int], wanted: PromptLogprobs) -> LogprobColumns:
    targets = wanted.targets.tolist()
    before = token_ids[wanted.first : wanted.first + len(targets)]
    return logprob_columns(before, targets, wanted.num_logprobs)


def fake_engine(
    scheduler: str | Scheduler = "continuous",
    *,
    num_blocks: int = 32,
    block_size: int = 4,
    max_num_seqs: int = 4,
    budget: int = 16,
    max_model_len: int = 64,
    lag: int = 0,
    is_late: bool = False,
    num_preemptions: int = 0,
    tokenizer: Any = None,
    faults: Faults | None = None,
    watch: Watch | None = None,
    sampler: HostSampler | None = None,
) -> Engine:
    """A real engine around a :class:`FakeRunner`.

    ``faults`` makes its parts fail, ``watch`` sees whom it serves; a ``sampler`` is asked in place of the runner, whose
    choice is the most likely token.
    """
    faults, watch = faults or Faults(), watch or Watch()
    checked = (
        None if sampler is None else CheckedHostSampler(sampler, PluginName(Kind.SAMPLER, "under test"), VOCAB_SIZE)
    )
    shape = ModelShape(1, 8, 1, 1, 8, 8, VOCAB_SIZE, max_model_len)
    context = PluginContext(None, "cpu", shape, max_model_len, max_num_seqs, budget, block_size, False, 0)
    table = SequenceTable(
        FailingBlocks(num_blocks, faults),
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_blocks=-(-max_model_len // block_size),
        budget=budget,
    )
    admission = Admission(
        tokenizer=tokenizer,
        vocab_size=VOCAB_SIZE,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=block_size,
        eos_token_ids=(EOS,),
        default_params=SamplingParams(),
        seed=0,
    )
    chosen: Scheduler = SCHEDULERS[scheduler](context) if isinstance(scheduler, str) else scheduler
    return Engine(
        table=table,
        runner=FakeRunner(num_blocks, block_size, is_late=is_late, faults=faults, watch=watch, sampler=checked),
        scheduler=WatchedScheduler(chosen, faults, watch, num_preemptions) if isinstance(scheduler, str) else chosen,
        scheduler_name=PluginName(Kind.SCHEDULER, scheduler if isinstance(scheduler, str) else "under test"),
        admission=admission,
        lag=lag,
    )
