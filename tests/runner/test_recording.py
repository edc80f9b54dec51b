"""Graphs are recorded, and kernels prepared, while requests are half way: nothing that a request could read changes.

What a step reads is compared byte by byte. Whatever else a recording has changed is filled with NaN before the requests
go on: if they end with the bits of an engine that was left alone, nobody has read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulator.caches import add_runtimes
from tests.engine.device_runs import bits, random_prompts, start
from tests.engine.test_device_engine import SMALL, device  # noqa: F401 -- a fixture
from tests.kernels.mutants import device_of, plant
from tinyvllm import LLM, SamplingParams
from tinyvllm.device import Array, Buffer
from tinyvllm.devices.emulator import Sanitizer
from tinyvllm.devices.emulator.check import check as run_checked
from tinyvllm.devices.emulator.device import EmulatorDevice
from tinyvllm.devices.emulator.memory import EmulatorMemory
from tinyvllm.errors import KernelError
from tinyvllm.interfaces import SampleKind
from tinyvllm.runner import inputs as device_inputs
from tinyvllm.runner.gpu_runner import GpuRunner, decode_sizes
from tinyvllm.runner.inputs import GpuInputs, StepTensors
from tinyvllm.runner.token_sampling import TokenSampling
from tinyvllm.start import build, model
from tinyvllm.start.warm_up import COMMON, record_common, rehearse
from tinyvllm.step import Step

from . import padding_samples
from .kinds import ALL_KINDS

LENGTHS = (12, 8, 10)
NUM_STEPS_BEFORE = 4
BATCHES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "one greedy": [{"temperature": 0}],
    "greedy": [{"temperature": 0}] * 3,
    "random": [{"seed": seed} for seed in range(3)],
    "cut": [{"seed": 1, "top_k": 9}, {"seed": 2, "top_p": 0.8}, {"seed": 3, "min_p": 0.02}],
    "everything": [
        {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 0.7, "logprobs": 2},
        {"seed": 2, "top_p": 0.9, "logit_bias": {7: 3.0, 8: -5.0}, "repetition_penalty": 1.4},
        {"seed": 3, "top_k": 20, "logprobs": 1, "bad_words": None, "min_tokens": 3},
    ],
}


@dataclass(frozen=True)
class HalfWay:
    """An engine with requests half way and a step in flight, and all memory of its device that is in use."""

    llm: LLM
    buffers: Sequence[Buffer]

    @property
    def runner(self) -> GpuRunner:
        runner: Any = self.llm.engine._runner
        return runner  # type: ignore[no-any-return]

    def state(self) -> dict[str, Array]:
        """What a step reads that it was not sent: by name, as bytes."""
        runner, contents = self.runner, self.contents()
        tokens: Any = runner._tokens
        inputs, ring = runner._gpu_inputs, tokens._on_host
        rules = tokens._sampler._sampler._rules.penalties._state
        named: dict[str, Buffer] = {
            "newest tokens": inputs.newest,
            "sampling columns": tokens._parameters._block,
            "block tables": inputs._tables,
            "counting": inputs.counting,
            "count of the ring": ring._device_count,
            "counts": rules.counts,
            "numbers of generated tokens": rules.num_output,
            "recent tokens": rules.recent,
            **{f"K cache {i}": cache.key for i, cache in enumerate(runner._caches)},
            **{f"V cache {i}": cache.value for i, cache in enumerate(runner._caches)},
        }
        found = {name: contents[buffer.pointer] for name, buffer in named.items()}
        return {**found, "ring": ring._ring.array.copy().view(np.uint8).reshape(-1)}

    def contents(self) -> dict[int, Array]:
        """Every allocation of the device, by address, as bytes."""
        memory = self._memory
        return {each.pointer: memory.download(each.view((each.nbytes,), np.uint8)) for each in self.buffers}

    def poison(self, pointers: Sequence[int]) -> None:
        """Fill these allocations with NaN."""
        for buffer in self.buffers:
            if buffer.pointer in pointers:
                self._memory.fill(buffer, 0xFF)

    def finish(self) -> list[Any]:
        """The bits of all outputs, in order of their requests."""
        outputs: dict[str, Any] = {}
        while self.llm.engine.has_unfinished_requests():
            outputs |= {delta.request_id: delta.output for delta in self.llm.engine.step()}
            self.llm.engine.check()
        return [bits(outputs[request_id]) for request_id in sorted(outputs)]

    @property
    def _memory(self) -> Any:
        assert self.llm.device is not None
        return self.llm.device.memory


def half_way(device: str, batch: str, monkeypatch: pytest.MonkeyPatch) -> HalfWay:  # noqa: F811
    """Requests after their prompts and a few tokens; their modes and sizes are not recorded for others."""
    kind: Any = EmulatorMemory
    if device == "cuda":
        from tinyvllm.devices.cuda.memory import CudaMemory

        kind = CudaMemory
    buffers: list[Buffer] = []
    alloc = kind.alloc

    def noted(self: Any, shape: Any, dtype: Any) -> Buffer:
        buffers.append(alloc(self, shape, dtype))
        return buffers[-1]

    with monkeypatch.context() as patch:
        patch.setattr(kind, "alloc", noted)
        llm = engine(device)
    for i, (prompt, params) in enumerate(zip(random_prompts(SMALL, (5, 9, 17)), BATCHES[batch], strict=False)):
        wanted = SamplingParams(max_tokens=LENGTHS[i], ignore_eos=True, **params)
        llm.engine.add_request(str(i), list(prompt), wanted, stream=False)
    for _ in range(NUM_STEPS_BEFORE):
        assert not llm.engine.step()
    assert len(llm.engine._books.in_flight) == 1
    return HalfWay(llm, [buffer for buffer in buffers if buffer.nbytes])


def engine(device: str) -> LLM:  # noqa: F811
    """Of the small model, for up to four sequences."""
    scheduler = {"max_num_seqs": 4, "max_num_batched_tokens": 40}
    return start(SMALL, device, scheduler=scheduler, cache={"num_blocks_override": 12})


@cache
def left_alone(device: str, batch: str) -> list[Any]:  # noqa: F811
    """What the batch gives in an engine where nothing happens."""
    with pytest.MonkeyPatch.context() as patch:
        return half_way(device, batch, patch).finish()


def record_all(runner: GpuRunner) -> None:
    """Every kind of step, as if none had come."""
    runner._graphs.clear()
    for size, kind in itertools.product(decode_sizes(4), ALL_KINDS):
        runner.record(size, runner.kind_of(kind))
    assert len(runner._graphs) == 3 * len(ALL_KINDS)


def forget(runner: GpuRunner) -> None:
    """The next step is recorded when it comes."""
    runner._graphs.clear()


def prepare(runner: GpuRunner) -> None:
    """What a card does before its first request."""
    runner._graphs.clear()
    rehearse(runner, runner._limits)
    record_common(runner, runner._limits)


ACTIONS: Mapping[str, Callable[[GpuRunner], None]] = {
    "recording": record_all, "recording when they come": forget, "preparing": prepare
}  # fmt: skip


def check_undisturbed(device: str, batch: str, action: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The action changes no state and no token, nor anything that the requests read later."""
    at_work = half_way(device, batch, monkeypatch)
    state, before = at_work.state(), at_work.contents()
    assert all(len(each) for each in state.values())
    ACTIONS[action](at_work.runner)
    after = at_work.contents()
    changed = [name for name, each in at_work.state().items() if not np.array_equal(each, state[name])]
    assert not changed
    at_work.poison([pointer for pointer in before if not np.array_equal(before[pointer], after[pointer])])
    assert at_work.finish() == left_alone(device, batch)


