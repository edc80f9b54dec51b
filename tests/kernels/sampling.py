"""What the tests of sampling share: rows of parameters, a step on the device, and which tokens a draw may give.

The judge computes masses, cuts and scores in float64 from the definitions. Where float32 logarithms and exponentials
may decide, it accepts each outcome; everywhere else exactly one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyvllm.batch import SamplingRows
from tinyvllm.device import Argument, Array, Buffer, Gpu
from tinyvllm.reference.philox import random_words
from tinyvllm.reference.sampling import scaled
from tinyvllm.shapes import Float32, Int32
from tinyvllm.slots import NO_RULES, SampledBuffers, SlotParameters
from tinyvllm.testing.sampling_rows import rows_of as rows_of
from tinyvllm_samplers.gpu.sample import Sample

from .support import F32_ROUNDOFF, Float64, get, once, poisoned, put

INF = float("inf")
LOGARITHM_ULPS = 16
"""Units in the last place that exp, log and log1p of both devices and the few roundings around them may add up to."""

# Small blocks: a vocabulary of a few hundred tokens has several tiles in a call of a few rows, and several steps in a
# call of more; and the list of a cut row overflows.
SMALL: dict[str, Any] = {"threads": 64, "loads": 2, "num_blocks": 12, "list_size": 48}
PADDING = -1
PHILOX_WORDS = Path(__file__).with_name("philox_words.cu")

make_sample = once(Sample)


def take(rows: SamplingRows, pick: Any) -> SamplingRows:
    return rows.take(pick)


@dataclass
class Step:
    """One step's buffers: rows sit in shuffled slots, some slots are empty, one row at the end is padding."""

    device: Gpu
    logits: Buffer
    slots: Buffer
    positions: Buffer
    columns: SlotParameters
    out: SampledBuffers
    host_slots: Int32

    @classmethod
    def of(cls, device: Gpu, logits: Float32, rows: SamplingRows, rule_rows: Any = NO_RULES) -> Step:
        num_rows = len(logits)
        num_slots = num_rows + 3
        slots = np.random.default_rng(num_rows).permutation(num_slots)[:num_rows].astype(np.int32)
        columns = SlotParameters(device, num_slots)
        columns.write(np.arange(num_slots, dtype=np.int32), rows_of(num_slots, temperature=np.nan))
        columns.write(slots, rows, rule_rows)
        columns.upload()
        padded = np.concatenate([logits, np.full((1, logits.shape[1]), np.nan, np.float32)])
        out = SampledBuffers(
            poisoned(device, (num_rows + 1,), np.int32),
            poisoned(device, (num_rows + 1,), np.uint8),
        )
        return cls(
            device,
            put(device, padded),
            put(device, np.append(slots, np.int32(PADDING))),
            put(device, np.append(rows.position, np.int32(0))),
            columns,
            out,
            slots,
        )

    def results(self) -> tuple[Int32, Array]:
        """Tokens and corrupt flags; the padding row must have been left alone."""
        tokens, corrupt = get(self.device, self.out.token_ids), get(self.device, self.out.is_corrupt)
        assert tokens[-1] == -1
        assert corrupt[-1] == 0xFF
        return tokens[:-1], corrupt[:-1].astype(bool)


def draw(
    device: Gpu, logits: Float32, rows: SamplingRows, *, may_cut: bool = True, **sizes: Any
) -> tuple[Int32, Array]:
    """Tokens and corrupt flags of one call."""
    step = Step.of(device, logits, rows)
    sample = make_sample(device, vocab_size=logits.shape[1], max_rows=64, **(sizes or SMALL))
    sample(step.out, step.logits, step.columns, step.slots, step.positions, may_cut=may_cut)
    return step.results()


