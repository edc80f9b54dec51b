"""The process that renders chat templates: ``python -m tinyvllm.text.template_worker``.

A template is a program from whoever made the checkpoint. The sandbox keeps it from Python's internals, but not from
looping for ever or filling the memory in one expression, which no thread can be stopped from; a process can. One
request a line on standard input, one answer a line on standard output, both JSON in ASCII.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from functools import lru_cache
from typing import Any, NoReturn

import jinja2

from tinyvllm.text.template_environment import TEMPLATE_NAME, template_environment

MAX_CHARACTERS = 4_000_000
"""Most characters of a rendered conversation."""
_MEMORY_BYTES = 2**30
_MAX_MESSAGE = 500


class _LimitError(Exception):
    """A rendering took too long or became too long."""


def main() -> None:
    """Answer requests until standard input ends."""
    _limit_resources()
    for line in sys.stdin:
        answer = _answer(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def _limit_resources() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; its end closes our input
    signal.signal(signal.SIGVTALRM, _time_is_up)
    for limit, value in ((resource.RLIMIT_AS, _MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError):  # macOS has no limit on memory
            continue


def _time_is_up(*_: Any) -> NoReturn:
    raise _LimitError("it ran out of time")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """``{"text": ...}``, or ``{"error": ..., "line": ...}`` where the template failed."""
    # First an exception, which can name the template's line; then, where one C call never returns, the end.
    signal.setitimer(signal.ITIMER_PROF, request["time_limit_s"] * 1.5)
    signal.setitimer(signal.ITIMER_VIRTUAL, request["time_limit_s"])
    try:
        return {"text": _render(request["source"], request["variables"])}
    except MemoryError:
        return {"error": f"it needed more than {_MEMORY_BYTES >> 20} MiB", "line": None}
    except RecursionError as error:
        return {"error": "it calls itself without end", "line": _template_line(error)}
    except Exception as error:
        return {"error": str(error)[:_MAX_MESSAGE] or type(error).__name__, "line": _template_line(error)}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    environment = template_environment()
    code = environment.compile(source, filename=TEMPLATE_NAME)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def _render(source: str, variables: dict[str, Any]) -> str:
    pieces, length = [], 0
    for piece in _compiled(source).generate(variables):
        length += len(piece)
        if length > MAX_CHARACTERS:
            raise _LimitError(f"its text is longer than {MAX_CHARACTERS} characters")
        pieces.append(piece)
    return "".join(pieces)


def _template_line(error: BaseException) -> int | None:
    """The template's line in which an error arose; jinja2 puts it into the traceback."""
    line = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == TEMPLATE_NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


if __name__ == "__main__":
    main()
