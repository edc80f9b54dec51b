"""Rules on the device: bit-equal to the reference's, with a state that keeps up with histories by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Array, Gpu
from tinyvllm.errors import CapacityError, ShapeError
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.sequence import SequenceTokens
from tinyvllm.shapes import Float32
from tinyvllm_samplers.gpu.penalties import Penalties
from tinyvllm_samplers.gpu.sample_rules import RuleState
from tinyvllm_samplers.on_host import with_rules

from .sampling import INF, PADDING, SMALL, Step, check, make_sample, rows_of
from .support import get, poisoned, put

WINDOW = 4
TILE: dict[str, Any] = {"threads": 64, "tile": 128}


class Rig:
    """Rule rows for all sequences but the first, which has none, in an order of their own."""

    def __init__(self, device: Gpu, sequences: list[SequenceTokens], vocab_size: int) -> None:
        self.device, self.sequences, self.vocab_size = device, sequences, vocab_size
        num_rows = len(sequences)
        self.state = RuleState(device, num_rows=num_rows + 1, vocab_size=vocab_size, window=WINDOW, capacity=4000)
        self.penalties = Penalties(device, self.state, **TILE)
        self.rule_rows = np.arange(num_rows, 0, -1, dtype=np.int32)
        self.rule_rows[0] = -1
        for rule_row, sequence in zip(self.rule_rows[1:], sequences[1:], strict=True):
            self.state.set(int(rule_row), sequence.params, sequence.rules)
            self.penalties.start(int(rule_row), put(device, sequence.all.copy()), sequence.num_prompt_tokens)
        self.state.upload()

    def step(self, logits: Float32) -> Step:
        params = [sequence.params for sequence in self.sequences]
        rows = rows_of(len(params), temperature=[p.temperature for p in params], top_k=[p.top_k for p in params])
        return Step.of(self.device, logits, rows, self.rule_rows)

    def adjusted(self, logits: Float32) -> Array:
        step = self.step(logits)
        self.device.memory.fill(self.penalties.adjusted, 0xFF)
        self.penalties.apply(step.logits, step.columns, step.slots)
        return get(self.device, self.penalties.adjusted)

    def check_state(self) -> None:
        counts, num_output = get(self.device, self.state.counts), get(self.device, self.state.num_output)
        recent = get(self.device, self.state.recent)
        for rule_row, sequence in zip(self.rule_rows[1:], self.sequences[1:], strict=True):
            expected = np.bincount(sequence.output, minlength=self.vocab_size).astype(np.uint32)
            expected[sequence.prompt] |= np.uint32(2**31)
            np.testing.assert_array_equal(counts[rule_row], expected)
            output = sequence.output
            assert num_output[rule_row] == len(output)
            for i in range(max(0, len(output) - WINDOW), len(output)):
                assert recent[rule_row, i % WINDOW] == output[i]


def sequence_of(params: SamplingParams, prompt: Any, output: Any = (), rules: Any = None) -> SequenceTokens:
    tokens = SequenceTokens.from_prompt(np.asarray(prompt, np.int32), params, rules or SamplingRules())
    for token in output:
        tokens.append(int(token))
    return tokens


def random_sequence(rng: np.random.Generator, vocab_size: int) -> SequenceTokens:
    """Rules of every kind that meet on the same few tokens, so that their order matters."""
    few = rng.permutation(vocab_size)[: max(1, min(vocab_size, 9))]

    def some(most: int) -> list[int]:
        return [int(v) for v in rng.permutation(few)[: rng.integers(0, most + 1)]]

    def maybe(value: Any) -> Any:
        return value if rng.random() < 0.5 else None

    params = SamplingParams(
        temperature=float(rng.choice([0.0, 0.7])),
        top_k=int(rng.choice([0, 3])),
        repetition_penalty=float(rng.choice([1.0, 1.3, 0.7])),
        presence_penalty=float(rng.choice([0.0, 0.61, -1.9])),
        frequency_penalty=float(rng.choice([0.0, 0.37, -0.21])),
        min_tokens=int(rng.choice([0, 5])),
        stop_token_ids=maybe(some(3)) or None,
        logit_bias=maybe({v: float(rng.normal() * 5) for v in some(6)}),
        allowed_token_ids=maybe(some(7) + [int(v) for v in rng.permutation(vocab_size)[:100]]),
        bad_words=["x"],
    )
    words = [tuple(int(v) for v in rng.choice(few, rng.integers(1, WINDOW + 2))) for _ in range(rng.integers(0, 30))]
    rules = SamplingRules(eos_token_ids=tuple(some(2)), bad_words_token_ids=tuple(words))
    output = rng.choice(few, rng.integers(0, 12))
    return sequence_of(params, rng.choice(vocab_size, rng.integers(1, 200)), output, rules)


def expected_of(logits: Float32, sequences: list[SequenceTokens]) -> Float32:
    params = [sequence.params for sequence in sequences]
    names = ("presence_penalty", "frequency_penalty", "repetition_penalty")
    rows = rows_of(len(params), has_rules=True, **{name: [getattr(p, name) for p in params] for name in names})
    return with_rules(logits, rows, sequences)


def random_logits(rng: np.random.Generator, num_rows: int, vocab_size: int) -> Float32:
    return (rng.standard_normal((num_rows, vocab_size)) * 3).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 5, 127, 128, 129, 700]), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_rules_give_the_references_bits(device: Gpu, vocab_size: int, num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sequences = [random_sequence(rng, vocab_size) for _ in range(num_rows)]
    rig = Rig(device, sequences, vocab_size)
    rig.check_state()
    logits = random_logits(rng, num_rows, vocab_size)
    logits[rng.random(logits.shape) < 0.1] = -INF
    got, expected = rig.adjusted(logits), expected_of(logits, sequences)
    for row in range(1, num_rows):
        np.testing.assert_array_equal(got[rig.rule_rows[row]].view(np.uint32), expected[row].view(np.uint32))
    unused = sorted(set(range(num_rows + 1)) - set(rig.rule_rows.tolist()))
    assert np.isnan(got[unused]).all()


@pytest.mark.parametrize("bad", [np.nan, INF])
def test_no_rule_hides_a_corrupt_row(device: Gpu, bad: float) -> None:
    rng = np.random.default_rng(0)
    rules = SamplingRules(bad_words_token_ids=((7,),))
    params = SamplingParams(allowed_token_ids=[1, 2], logit_bias={7: -1e6}, repetition_penalty=2.0, bad_words=["x"])
    rig = Rig(device, [sequence_of(params, [7, 7], [7], rules) for _ in range(3)], 300)
    logits = random_logits(rng, 3, 300)
    logits[1, 7] = logits[2, 299] = bad
    got = rig.adjusted(logits)
    for row, token in ((1, 7), (2, 299)):
        np.testing.assert_array_equal(got[rig.rule_rows[row], token], np.float32(bad))


def test_the_end_is_forbidden_until_there_are_min_tokens(device: Gpu) -> None:
    rules = SamplingRules(eos_token_ids=(3,))
    params = [SamplingParams(min_tokens=n, stop_token_ids=[30]) for n in (0, 4, 5, 6)]
    rig = Rig(device, [sequence_of(p, [1], [2] * 5, rules) for p in params], 40)
    got = rig.adjusted(np.zeros((4, 40), np.float32))
    for row, is_forbidden in ((1, False), (2, False), (3, True)):
        assert np.flatnonzero(got[rig.rule_rows[row]] == -INF).tolist() == [3, 30] * is_forbidden


def test_biases_and_bad_words_meet_on_the_same_tokens(device: Gpu) -> None:
    """Thirty tokens are both forbidden and given a bias, by different threads."""
    ids = range(5, 125, 4)
    params = SamplingParams(logit_bias=dict.fromkeys(ids, 2.0), bad_words=["x"])
    rules = SamplingRules(bad_words_token_ids=tuple((v,) for v in reversed(ids)))
    rig = Rig(device, [sequence_of(params, [1], (), rules) for _ in range(2)], 128)
    got = rig.adjusted(np.zeros((2, 128), np.float32))[rig.rule_rows[1]]
    assert np.flatnonzero(got == -INF).tolist() == list(ids)


def test_a_row_that_may_choose_nothing_is_corrupt(device: Gpu) -> None:
    params = SamplingParams(temperature=0, allowed_token_ids=[3], bad_words=["x"])
    rig = Rig(device, [sequence_of(params, [0], (), SamplingRules(bad_words_token_ids=((3,),))) for _ in range(2)], 40)
    step = rig.step(np.zeros((2, 40), np.float32))
    sample = make_sample(device, vocab_size=40, max_rows=64, **SMALL)
    rig.penalties.apply(step.logits, step.columns, step.slots)
    sample(step.out, step.logits, step.columns, step.slots, step.positions, adjusted=rig.penalties.adjusted)
    tokens, corrupt = step.results()
    assert tokens.tolist() == [0, 0]
    assert corrupt.tolist() == [False, True]


def test_a_graph_of_apply_sample_and_record_keeps_up_with_the_histories(device: Gpu) -> None:
    """Nine steps without the host: after each, the state is that of the history with the tokens just drawn."""
    rng = np.random.default_rng(11)
    vocab_size, num_rows = 150, 6
    sequences = [random_sequence(rng, vocab_size) for _ in range(num_rows)]
    rig = Rig(device, sequences, vocab_size)
    step = rig.step(random_logits(rng, num_rows, vocab_size))
    sample = make_sample(device, vocab_size=vocab_size, max_rows=64, **SMALL)
    with device.capture() as graph:
        rig.penalties.apply(step.logits, step.columns, step.slots)
        sample(step.out, step.logits, step.columns, step.slots, step.positions, adjusted=rig.penalties.adjusted)
        rig.penalties.record(step.out.token_ids, step.columns, step.slots)
    for position in range(9):
        logits = random_logits(rng, num_rows, vocab_size) * np.float32(0.3)  # close: histories decide
        device.memory.upload(step.logits, np.concatenate([logits, logits[:1]]))
        device.memory.upload(step.positions, np.full(num_rows + 1, position, np.int32))
        graph.replay()
        tokens, _ = step.results()
        expected = expected_of(logits, sequences)
        expected[0] = logits[0]
        params = [sequence.params for sequence in sequences]
        rows = rows_of(
            num_rows,
            temperature=[p.temperature for p in params],
            top_k=[p.top_k for p in params],
            position=position,
        )
        check(expected, rows, tokens)
        for sequence, token in zip(sequences, tokens.tolist(), strict=True):
            sequence.append(token)
        rig.check_state()


def test_steps_follow_each_other_without_the_host(device: Gpu) -> None:
    """Each kernel starts before its predecessor has finished, as far as its wait."""
    rng = np.random.default_rng(12)
    vocab_size, num_rows = 150, 4
    sequences = [random_sequence(rng, vocab_size) for _ in range(num_rows)]
    rig = Rig(device, sequences, vocab_size)
    logits = random_logits(rng, num_rows, vocab_size) * np.float32(0.2)
    steps = [rig.step(logits) for _ in range(4)]
    late = sequence_of(SamplingParams(presence_penalty=1.0), [9, 9, 8], [5] * 9)
    tokens = put(device, late.all.copy())
    sample = make_sample(device, vocab_size=vocab_size, max_rows=64, **SMALL)
    for step in steps:
        rig.penalties.apply(step.logits, step.columns, step.slots)
        sample(step.out, step.logits, step.columns, step.slots, step.positions, adjusted=rig.penalties.adjusted)
        rig.penalties.record(step.out.token_ids, step.columns, step.slots)
    rig.penalties.start(int(rig.rule_rows[1]), tokens, 3)
    params = [sequence.params for sequence in sequences]
    rows = rows_of(num_rows, temperature=[p.temperature for p in params], top_k=[p.top_k for p in params])
    for step in steps:
        chosen, _ = step.results()
        expected = expected_of(logits, sequences)
        expected[0] = logits[0]
        check(expected, rows, chosen)
        for sequence, token in zip(sequences, chosen.tolist(), strict=True):
            sequence.append(token)
    sequences[1] = late
    rig.check_state()


def test_a_row_is_taken_over_without_a_trace(device: Gpu) -> None:
    rng = np.random.default_rng(3)
    sequences = [random_sequence(rng, 200) for _ in range(3)]
    rig = Rig(device, sequences, 200)
    sequences[1] = sequence_of(SamplingParams(presence_penalty=1.0), [9, 9, 8], [5] * 9)
    rig.state.clear(int(rig.rule_rows[1]))
    rig.state.set(int(rig.rule_rows[1]), sequences[1].params, sequences[1].rules)
    rig.penalties.start(int(rig.rule_rows[1]), put(device, sequences[1].all.copy()), 3)
    rig.state.upload()
    rig.check_state()
    logits = random_logits(rng, 3, 200)
    got, expected = rig.adjusted(logits), expected_of(logits, sequences)
    for row in (1, 2):
        np.testing.assert_array_equal(got[rig.rule_rows[row]], expected[row])


def test_what_does_not_fit_is_refused_and_changes_nothing(device: Gpu) -> None:
    state = RuleState(device, num_rows=2, vocab_size=50, window=2, capacity=10)
    state.set(0, SamplingParams(allowed_token_ids=list(range(8))), SamplingRules())
    with pytest.raises(CapacityError, match="allowed_token_ids: 11 entries in 2 lists, the device has room for 10"):
        state.set(1, SamplingParams(allowed_token_ids=[1, 2, 3]), SamplingRules())
    with pytest.raises(CapacityError, match="a word of 4 tokens, the device remembers 2"):
        state.set(1, SamplingParams(bad_words=["x"]), SamplingRules(bad_words_token_ids=((1, 2, 3, 4),)))
    state.set(1, SamplingParams(allowed_token_ids=[1, 2]), SamplingRules())
    state.upload()
    assert get(device, state.allowed.offsets).tolist() == [0, 8, 10]


def test_wrong_shapes_are_refused_before_anything_runs(device: Gpu) -> None:
    rig = Rig(device, [sequence_of(SamplingParams(), [0]) for _ in range(2)], 40)
    step = rig.step(np.zeros((2, 40), np.float32))
    with pytest.raises(ShapeError, match=r"penalties logits has shape \[3, 39\]"):
        rig.penalties.apply(poisoned(device, (3, 39), np.float32), step.columns, step.slots)
    with pytest.raises(ShapeError, match="token_ids has shape"):
        rig.penalties.record(put(device, np.full(2, PADDING, np.int32)), step.columns, step.slots)
    with pytest.raises(ShapeError, match="rule row 3 of 3"):
        rig.penalties.start(3, step.slots, 1)
