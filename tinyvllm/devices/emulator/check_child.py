"""The process that ``check`` starts: makes the sanitized device, calls the function, says how it ended."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tinyvllm.devices.emulator.build import Sanitizer
from tinyvllm.devices.emulator.device import EmulatorDevice
from tinyvllm.errors import DeviceError, TinyvllmError


def load_function(name: str) -> Callable[..., object]:
    """The function of a module, or of a file, named ``where:function``.

    Raises:
        DeviceError: there is none.
    """
    where, _, attribute = name.rpartition(":")
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        if spec is None or spec.loader is None:
            raise DeviceError(f"{where} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise DeviceError(f"{where} has no function {attribute}")
    return function  # type: ignore[no-any-return]  # callable is all that can be known


def main(request: str) -> None:
    """Runs one request; a line on the error stream says how it ended."""
    wanted = json.loads(request)
    try:
        function = load_function(wanted["function"])
        device = EmulatorDevice(
            arch=wanted["arch"],
            seed=wanted["seed"],
            cache_dir=Path(wanted["cache_dir"]),
            sanitizer=Sanitizer(wanted["sanitizer"]),
        )
        function(device, **wanted["arguments"])
        device.synchronize()
    except (TinyvllmError, AssertionError) as error:
        message = str(error).replace("\n", " ")
        sys.stderr.write(f"tinyvllm check failed: {message or type(error).__name__}\n")
    else:
        sys.stderr.write("tinyvllm check finished\n")


if __name__ == "__main__":
    main(sys.argv[1])
