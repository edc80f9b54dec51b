"""The process in which chat templates are rendered: started with the first rendering, ended with its owner.

It has no environment variables to read, a limit on time and memory, and may write no file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyvllm.errors import RequestError

TIME_LIMIT_S = 2.0
"""Processor time that one rendering may take; templates take about a millisecond."""
# All that Python needs to start and to tell the time; tokens and keys stay here.
_PASSED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


@dataclass(frozen=True, slots=True)
class Rendered:
    """What became of one rendering.

    Attributes:
        text: the text of the conversation; empty if there is an error.
        error: why there is no text.
        line: of the template, where the error arose; None: not known.
    """

    text: str
    error: str | None = None
    line: int | None = None


class TemplateProcess:
    """Renders any number of templates, called from any thread. Starting takes about 0.15 s, a rendering 0.2 ms."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return None if self._process is None else self._process.pid

    def render(self, source: str, variables: Mapping[str, Any]) -> Rendered:
        """Render the template ``source``.

        Raises:
            RequestError: ``variables`` are not plain JSON values, or the process cannot start.
        """
        try:
            request = json.dumps({"source": source, "variables": variables, "time_limit_s": self._time_limit_s})
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"messages and template variables must be plain JSON values: {error}") from error
        return self._ask(request)

    def _ask(self, request: str) -> Rendered:
        """The answer of the process; when it ends without one, the next request starts another."""
        with self._lock:
            process = self._process or self._start()
            self._process = None  # until the answer is here: an interrupt must not leave half of one in the pipe
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(f"{request}\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
            except (OSError, ValueError):
                _end(process)
                return Rendered("", f"it ran out of time or memory (status {process.returncode})")
            except BaseException:
                _end(process)
                raise
            self._process = process
            return Rendered(answer.get("text", ""), answer.get("error"), answer.get("line"))

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tinyvllm.text.template_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                text=True,
                encoding="ascii",
            )
        except OSError as error:
            raise RequestError(f"cannot start Python to render a chat template: {error}") from error
        weakref.finalize(self, _end, process)
        return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # a request that it never read
                continue
