"""``KeyboardInterrupt`` between any two bytecodes of a file of the engine."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENGINE_FILES = (
    "engine.py", "books.py", "read_back.py", "recovery.py", "step_launcher.py", "step_rows.py", "sequence_table.py",
    "columns.py", "waiting_queue.py", "blocks.py", "live_requests.py", "outbox.py", "completion.py",
    "completion_text.py", "request_state.py", "token_logprobs.py", "sampling_columns.py", "validate.py",
    "build_batch.py", "admission.py", "failures.py",
)  # fmt: skip
# The interpreter looks for signals after calls and where it jumps back, and never between a value and its return.
_NEVER_BEFORE = dis.opmap["RETURN_VALUE"]


class Interruption:
    """Raises ``KeyboardInterrupt`` once, before the n-th bytecode that is run in one file.

    Args:
        file: its name, in ``tinyvllm/engine/``.
        num_bytecodes: how many of that file are run before.
    """

    def __init__(self, file: str, num_bytecodes: int) -> None:
        self._end, self._left = f"tinyvllm/engine/{file}", num_bytecodes
        self.where: str | None = None
        """Function and line that were interrupted; None: none was."""

    @property
    def function(self) -> str | None:
        """The function that was interrupted, with its class; None: none was."""
        return None if self.where is None else self.where.split(":")[0]

    def on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        """A trace function for ``sys.settrace``."""
        if not frame.f_code.co_filename.endswith(self._end):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._on_bytecode

    def _on_bytecode(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] != _NEVER_BEFORE:
            if self._left == 0:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                raise KeyboardInterrupt(self.where)
            self._left -= 1
        return self._on_bytecode


@contextmanager
def interrupting(interruption: Interruption | None) -> Iterator[None]:
    """Trace what is called in this context; None: nothing."""
    if interruption is None:
        yield
        return
    before = sys.gettrace()
    sys.settrace(interruption.on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def interrupt_recovery(engine: Any, interruption: Interruption) -> None:
    """Let the next recovery of an engine be interrupted; later ones go through."""
    recovery = engine._recovery
    recover = recovery.recover

    def interrupted(error: BaseException) -> None:
        recovery.recover = recover
        with interrupting(interruption):
            recover(error)

    recovery.recover = interrupted
