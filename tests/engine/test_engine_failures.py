"""Rules of the engine when something raises, an example each; test_engine_histories.py looks for more."""

from __future__ import annotations

import contextlib
import gc
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import tinyvllm.engine
from tests.engine.fake_runner import EOS, complete, continuation, fake_engine
from tests.engine.fake_tokenizer import FakeTokenizer, text_of
from tests.engine.faults import EXCEPTIONS, Faults, Panic
from tests.engine.interrupts import ENGINE_FILES, Interruption, interrupt_recovery, interrupting
from tinyvllm.engine.engine import Engine
from tinyvllm.errors import (
    CapacityError,
    DeviceError,
    InvariantError,
    KernelError,
    PluginError,
    RequestError,
    TinyvllmError,
)
from tinyvllm.interfaces import Schedule, SchedulerView
from tinyvllm.outputs import OutputAssembler, OutputDelta, RequestOutput
from tinyvllm.request import SamplingParams

ALICE, BOB, CAROL = [3, 1, 4], [2, 7, 1, 8], [1, 6]
LENGTH = 8
RAISED = [each for each in EXCEPTIONS if each != "KeyboardInterrupt"]


def params(**asked: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": LENGTH, "ignore_eos": True, **asked})


def alone(prompt: list[int], length: int = LENGTH) -> list[int]:
    return continuation(prompt, length)


def rest_of(engine: Engine, before: Sequence[OutputDelta] = ()) -> tuple[dict[str, RequestOutput], list[BaseException]]:
    """Every request's whole output, ``before`` included, and what the steps raised meanwhile.

    No delta comes after the last one of its request.
    """
    finished: dict[str, RequestOutput] = {}
    assembler = OutputAssembler()
    assembler.add(before)
    raised: list[BaseException] = []
    for _ in range(500):
        if not engine.has_unfinished_requests():
            break
        try:
            deltas = engine.step()
        except TinyvllmError as error:
            raised.append(error)
            deltas = []
        engine.check()
        for delta in deltas:
            assert delta.request_id not in finished
            finished |= {output.request_id: output for output in assembler.add([delta])}
    assert not engine.has_unfinished_requests()
    return finished, raised


def assert_serves(engine: Engine) -> None:
    prompt = [9, 9, 9]
    engine.add_request("afterwards", prompt, params())
    finished, raised = rest_of(engine)
    assert not raised
    assert finished["afterwards"].outputs[0].token_ids == alone(prompt)


# ---------------------------------------------------------------- a request comes


@pytest.mark.parametrize(("column", "value"), [("priority", 2**31), ("priority", "high"), ("deadline", "soon")])
def test_a_request_that_cannot_be_entered_is_refused_and_nothing_changes(column: str, value: Any) -> None:
    engine = fake_engine()
    engine.add_request("alice", ALICE, params(), stream=False)
    engine.step()
    admit = engine._admission.admit

    def admit_badly(*arguments: Any, **named: Any) -> Any:
        request = admit(*arguments, **named)
        object.__setattr__(request, column, value)  # past the checks of a request's values
        return request

    engine._admission.admit = admit_badly  # type: ignore[method-assign]
    with pytest.raises(TinyvllmError):
        engine.add_request("bob", BOB, params(n=3))
    engine._admission.admit = admit  # type: ignore[method-assign]
    engine.check()
    engine.add_request("bob", BOB, params())  # the id is free
    finished, raised = rest_of(engine)
    assert not raised
    assert {name: o.outputs[0].token_ids for name, o in finished.items()} == {"alice": alone(ALICE), "bob": alone(BOB)}


@pytest.mark.parametrize("exception", RAISED)
def test_a_tokenizer_that_fails_on_a_prompt_refuses_that_request(exception: str) -> None:
    faults = Faults()
    engine = fake_engine(tokenizer=FakeTokenizer(faults), faults=faults)
    faults.arm("encode", exception)
    with pytest.raises(TinyvllmError):
        engine.add_request("bob", "text", params())
    engine.check()
    assert not engine.has_unfinished_requests()
    assert_serves(engine)


def test_a_refused_request_does_not_change_the_seeds_of_later_ones() -> None:
    def seed_of_second(fails: bool) -> int:
        faults = Faults()
        engine = fake_engine(tokenizer=FakeTokenizer(faults), faults=faults)
        if fails:
            faults.arm("encode", "Panic")
            with pytest.raises(RequestError, match="the request cannot be taken: Panic: injected"):
                engine.add_request("bad", ALICE, params(bad_words=["x"]))
        engine.add_request("good", ALICE, params())
        state = engine._books.requests.get(None, "good")
        assert state is not None
        return state.seed

    assert seed_of_second(fails=True) == seed_of_second(fails=False)


@pytest.mark.parametrize("request_id", [[1], None, 3, {}])
def test_what_is_no_string_is_the_id_of_no_request(request_id: Any) -> None:
    engine = fake_engine()
    with pytest.raises(RequestError, match="request_id must be a string"):
        engine.add_request(request_id, ALICE)
    assert engine.abort_request(request_id) == []
    assert_serves(engine)


def test_an_id_that_is_being_served_is_refused() -> None:
    engine = fake_engine()
    engine.add_request("alice", ALICE, params())
    with pytest.raises(RequestError, match="request 'alice' is already being served; give each request its own id"):
        engine.add_request("alice", BOB, params())
    finished, _ = rest_of(engine)
    assert finished["alice"].outputs[0].token_ids == alone(ALICE)


# ---------------------------------------------------------------- a step fails


@pytest.mark.parametrize("exception", RAISED)
@pytest.mark.parametrize(("lag", "is_late"), [(0, False), (1, False), (1, True)])
@pytest.mark.parametrize("call", range(7))
def test_a_failure_with_one_slot_ends_its_request_and_gives_nobody_anothers_token(
    call: int, lag: int, is_late: bool, exception: str
) -> None:
    faults = Faults()
    engine = fake_engine(max_num_seqs=1, lag=lag, is_late=is_late, faults=faults)
    engine.add_request("alice", ALICE, params())
    finished, _ = rest_of(engine)
    assert finished["alice"].outputs[0].token_ids == alone(ALICE)
    faults.arm("sample", exception, call)
    engine.add_request("bob", BOB, params())
    engine.add_request("carol", CAROL, params())
    finished, raised = rest_of(engine)
    assert len(raised) == 1
    bob, carol = finished["bob"], finished["carol"]
    assert bob.error is not None
    assert str(bob.error) == str(raised[0])
    assert (bob.outputs[0].finish_reason, bob.outputs[0].stop_reason) == ("abort", str(bob.error))
    assert bob.outputs[0].token_ids == alone(BOB)[: len(bob.outputs[0].token_ids)]
    assert carol.error is None
    assert carol.outputs[0].token_ids == alone(CAROL)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("stream", [True, False])
def test_what_has_finished_comes_from_the_step_after_one_that_raised(lag: int, stream: bool) -> None:
    faults = Faults()
    engine = fake_engine(lag=lag, is_late=True, faults=faults)
    engine.add_request("alice", ALICE, params(max_tokens=2), stream=stream)
    deltas = []
    while engine._books.table.num_in_flight.sum() == 0 or engine._books.table.running.size:
        deltas += engine.step()  # until her last token is in flight and nothing else is left
        if lag == 0:
            break
    engine.add_request("bob", BOB, params(presence_penalty=1.0))  # cannot run ahead: everything is read back first
    faults.arm("schedule", "ValueError")
    finished, raised = rest_of(engine, deltas)
    assert len(raised) == 1
    assert finished["alice"].error is None or lag == 0
    assert finished["bob"].error is raised[0]
    if lag:
        assert finished["alice"].outputs[0].token_ids == alone(ALICE, 2)


def test_a_failed_request_holds_no_token_beyond_its_end() -> None:
    prompt = next([first, 5] for first in range(97) if complete([first, 5], 20)[2] == "stop")
    whole = complete(prompt, 20)[0]
    for call in range(len(whole) + 1):
        faults = Faults()
        engine = fake_engine(lag=1, faults=faults)  # its tokens are stored before anybody has looked at them
        engine.add_request("alice", prompt, SamplingParams(max_tokens=20))
        faults.arm("wait", "MemoryError", 2 * call + 1)
        finished, _ = rest_of(engine)
        tokens = finished["alice"].outputs[0].token_ids
        assert tokens == whole[: len(tokens)], call
        assert EOS not in tokens[:-1]


@pytest.mark.parametrize("exception", RAISED)
def test_an_engine_without_its_device_says_so_for_good(exception: str) -> None:
    faults = Faults()
    engine = fake_engine(max_num_seqs=1, faults=faults)
    engine.add_request("alice", ALICE, params(), stream=False)
    engine.add_request("bob", BOB, params(), stream=False)
    engine.step()
    faults.arm("launch", "KernelError")
    faults.arm("recover", exception)
    with pytest.raises(DeviceError, match=r"the engine has stopped, because its device is lost: .*; make a new one"):
        engine.step()
    errors = {output.request_id: output.error for output in engine.step()}  # what there is comes first
    assert isinstance(errors["alice"], KernelError)
    assert isinstance(errors["bob"], DeviceError)
    assert not engine.has_unfinished_requests()
    depths = []
    for _ in range(3):
        with pytest.raises(DeviceError, match="device is lost") as raised:
            engine.step()
        depths.append(len(raised.traceback))
        with pytest.raises(DeviceError, match="device is lost"):
            engine.add_request("carol", CAROL)
    assert len(set(depths)) == 1  # an error is not raised again and again, growing each time
    engine.check()


def test_memory_that_ran_out_is_a_matter_of_capacity() -> None:
    faults = Faults()
    engine = fake_engine(faults=faults)
    engine.add_request("alice", ALICE, params())
    faults.arm("allocate", "MemoryError")
    with pytest.raises(CapacityError, match=r"memory of this machine ran out: injected; lower scheduler\.max_num_seqs"):
        engine.step()
    assert_serves(engine)


# ---------------------------------------------------------------- one request's text fails


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("call", [0, 3, 11, 22, 23])
@pytest.mark.parametrize("asked", [{}, {"logprobs": 0}, {"stop": "never"}, {"prompt_logprobs": 0}, {"n": 2}])
def test_a_tokenizer_that_panics_ends_one_request_and_the_rows_after_it_are_read(
    asked: dict[str, Any], call: int, stream: bool
) -> None:
    faults = Faults()
    engine = fake_engine(tokenizer=FakeTokenizer(faults), faults=faults)
    prompts = {"alice": ALICE, "bob": BOB, "carol": CAROL}
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, params(**asked), stream=stream)
    faults.arm("tokenizer", "Panic", call)
    finished, raised = rest_of(engine)
    assert not raised
    failed = [name for name, output in finished.items() if output.error is not None]
    assert len(failed) == 1
    assert "its tokens cannot be made text: Panic: injected" in str(finished[failed[0]].error)
    for name, prompt in prompts.items():
        whole = alone(prompt)
        for completion in finished[name].outputs:
            assert completion.token_ids == whole[: len(completion.token_ids)]
            if name not in failed:
                assert (completion.token_ids, completion.text) == (whole, text_of(whole))
            if completion.logprobs is not None:
                assert [next(iter(each)) for each in completion.logprobs] == completion.token_ids


