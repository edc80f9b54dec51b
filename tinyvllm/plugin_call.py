"""The border between the engine and a plugin: who is called, and how a failure or a broken rule is reported.

Whatever a plugin raises, or returns against the rules of its socket, becomes a :class:`~tinyvllm.errors.PluginError`
that names the plugin, the socket and the method. Of the traceback it shows the plugin's own frames and no others.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from tinyvllm.errors import KernelError, PluginError, TinyvllmError
from tinyvllm.interfaces import Kind

_CORE = str(Path(__file__).parent) + "/"
_MAX_TEXT = 1000
_MAX_VALUE = 80
_NAMES = tuple(f"{kind.value} '" for kind in Kind)  # how a message that names a plugin begins


@dataclass(frozen=True, slots=True)
class PluginName:
    """Which plugin fills a socket.

    Attributes:
        kind: the socket.
        name: what the configuration chose.
        origin: where the plugin comes from, ``tinyvllm 0.1.0`` or ``local plugin ./mine.py``; empty: not known.
    """

    kind: Kind
    name: str
    origin: str = ""

    def __str__(self) -> str:
        """For messages: ``sampler 'mine' of local plugin ./mine.py``."""
        return f"{self.kind.value} {self.name!r}" + (f" of {self.origin}" if self.origin else "")

    def broken(self, method: str, got: str, expected: str) -> PluginError:
        """The error for a method that returned something against the rules of its socket.

        Args:
            method: the method of the socket.
            got: what came back, after "returned": ``"int64 of shape (2, 3)"``.
            expected: what the rule asks for: ``"int32 of shape (2,)"``.
        """
        return PluginError(f"{self}: {method} returned {got}; expected {expected}")


class PluginCall:
    """A context manager around a call of one method of a plugin; may be entered any number of times.

    Errors that name a plugin already, the failure of a kernel that was launched before the call, and
    ``KeyboardInterrupt`` pass as they are. Every other exception, ``SystemExit`` included, is raised again as a
    ``PluginError``: a plugin fails, and does not end the program.

    Args:
        plugin: who is called.
        method: of the plugin.
        passes: further exceptions that pass as they are: what the socket asks the method to raise.
    """

    __slots__ = ("method", "passes", "plugin")

    def __init__(self, plugin: PluginName, method: str, *, passes: type[TinyvllmError] | None = None) -> None:
        self.plugin, self.method = plugin, method
        self.passes = () if passes is None else (passes,)

    def __enter__(self) -> None:
        """Nothing to be done before the call."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        """Raise a failure of the plugin again, with its name."""
        if error is None or isinstance(error, (KeyboardInterrupt, *self.passes)) or _names_a_plugin(error):
            return False
        if isinstance(error, KernelError) and error.is_of_earlier_launch:
            return False
        own = own_frames(trace)
        what = f"{self.plugin}: {self.method} raised {type(error).__name__}{detail_of(error)}"
        frames = "".join(traceback.format_list(own)).rstrip()
        first = _skip_core(trace)
        raise PluginError(f"{what}\n{frames}" if frames else what) from error.with_traceback(first)


def own_frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    """The frames of a traceback that belong to the plugin: those in the folder of the first one outside the core."""
    frames = traceback.extract_tb(_skip_core(trace))
    if not frames:
        return []
    folder = str(Path(frames[0].filename).parent) + "/"
    return [frame for frame in frames if frame.filename.startswith(folder)]


def is_fatal(error: BaseException) -> bool:
    """Whether an exception comes from outside: from a signal, whose handler ends the program or the caller's work.

    ``SystemExit`` is such a one too, but never out of a :class:`PluginCall`.
    """
    return isinstance(error, (KeyboardInterrupt, SystemExit))


def detail_of(error: BaseException) -> str:
    """``": "`` and what an exception says, shortened; empty if it says nothing, or fails when it is asked."""
    text = _text(error)
    return f": {text}" if text else ""


def _names_a_plugin(error: BaseException) -> bool:
    return isinstance(error, PluginError) and _text(error).startswith(_NAMES)


def shown(value: object) -> str:
    """What a plugin returned, in a few words, for the message of an error: ``float64 of shape (2, 3)``."""
    if isinstance(value, np.ndarray):
        return f"{str(value.dtype)[:_MAX_VALUE]} of shape {value.shape}"
    if value is None or isinstance(value, bool):
        return str(value)
    kind = type(value).__name__[:_MAX_VALUE]
    if isinstance(value, (str, bytes, int, float)):
        return f"the {kind} {_shortened(value)}"
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return f"a {kind} of {len(value)}"
    return f"an object of type {kind}"


def checked_reasons(plugin: PluginName, method: str, returned: Any) -> list[str]:
    """The reasons that ``supports`` returned.

    Raises:
        PluginError: it returned anything but a list of strings.
    """
    expected = "a list of strings: the reasons why not, empty if it can"
    if not isinstance(returned, (list, tuple)):
        raise plugin.broken(method, shown(returned), expected)
    for each in returned:
        if not isinstance(each, str):
            raise plugin.broken(method, f"a {type(returned).__name__} that holds {shown(each)}", expected)
    return list(returned)


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # of its __str__
        return ""
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def _shortened(value: str | bytes | float) -> str:
    if isinstance(value, int) and value.bit_length() > 4 * _MAX_VALUE:  # Python refuses to write out very long ones
        return f"of {value.bit_length()} bits"
    text = ascii(value[: _MAX_VALUE + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _skip_core(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_CORE):
        trace = trace.tb_next
    return trace