def launch_gumbel(device: Gpu, out: Buffer, words: Array) -> None:
    """Queue a kernel that fills ``out`` with float32 numbers, those of ``words``: a predecessor that makes logits."""
    others = [device.memory.alloc(words.shape, np.float32) for _ in range(3)]
    function = device.compile(PHILOX_WORDS).function("numbers_of_words")
    outputs = [others[0], out.view(words.shape), *others[1:]]
    arguments: list[Argument] = [*outputs, put(device, words), np.int32(words.size)]
    device.launch(function, (-(-words.size // 128), 1, 1), (128, 1, 1), arguments)


def admissible(logits: Float32, rows: SamplingRows, row: int) -> Array:
    """The tokens that may be drawn from one sound row; almost always one."""
    temperature = rows.temperature[row]
    if temperature == 0:
        return np.array([logits[row].argmax()])
    z = scaled(logits[row : row + 1], rows.temperature[row : row + 1])[0].astype(np.float64)
    surely, possibly = _kept(z, rows, row)
    stream = (rows.seed[[row]], rows.completion_index[[row]], rows.position[[row]])
    words = random_words(*stream, len(z))[0].astype(np.float32).astype(np.float64)
    u = np.minimum((words * 2.0**-32 + 2.0**-33).astype(np.float32), np.float32(1 - 2.0**-24)).astype(np.float64)
    score = z - np.log(-np.log1p(-u))
    error = LOGARITHM_ULPS * F32_ROUNDOFF * (1 + np.abs(score) + np.abs(z))
    with np.errstate(invalid="ignore"):
        best = np.where(surely, score - error, -INF).max()
        return np.flatnonzero(possibly & (score + error >= best))


def _kept(z: Float64, rows: SamplingRows, row: int) -> tuple[Array, Array]:
    """Tokens that are kept whatever the rounding, and those that may be."""
    top_k, top_p, min_p = int(rows.top_k[row]), float(rows.top_p[row]), float(rows.min_p[row])
    weight = np.exp(z)
    slack = weight * LOGARITHM_ULPS * F32_ROUNDOFF + 2.0**-44
    above, near = weight - slack >= min_p, weight + slack >= min_p
    if min_p == 0:
        above = near = np.ones(len(z), bool)
    above, near = above & (z > -INF), near & (z > -INF)
    order = np.lexsort((np.arange(len(z)), -z))
    order = order[near[order]]
    if top_k > 0:
        order = order[:top_k]
    mass = np.cumsum(weight[order])
    before = mass - weight[order]
    exact = (weight[order] == np.round(weight[order] * 2.0**20) * 2.0**-20).all() and (above == near).all()
    # Few bits, as of tokens of equal weight: every sum is exact, and so is the cut.
    error = 0.0 if exact else slack[order].sum() + weight[order][~above[order]].sum()
    surely, possibly = np.zeros(len(z), bool), np.zeros(len(z), bool)
    is_first = np.arange(len(order)) == 0
    goal = top_p * mass[-1]
    possibly[order] = is_first | (top_p >= 1) | (before - error < goal)
    surely[order] = is_first | (top_p >= 1) | (before + error < goal)
    return surely & above, possibly


def check(logits: Float32, rows: SamplingRows, tokens: Int32) -> int:
    """Every token is admissible; how many rows left no choice."""
    certain = 0
    for row in range(len(logits)):
        may_be = admissible(logits, rows, row)
        assert tokens[row] in may_be, f"row {row}: {tokens[row]} not in {may_be}: {take(rows, row)}"
        certain += len(may_be) == 1
    return certain


@st.composite
def logits_and_rows(
    draw_from: st.DrawFn, sizes: tuple[int, ...], *, max_rows: int = 5, cut: bool = True
) -> tuple[Float32, SamplingRows]:
    """Peaked, flat, tied, masked and extreme rows, each with its own parameters."""
    num_rows, vocab_size = draw_from(st.integers(1, max_rows)), draw_from(st.sampled_from(sizes))
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    scale = rng.choice([0.0, 0.5, 3.0, 20.0, 1e4, 1e30], (num_rows, 1))
    logits = rng.standard_normal((num_rows, vocab_size)) * scale
    logits = np.where(rng.random((num_rows, 1)) < 0.3, np.round(logits), logits)
    masked = rng.random(logits.shape) < rng.choice([0, 0, 0.3, 0.99], (num_rows, 1))
    masked[np.arange(num_rows), rng.integers(0, vocab_size, num_rows)] = False
    logits[masked] = -INF
    rows = rows_of(
        num_rows,
        temperature=rng.choice([0, 1e-6, 0.01, 0.6, 1.0, 2.5, 100.0], num_rows),
        seed=rng.integers(0, 2**64, num_rows, dtype=np.uint64),
        completion_index=rng.integers(0, 64, num_rows),
        position=rng.integers(0, 2**31, num_rows),
    )
    if cut:
        rows = rows.replace(
            top_k=rng.choice([0, 0, 1, 2, 5, 39, 100, 100_000], num_rows).astype(np.int32),
            top_p=rng.choice([1, 1, 1e-6, 0.1, 0.5, 0.9, 0.999], num_rows).astype(np.float32),
            min_p=rng.choice([0, 0, 0.001, 0.05, 0.5, 1.0], num_rows).astype(np.float32),
        )
    return logits.astype(np.float32), rows