def test_an_abort_does_not_fail_over_text() -> None:
    faults = Faults()
    engine = fake_engine(tokenizer=FakeTokenizer(faults), faults=faults)
    engine.add_request("alice", ALICE, params(), stream=False)
    for _ in range(4):
        engine.step()
    faults.arm("tokenizer", "Panic")
    (delta,) = engine.abort_request("alice")
    assert "cannot be made text" in str(delta.error)
    assert delta.token_ids == alone(ALICE)[: len(delta.token_ids)]
    engine.check()
    assert_serves(engine)


# ---------------------------------------------------------------- outputs


def test_an_id_may_be_used_again_before_the_output_of_the_first_was_taken() -> None:
    engine = fake_engine()
    engine.add_request("alice", ALICE, params(max_tokens=1))
    engine.advance()
    engine.add_request("alice", BOB, params(max_tokens=1))
    (aborted,) = engine.abort_request("alice")
    assert aborted.prompt is not None
    assert aborted.prompt.prompt_token_ids == BOB
    engine.add_request("alice", CAROL, params(max_tokens=1))
    engine.advance()
    assert [o.prompt_token_ids for o in OutputAssembler().add(engine.step())] == [ALICE, CAROL]
    assert not engine.has_unfinished_requests()


def test_nothing_is_kept_of_an_owner_who_has_taken_everything() -> None:
    class Owner:
        pass

    engine, owner = fake_engine(), Owner()
    alive = weakref.ref(owner)
    for stream in (True, False):
        engine.add_request("alice", ALICE, params(), owner=owner, stream=stream)
        outputs, assembler = list[RequestOutput](), OutputAssembler()
        while not outputs:
            engine.advance()
            outputs = assembler.add(engine.take(owner))
        assert outputs[0].outputs[0].token_ids == alone(ALICE)
    del owner
    assert_serves(engine)  # the newest step is known until the next one
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("bytecodes", range(0, 60, 3))
@pytest.mark.parametrize("file", ["engine.py", "books.py", "read_back.py", "live_requests.py", "outbox.py"])
def test_an_interrupted_step_repeats_no_output_and_loses_none(file: str, bytecodes: int) -> None:
    engine = fake_engine()
    engine.add_request("alice", ALICE, params(max_tokens=1))
    engine.add_request("bob", BOB, params(max_tokens=2))
    got = [(o.request_id, o.finished) for o in engine.step()]
    engine.add_request("carol", CAROL, params(max_tokens=1))
    try:
        with interrupting(Interruption(file, bytecodes)):
            outputs = engine.step()
    except KeyboardInterrupt:
        outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
        engine.check()
    got += [(o.request_id, o.finished) for o in outputs]
    assert sorted(got) == [("alice", True), ("bob", False), ("bob", True), ("carol", True)]