def some_fast() -> list[Any]:
    """Every batch with every action; in the usual loop each of both at least once."""
    fast = {*((batch, "recording") for batch in BATCHES), *(("everything", action) for action in ACTIONS)}
    pairs = itertools.product(BATCHES, ACTIONS)
    return [pair if pair in fast else pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("batch", "action"), some_fast())
def test_requests_half_way_notice_nothing(
    device: str,  # noqa: F811
    batch: str,
    action: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_undisturbed(device, batch, action, monkeypatch)


def test_the_state_that_is_compared_is_in_use(device: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A comparison of what no request has written would prove nothing."""
    at_work = half_way(device, "everything", monkeypatch)
    first = at_work.state()
    at_work.llm.engine.step()
    at_work.llm.engine.step()
    second = at_work.state()
    unchanged = {name for name in first if np.array_equal(first[name], second[name])}
    assert unchanged <= {"sampling columns", "block tables", "counting"}
    assert (first["sampling columns"] != 0xFF).any()
    assert (first["block tables"] != 0xFF).any()


# ------------------------------------------------------------ mutants


def padding(**changes: int) -> tuple[int, ...]:
    names = ("token_ids", "positions", "slot_mapping", "context_lens", "slots", "new_positions")
    return tuple(changes.get(name, right) for name, right in zip(names, device_inputs._DECODE_PADDING, strict=True))


def leave_arrays(self: GpuInputs, size: int) -> StepTensors:
    """Padding that is not sent: a graph is recorded on the arrays of the step before."""
    return self._decode_places(size)[1]


def record_last(self: GpuRunner, tokens: TokenSampling, step: Step, mode: SampleKind) -> None:
    """A step that is recorded after its arrays were sent."""
    size = next(size for size in self._sizes if size >= step.batch.num_sequences)
    self._gpu_inputs.upload_decode(step, size)
    self._upload_parameters(tokens, mode, size)
    self.record(size, mode)
    self._graphs[size, mode].replay()


def run_live_step_twice(self: GpuRunner, tokens: TokenSampling, step: Step, mode: SampleKind) -> None:
    """A step whose first run, before it is recorded, is one on its own arrays, and whose graph is replayed then."""
    size = next(size for size in self._sizes if size >= step.batch.num_sequences)
    buffers = self._gpu_inputs.upload_decode(step, size)
    self._upload_parameters(tokens, mode, size)
    if (size, mode) not in self._graphs:
        self._queue_decode(buffers, mode)
        with self._gpu.capture() as graph:
            self._queue_decode(buffers, mode)
            tokens.queue_end(buffers.sampled.slots)
        self._graphs[size, mode] = graph
    self._graphs[size, mode].replay()


MUTANTS: Mapping[str, tuple[object, str, object, str]] = {
    "padding in slot 0": (device_inputs, "_DECODE_PADDING", padding(slots=0), "recording when they come"),
    "padding in cache slot 0": (device_inputs, "_DECODE_PADDING", padding(slot_mapping=0), "recording"),
    "padding is not sent": (GpuInputs, "upload_padding", leave_arrays, "recording"),
    "recorded last": (GpuRunner, "_decode", record_last, "recording when they come"),
    "live step twice": (GpuRunner, "_decode", run_live_step_twice, "recording when they come"),
    "prompts of padding in cache slot 0": (device_inputs, "_NO_SLOT", 0, "preparing"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_slip_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong, action = MUTANTS[mutant]
    left_alone("emulator", "everything")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, wrong)
        with pytest.raises((AssertionError, KernelError)):
            check_undisturbed("emulator", "everything", action, monkeypatch)


@pytest.fixture(scope="module")
def mutant_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_runtimes(tmp_path_factory.mktemp("cache"), Sanitizer.NONE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("host_ring.cu", "if (slots[i] >= 0) newest[slots[i]]", "newest[max(slots[i], 0)]"),
        ("penalties.cu", "if (row >= num_rows || slots[row] < 0) return;", "if (row >= num_rows) return;"),
        ("penalties.cu", "slot < 0 ? -1 : rule_row[slot]", "rule_row[max(slot, 0)]"),
        ("rotate.cuh", "if (slot < 0) return nullptr;", "if (slot < 0) slot = 0;"),
    ],
)  # fmt: skip
def test_a_kernel_that_takes_padding_for_a_sequence_is_noticed(
    tmp_path: Path, mutant_cache: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str
) -> None:
    left_alone("emulator", "everything")
    plant(tmp_path, file, old, new)
    emulator = EmulatorDevice(cache_dir=mutant_cache)
    monkeypatch.setattr(build, "open_device", lambda *_, **__: device_of(emulator, tmp_path))
    with pytest.raises((AssertionError, KernelError)):
        check_undisturbed("emulator", "everything", "recording", monkeypatch)


# ------------------------------------------------------------ before the first request


def test_an_engine_prepared_as_on_a_card_gives_the_same_and_records_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The emulator does not prepare by itself; here it does."""
    expected = left_alone("emulator", "greedy")
    monkeypatch.setattr(model, "prepares_early", lambda _: True)
    at_work = half_way("emulator", "greedy", monkeypatch)
    report = "\n".join(at_work.llm.report)
    assert "kernels: prepared by 13 steps of padding" in report
    assert "graphs: 9 recorded" in report
    assert set(at_work.runner._graphs) == {
        (size, at_work.runner.kind_of(kind)) for size in (1, 2, 4) for kind in COMMON
    }
    assert at_work.finish() == expected
    assert len(at_work.runner._graphs) == 9


HOST_SAMPLER = """\
import numpy as np
from tinyvllm.batch import Sampled
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin


class Sevens:
    def __init__(self, context):
        pass

    def sample(self, call):
        return Sampled(np.full(len(call.rows), 7, np.int32))


@hookimpl
def register_samplers():
    return [Plugin("mine", Sevens)]
"""


def test_a_sampler_of_the_host_is_prepared_for_as_on_a_card_and_has_no_graphs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(HOST_SAMPLER)
    monkeypatch.setattr(model, "prepares_early", lambda _: True)
    mine = {"plugins": [str(tmp_path / "mine.py")], "sampler": {"name": "mine"}}
    llm = start(SMALL, "emulator", scheduler={"max_num_seqs": 2, "max_num_batched_tokens": 16}, **mine)
    assert "graphs: none, because the host samples" in llm.report
    (output,) = llm.generate({"prompt_token_ids": [3, 4, 5]}, SamplingParams(max_tokens=3), use_tqdm=False)
    assert output.outputs[0].token_ids == [7, 7, 7]


@pytest.mark.slow
def test_steps_of_padding_stay_within_bounds(tmp_path: Path) -> None:
    cache_dir = add_runtimes(tmp_path, Sanitizer.BOUNDS)
    verdict = run_checked(f"{padding_samples.__name__}:run_padding", Sanitizer.BOUNDS, cache_dir=cache_dir)
    assert verdict.is_clean, verdict.findings
