"""The border between the engine and a plugin: who is called, and how a failure or a broken rule is reported.

Whatever a plugin raises, or returns against the rules of its socket, becomes a :class:`~tinyvllm.errors.PluginError`
that names the plugin, the socket and the method. Of the traceback it shows the plugin's own frames and no others.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from tinyvllm.errors import PluginError
from tinyvllm.interfaces import Kind

_CORE = str(Path(__file__).parent) + "/"


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

    A :class:`PluginError` of the plugin's, and an exception that ends the program (``KeyboardInterrupt``,
    ``SystemExit``), pass as they are; every other exception is raised again as a ``PluginError``.
    """

    __slots__ = ("method", "plugin")

    def __init__(self, plugin: PluginName, method: str) -> None:
        self.plugin, self.method = plugin, method

    def __enter__(self) -> None:
        """Nothing to be done before the call."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        """Raise a failure of the plugin again, with its name."""
        if error is None or isinstance(error, PluginError) or is_fatal(error):
            return False
        own = own_frames(trace)
        what = f"{self.plugin}: {self.method} raised {type(error).__name__}: {error}"
        frames = "".join(traceback.format_list(own)).rstrip()
        first = _skip_core(trace)
        raise PluginError(f"{what}\n{frames}" if frames else what) from error.with_traceback(first)


def own_frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    """The frames of a traceback that belong to the plugin: those in the folder of the first one outside the core."""
    frames = traceback.extract_tb(_skip_core(trace))
    if not frames:
        return []
    folder = str(Path(frames[0].filename).parent)
    return [frame for frame in frames if frame.filename.startswith(folder)]


def is_fatal(error: BaseException) -> bool:
    """Whether an exception ends the program or the caller's work, and is no failure of a plugin or library."""
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))


def _skip_core(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_CORE):
        trace = trace.tb_next
    return trace