@pytest.mark.parametrize("file", ["engine.py", "books.py", "step_launcher.py", "live_requests.py", "sequence_table.py"])
def test_an_interrupted_add_takes_the_request_or_leaves_nothing_to_wait_for(file: str) -> None:
    num_interrupted = 0
    for bytecodes in range(0, 90):
        engine = fake_engine()
        try:
            with interrupting(Interruption(file, bytecodes)):
                engine.add_request("alice", ALICE, params(), stream=False)
        except KeyboardInterrupt:
            num_interrupted += 1
            engine.check()
            finished, _ = rest_of(engine)
            for output in finished.values():
                assert output.error is not None or output.outputs[0].token_ids == alone(ALICE)
            assert_serves(engine)
    assert num_interrupted > 20


@pytest.mark.parametrize("file", ["engine.py", "books.py", "step_launcher.py", "live_requests.py", "sequence_table.py"])
def test_an_interrupted_abort_ends_the_request_and_its_output_comes_from_a_step_or_it_goes_on(file: str) -> None:
    num_aborted = 0
    for bytecodes in range(0, 90):
        engine = fake_engine()
        engine.add_request("alice", ALICE, params(), stream=False)
        engine.step()
        outputs: list[RequestOutput] = []
        try:
            with interrupting(Interruption(file, bytecodes)):
                outputs += OutputAssembler().add(engine.abort_request("alice"))
        except KeyboardInterrupt:
            finished, _ = rest_of(engine)
            outputs.append(finished["alice"])
        assert len(outputs) == 1
        num_aborted += outputs[0].outputs[0].finish_reason == "abort"
        assert not engine.has_unfinished_requests()
        engine.check()
    assert num_aborted > 20


