"""A checkpoint as a loader plugin opened it, with everything that comes out of it held against the loader's rules.

Knows nothing of files. What a loader says of its files, a :class:`~tinyvllm.errors.LoadError`, passes as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tinyvllm.errors import CapacityError, TinyvllmError
from tinyvllm.interfaces import Checkpoint, Loader, OpenCall, TensorMeta
from tinyvllm.plugin_call import PluginCall, PluginName, shown

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_METHODS = ("names", "meta", "read", "close")
_MAX_NAMES = 5
"""Names of tensors in one message."""


def open_checkpoint(loader: Loader, plugin: PluginName, call: OpenCall) -> CheckedCheckpoint:
    """The checkpoint that ``loader`` opens, which holds every expected tensor in its shape and a known dtype.

    Raises:
        LoadError: what the loader says of the files.
        PluginError: the loader failed in another way, or what it opened breaks a rule.
    """
    call = replace(call, expected=MappingProxyType(dict(call.expected)))  # the loader cannot change what is expected
    with _LoaderCall(plugin, "open"):
        opened = loader.open(call)
    missing = [name for name in _METHODS if not callable(getattr(opened, name, None))]
    if missing:
        lacking = "" if opened is None else f" without {', '.join(missing)}"
        raise plugin.broken("open", f"{shown(opened)}{lacking}", f"a Checkpoint with {', '.join(_METHODS)}")
    checkpoint = CheckedCheckpoint(opened, plugin)
    try:
        checkpoint.check(call)
    except BaseException as error:
        checkpoint.__exit__(type(error), error, error.__traceback__)
        raise
    return checkpoint


class CheckedCheckpoint:
    """A checkpoint that raises ``PluginError`` for whatever breaks the rules. Leaving its context closes it.

    Args:
        checkpoint: what the plugin opened.
        plugin: who opened it.
    """

    def __init__(self, checkpoint: Checkpoint, plugin: PluginName) -> None:
        self._checkpoint, self._plugin = checkpoint, plugin
        self._metas: dict[str, TensorMeta] = {}

    def __enter__(self) -> CheckedCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the plugin's checkpoint; if that fails too, the error under way is the one that is raised."""
        try:
            self.close()
        except TinyvllmError as failed:
            if error is None:
                raise
            error.add_note(str(failed))

    @property
    def unexpected(self) -> Sequence[str]:
        """Names of stored tensors that the model does not use, where the loader says so."""
        unexpected: Sequence[str] = getattr(self._checkpoint, "unexpected", ())
        if isinstance(unexpected, (list, tuple)) and all(isinstance(name, str) for name in unexpected):
            return unexpected
        raise self._plugin.broken("Checkpoint.unexpected", shown(unexpected), "a tuple of names")

    def check(self, call: OpenCall) -> None:
        """Return if every tensor that ``call`` expects is there, in its shape and a known dtype.

        Raises:
            PluginError: one is not, or the names are no names.
        """
        names = self.names()
        missing = [name for name in call.expected if name not in names]
        if missing:
            more = f" and {len(missing) - _MAX_NAMES} more" if len(missing) > _MAX_NAMES else ""
            got = f"{len(names)} names without {', '.join(missing[:_MAX_NAMES])}{more}"
            raise self._plugin.broken("Checkpoint.names", got, "every tensor of call.expected")
        for name, shape in call.expected.items():
            stored = self.meta(name).shape
            if stored != tuple(shape):
                method = f"Checkpoint.meta({name!r})"
                raise self._plugin.broken(method, f"shape {stored}", f"{tuple(shape)}, as in call.expected")

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        method, expected = "Checkpoint.names", "the names of all tensors, strings, each once"
        with _LoaderCall(self._plugin, method):
            returned = self._checkpoint.names()
            names = (
                list(returned) if isinstance(returned, Iterable) and not isinstance(returned, (str, bytes)) else None
            )
        if names is None:
            raise self._plugin.broken(method, shown(returned), expected)
        seen: set[str] = set()
        for name in names:
            if not isinstance(name, str):
                raise self._plugin.broken(method, f"{shown(name)} as a name", expected)
            if name in seen:
                raise self._plugin.broken(method, f"{shown(name)} twice", expected)
            seen.add(name)
        return frozenset(seen)

    def meta(self, name: str) -> TensorMeta:
        """Shape and dtype of one tensor; the plugin is asked once."""
        if name not in self._metas:
            self._metas[name] = self._meta(name)
        return self._metas[name]

    def read(self, name: str) -> NDArray[Any]:
        """The tensor, C-contiguous, as :meth:`meta` describes it."""
        meta, method = self.meta(name), f"Checkpoint.read({name!r})"
        with _LoaderCall(self._plugin, method):
            array = self._checkpoint.read(name)
        dtype = _DTYPES[meta.dtype]
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != meta.shape:
            expected = f"an array of {dtype} and shape {meta.shape}, as meta says"
            raise self._plugin.broken(method, shown(array), expected)
        return np.asarray(array, order="C")

    def close(self) -> None:
        """Have the loader release its files."""
        with _LoaderCall(self._plugin, "Checkpoint.close"):
            self._checkpoint.close()

    def _meta(self, name: str) -> TensorMeta:
        method = f"Checkpoint.meta({name!r})"
        with _LoaderCall(self._plugin, method):
            meta = self._checkpoint.meta(name)
        if not isinstance(meta, TensorMeta):
            raise self._plugin.broken(method, shown(meta), "a TensorMeta")
        is_shape = isinstance(meta.shape, (tuple, list)) and all(isinstance(n, (int, np.integer)) for n in meta.shape)
        if not is_shape:
            raise self._plugin.broken(method, f"the shape {shown(meta.shape)}", "a tuple of integers")
        if not isinstance(meta.dtype, str) or meta.dtype not in _DTYPES:
            raise self._plugin.broken(method, f"the dtype {shown(meta.dtype)}", f"one of {', '.join(_DTYPES)}")
        return TensorMeta(tuple(int(size) for size in meta.shape), meta.dtype)


class _LoaderCall(PluginCall):
    """A call of a loader or of its checkpoint: what it says of files passes, and memory that runs out is no bug."""

    __slots__ = ()

    def __init__(self, plugin: PluginName, method: str) -> None:
        super().__init__(plugin, method, passes=TinyvllmError)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if isinstance(error, MemoryError):
            raise CapacityError(f"{self.plugin}: {self.method}: memory ran out: {error}") from error
        return super().__exit__(kind, error, trace)
