"""The BLAS that NumPy has loaded: its name, and how many threads it gives to a matrix product.

OpenBLAS can be asked and told, and only while the process runs does it know its threads; a product that is too small
is slower with several. Other libraries (MKL, Accelerate) are named and left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")
_LOADED = re.compile(r"\S*openblas\S*\.so\S*")


class Blas:
    """OpenBLAS in this process. Its number of threads is one for the whole process; only :meth:`threads` changes it.

    Args:
        library: OpenBLAS, loaded.
    Raises:
        AttributeError: ``library`` lacks OpenBLAS's functions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._get = _function(library, "get_num_threads")
        self._set = _function(library, "set_num_threads")
        self._core_name = _function(library, "get_corename")
        self._core_name.restype = ctypes.c_char_p
        self._lock = threading.Lock()
        self._num_users = 0
        self._num_before = self.num_threads

    @property
    def core_name(self) -> str:
        """The kind of processor whose kernels are used."""
        name = self._core_name()
        return name.decode(errors="replace") if isinstance(name, bytes) else "unknown"

    @property
    def num_threads(self) -> int:
        """Threads that a product may use now."""
        return int(self._get())

    @contextlib.contextmanager
    def threads(self, number: int) -> Iterator[None]:
        """Within, products use up to ``number`` threads; afterwards as many as before.

        Several threads of Python may be within at once: the last to enter decides, which costs time at most, and the
        last to leave restores the number.
        """
        with self._lock:
            if self._num_users == 0:
                self._num_before = self.num_threads
            self._num_users += 1
            self._set(number)
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
                if self._num_users == 0:
                    self._set(self._num_before)


@functools.cache
def find_blas() -> Blas | None:
    """The OpenBLAS that NumPy uses; None where it uses another library."""
    for path in _candidates():
        with contextlib.suppress(OSError, AttributeError):
            return Blas(ctypes.CDLL(path))
    return None


def blas_name() -> str:
    """Name and version of the BLAS that NumPy was built with."""
    build = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{build.get('name', '?')} {build.get('version', '?')}"


def _candidates() -> list[str]:
    """Files that may be NumPy's OpenBLAS: the one that came with NumPy, then what this process has loaded."""
    folder = Path(np.__file__).parent
    bundled = [*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")]
    try:
        loaded = _LOADED.findall(Path("/proc/self/maps").read_text(errors="replace"))
    except OSError:
        loaded = []  # not Linux
    return list(dict.fromkeys([*map(str, bundled), *loaded]))


def _function(library: ctypes.CDLL, name: str) -> ctypes._FuncPointer:
    for pattern in _NAMES:
        function = getattr(library, pattern.format(name), None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    raise AttributeError(name)