def test_an_abort_whose_recovery_is_interrupted_too_loses_no_output() -> None:
    num_interrupted = 0
    for bytecodes in range(0, 190):
        engine = fake_engine()
        engine.add_request("alice", ALICE, params(), stream=False)
        engine.step()
        interrupt_recovery(engine, Interruption("step_launcher.py", 5))
        outputs: list[RequestOutput] = []
        try:
            with interrupting(Interruption("outbox.py", bytecodes)):
                outputs += OutputAssembler().add(engine.abort_request("alice"))
        except KeyboardInterrupt:
            num_interrupted += 1
            finished, _ = rest_of(engine)
            outputs.append(finished["alice"])
        assert [output.finished for output in outputs] == [True]
    assert num_interrupted > 20


def test_interruptions_come_in_every_file_that_runs_while_books_change() -> None:
    ran: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and engine._recovery.at_work_on is not None:
            ran.add(frame.f_code.co_filename)

    faults = Faults()
    engine = fake_engine(lag=1, is_late=True, faults=faults)
    faults.arm("wait", "ValueError", 3)
    sys.setprofile(note)
    try:
        for i, stream in enumerate((True, False, True)):
            engine.add_request(str(i), ALICE, params(n=2, logprobs=1, prompt_logprobs=1), stream=stream)
        engine.abort_request("2")
        while engine.has_unfinished_requests():
            with contextlib.suppress(TinyvllmError):
                engine.step()
    finally:
        sys.setprofile(None)
    folder = str(Path(tinyvllm.engine.__file__).parent)
    files = {Path(file).name for file in ran if str(Path(file).parent) == folder}
    assert faults.fired
    assert files <= set(ENGINE_FILES)


