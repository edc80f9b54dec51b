"""Chat templates: Jinja that came with a checkpoint, rendered in a sandbox, for a limited time, to a limited length.

The environment is the one that Hugging Face templates are written for: ``trim_blocks``, ``lstrip_blocks``, loop
controls, ``raise_exception``, ``strftime_now``, ``tojson`` without HTML escapes, and ``{% generation %}`` as a no-op.
A template is never taken from a request.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

from tinyvllm.errors import LoadError, RequestError

if TYPE_CHECKING:
    import jinja2

_TIME_LIMIT_S = 2.0
_MAX_CHARACTERS = 4_000_000
_MAX_PRODUCT = 1_000_000  # of a number or a sequence that is multiplied
_FILENAME = "<chat template>"


class ChatTemplate:
    """One compiled template.

    Args:
        source: the Jinja text.
        where: its file, for messages.
        special_tokens: variables that every rendering sees.

    Raises:
        LoadError: the template is malformed, naming the line.
    """

    def __init__(self, source: str, where: str, special_tokens: Mapping[str, str]) -> None:
        import jinja2

        self._where = where
        self._special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            code = environment.compile(source, filename=_FILENAME)
        except jinja2.TemplateSyntaxError as error:
            raise LoadError(f"{where}: line {error.lineno} of the chat template: {error.message}") from error
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: mappings with at least ``role``.
            variables: ``add_generation_prompt`` and whatever else the template knows.
        Raises:
            RequestError: the messages are malformed, the template refuses them, or it runs on and on.
        """
        import jinja2

        _check_messages(messages)
        pieces: list[str] = []
        length = 0
        try:
            with _Deadline(_TIME_LIMIT_S):
                for piece in self._template.generate(messages=list(messages), **self._special_tokens, **variables):
                    length += len(piece)
                    if length > _MAX_CHARACTERS:
                        raise _LimitError(f"its text is longer than {_MAX_CHARACTERS} characters")
                    pieces.append(piece)
        except (jinja2.TemplateError, _LimitError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            line = _line_of(error)
            at = f", line {line}" if line else ""
            raise RequestError(f"the chat template ({self._where}{at}) refuses these messages: {error}") from error
        return "".join(pieces)


class _LimitError(Exception):
    """A rendering took too long, or became too large."""


class _Deadline:
    """Ends the template's own code, and only that, once the time is up; works in any thread."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._until = time.monotonic() + self._seconds
        self._outer = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._outer)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != _FILENAME:
            return None
        if time.monotonic() > self._until:
            raise _LimitError(f"it ran for more than {self._seconds:g} s")
        return self._trace


def _environment() -> jinja2.Environment:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what a model said, for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 -- jinja's way to declare it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Environment(ImmutableSandboxedEnvironment):
        """Multiplication and powers cannot be used to fill the memory."""

        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right)]
            is_repetition = hasattr(left, "__len__") or hasattr(right, "__len__")
            if operator == "**" or (is_repetition and sizes[0] * sizes[1] > _MAX_PRODUCT):
                raise _LimitError(f"{operator!r} is limited in chat templates")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format_: datetime.now().strftime(format_)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(
            f'messages must be a list like [{{"role": "user", "content": "..."}}], got {str(messages)[:200]}'
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{i}] must be a mapping with a role, got {str(message)[:200]}")


def _line_of(error: BaseException) -> int | None:
    """The line of the template in which an error arose."""
    line, trace = None, error.__traceback__
    while trace is not None:
        # jinja rewrites tracebacks so that the frames of a template carry its own lines.
        if trace.tb_frame.f_code.co_filename == _FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
