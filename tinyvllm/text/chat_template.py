"""Chat templates: Jinja that came with a checkpoint, rendered in a sandbox in a process of its own.

The process has no environment variables to read, a limit on time and memory, and may write no file. A template is
never taken from a request.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from tinyvllm.checks import shown
from tinyvllm.errors import LoadError, RequestError

TIME_LIMIT_S = 2.0
"""Processor time that one rendering may take; templates take about a millisecond."""
_MAX_SOURCE_CHARACTERS = 1_000_000
# All that Python needs to start and to tell the time; tokens and keys stay here.
_PASSED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


class ChatTemplate:
    """One template. Rendering may be called from any thread; the process starts with the first one.

    Starting takes about 0.15 s, a rendering 0.2 ms.
    """

    def __init__(
        self, source: str, where: str, special_tokens: Mapping[str, str], *, time_limit_s: float = TIME_LIMIT_S
    ) -> None:
        """Check the syntax of a template.

        Args:
            source: the Jinja text.
            where: its file, for messages.
            special_tokens: variables that every rendering sees (``bos_token`` and so on).
            time_limit_s: processor time that one rendering may take.
        Raises:
            LoadError: the template is malformed, naming the line.
        """
        _check_syntax(source, where)
        self._source = source
        self._where = where
        self._special_tokens = dict(special_tokens)
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: mappings with ``role``, and usually ``content``: a string, or a list of parts.
            variables: ``add_generation_prompt`` and whatever else the template knows (``tools``, ``documents``).
        Raises:
            RequestError: the messages are malformed, the template refuses them, or it runs on and on.
        """
        check_messages(messages)
        known = {"tools": None, "documents": None, **self._special_tokens, **variables}
        known["messages"] = [dict(message) for message in messages]
        try:
            request = json.dumps({"source": self._source, "variables": known, "time_limit_s": self._time_limit_s})
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"messages and template variables must be plain JSON values: {error}") from error
        answer = self._ask(request)
        if "error" in answer:
            at = f"{self._where}:{answer['line']}" if answer["line"] else self._where
            raise RequestError(f"{at}: the chat template does not take these messages: {answer['error']}")
        return str(answer["text"])

    def _ask(self, request: str) -> dict[str, Any]:
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
                return {"error": f"it ran out of time or memory (status {process.returncode})", "line": None}
            except BaseException:
                _end(process)
                raise
            self._process = process
            return dict(answer)

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
            raise RequestError(f"{self._where}: cannot start Python to render the chat template: {error}") from error
        weakref.finalize(self, _end, process)
        return process


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise RequestError unless it is a list of mappings with a role and text, parts or nothing as content."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(
            f'messages must be a list like [{{"role": "user", "content": "..."}}], got {shown(messages)}'
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{i}] must be a mapping with a role, got {shown(message)}")
        if not isinstance(message.get("content"), (str, list, tuple, type(None))):
            raise RequestError(
                f"messages[{i}].content must be text or a list of parts, got {shown(message['content'])}"
            )


def _check_syntax(source: str, where: str) -> None:
    import jinja2

    from tinyvllm.text.template_environment import template_environment

    if len(source) > _MAX_SOURCE_CHARACTERS:
        raise LoadError(f"{where}: the chat template has {len(source)} characters, at most {_MAX_SOURCE_CHARACTERS}")
    try:
        # Parsing only: compiling already computes constant expressions, however large.
        template_environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise LoadError(f"{where}:{error.lineno}: the chat template is malformed: {error.message}") from error
    except RecursionError:
        raise LoadError(f"{where}: the chat template is nested too deeply") from None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # a request that it never read
                continue