def test_the_exit_of_a_signal_handler_ends_the_program_and_not_a_request() -> None:
    engine = fake_engine(lag=1, is_late=True)
    engine.add_request("alice", ALICE, params())
    read_back = engine._read_back

    def exit_now(*_: Any) -> None:
        sys.exit("terminated")

    def killed() -> None:
        signal.raise_signal(signal.SIGTERM)
        read_back()

    before = signal.signal(signal.SIGTERM, exit_now)
    engine._read_back = killed  # type: ignore[method-assign]
    try:
        engine.step()
        with pytest.raises(SystemExit, match="terminated"):
            engine.step()
    finally:
        signal.signal(signal.SIGTERM, before)
    engine._read_back = read_back  # type: ignore[method-assign]
    finished, raised = rest_of(engine)
    assert not raised
    assert finished["alice"].outputs[0].token_ids == alone(ALICE)


# ---------------------------------------------------------------- it never spins


class Idle:
    """Schedules nothing; preempts what it is told to."""

    def __init__(self, preempts_waiting: bool) -> None:
        self._preempts_waiting = preempts_waiting

    def schedule(self, view: SchedulerView) -> Schedule:
        preempt = np.array(view.waiting) if self._preempts_waiting else np.zeros(0, np.int32)
        return Schedule(np.zeros(0, np.int32), np.zeros(0, np.int32), preempt)


@pytest.mark.parametrize("preempts_waiting", [True, False])
def test_a_scheduler_that_does_nothing_is_named_and_ends_who_waits(preempts_waiting: bool) -> None:
    engine = fake_engine(Idle(preempts_waiting))
    engine.add_request("alice", ALICE, params())
    with pytest.raises(PluginError, match="scheduler 'under test' scheduled nothing though 1 sequences wait"):
        engine.step()
    assert engine.step()[0].error is not None
    assert not engine.has_unfinished_requests()
    engine.check()


def test_requests_that_nothing_serves_any_more_end_with_an_invariant_error() -> None:
    engine = fake_engine()
    engine.add_request("alice", ALICE, params())
    engine._books.table._queue._head = engine._books.table._queue._tail  # lost from the queue: a bug, were it to happen
    with pytest.raises(InvariantError, match="1 requests are left, and nothing of them waits, runs or is in flight"):
        engine.step()
    assert isinstance(engine.step()[0].error, InvariantError)
    assert_serves(engine)


OPTIMISED = """
from tests.engine.fake_runner import fake_engine
from tinyvllm.errors import InvariantError

assert False, "stripped"


def spoilt(statement):
    engine = fake_engine()
    engine.add_request("alice", [1, 2, 3])
    engine.step()
    engine.check()
    exec(statement, {"table": engine._books.table, "row": engine._books.table.running[0]})
    try:
        engine.check()
    except InvariantError:
        return
    raise SystemExit(f"nothing was noticed of {statement}")


for statement in (
    "table._free_slots.pop()",
    "table._free_rows.append(0)",
    "table.blocks._num_free -= 1",
    "table.num_blocks[row] += 1",
    "table.blocks._references[0] += 1",
    "table.slot[row] = 3",
    "table.state[row] = 0",
    "table._queue._head -= 1",
):
    spoilt(statement)
print("all noticed")
"""


def test_check_raises_with_python_optimised() -> None:
    done = subprocess.run([sys.executable, "-O", "-c", OPTIMISED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "all noticed\n"), done.stderr


def test_a_panic_is_no_exception() -> None:
    """What the tests above rely on."""
    assert not issubclass(Panic, Exception)


def test_an_engine_checks_its_books_when_it_has_nothing_left_to_do_and_goes_on_with_right_ones() -> None:
    engine = fake_engine()
    engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=4))
    deltas = engine.step()
    engine._books.table.blocks.allocate(1)  # and nobody holds it
    deltas += engine.step()
    deltas += engine.step()
    with pytest.raises(InvariantError, match="reference counts differ"):
        engine.step()
    deltas += engine.step()
    assert [o.outputs[0].token_ids for o in OutputAssembler().add(deltas)] == [complete([1, 2, 3], 4)[0]]
    engine.check()
