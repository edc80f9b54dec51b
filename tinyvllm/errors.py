"""Every exception that tinyvllm raises on purpose.

::

    TinyvllmError
    ├── ConfigError     a configuration file or argument is wrong            exit code 2
    ├── PluginError     a plugin is unknown, broken or misbehaves            exit code 2
    ├── RequestError    one request cannot be served as asked                exit code 2
    ├── LoadError       a checkpoint folder or a file in it is wrong         exit code 3
    ├── DeviceError     a device is absent or failed                         exit code 4
    ├── KernelError     a kernel does not compile, launch or agree           exit code 4
    │   └── ShapeError  an operation was called with arrays that do not fit
    ├── CapacityError   memory or another finite resource ran out            exit code 5
    └── InvariantError  the engine's own books do not add up: a bug          exit code 1

A message says what, where, what was got, what was expected, and the remedy:
``configs/a.yaml:12: cache.block_size must be a power of two, got 24; try 16 or 32``.
"""

from __future__ import annotations

from typing import ClassVar


class TinyvllmError(Exception):
    """The root: catch it to catch everything that tinyvllm raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(TinyvllmError):
    """A configuration file, command line or argument of ``LLM`` is wrong."""

    exit_code = 2


class PluginError(TinyvllmError):
    """A plugin is unknown, cannot be imported, or breaks the rules of its socket."""

    exit_code = 2


class RequestError(TinyvllmError):
    """One request cannot be served as asked; the others are not affected."""

    exit_code = 2


class LoadError(TinyvllmError):
    """Something is wrong with a checkpoint folder, its absence included."""

    exit_code = 3


class DeviceError(TinyvllmError):
    """A device is absent, or failed."""

    exit_code = 4


class KernelError(TinyvllmError):
    """A kernel does not compile, was refused at launch, or failed while it ran.

    Attributes:
        is_of_earlier_launch: whether what failed was queued before the call that raises the error. Devices run
            kernels later than they are launched.
    """

    exit_code = 4
    is_of_earlier_launch: bool = False


class ShapeError(KernelError):
    """An operation was called with arrays whose shapes or dtypes do not fit together."""


class CapacityError(TinyvllmError):
    """Memory or another finite resource ran out; the message names the numbers and the knobs."""

    exit_code = 5


class InvariantError(TinyvllmError):
    """The engine's own books do not add up, or it failed where nothing can fail: a bug of tinyvllm's.

    Raised rather than asserted, so that ``python -O`` does not strip the check.
    """
