"""A kernel launch: its configuration as the driver reads it, and what to say when the card refuses it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tinyvllm.device import DeviceProperties, Dim3
from tinyvllm.devices.cuda.driver import Driver, describe
from tinyvllm.devices.cuda.module import CudaFunction
from tinyvllm.devices.limits import check_launch
from tinyvllm.errors import KernelError

_MAX_KEPT = 4096
_REFUSALS = frozenset((1, 98, 200, 209, 400, 701, 720, 801, 912))
"""What a launch itself can be refused with; any other error comes from earlier work."""
_API_VERSION = 12000

LaunchFunction: TypeAlias = Callable[[int, int, int, None], int]
"""``cuLaunchKernelEx`` of addresses: configuration, function, pointers to the arguments, nothing; returns a status."""


def launch_function(driver: Driver) -> LaunchFunction:
    """The driver's, by ctypes: its bindings read the configuration anew at each launch, which takes 1.5 us more."""
    address, _ = driver.call(driver.api.cuGetProcAddress, b"cuLaunchKernelEx", _API_VERSION, 0)
    function: LaunchFunction = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)(int(address))
    return function


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """Everything of a launch but the kernel and its arguments."""

    grid: Dim3
    block: Dim3
    shared_bytes: int
    pdl: bool
    cooperative: bool
    cluster: Dim3


class LaunchConfigs:
    """The driver's launch configurations, built once for each shape: that costs more than a launch does."""

    def __init__(self, driver: Driver, stream: Any, arch: int) -> None:
        self._driver = driver
        self._stream = stream
        self._has_pdl = arch >= 90
        self._configs: dict[tuple[Any, ...], tuple[int, Any]] = {}  # addresses, and what lies there

    def get(self, grid: Dim3, block: Dim3, shared_bytes: int, pdl: bool, cooperative: bool, cluster: Dim3) -> int:
        """The address of the ``CUlaunchConfig`` of such a launch; good until the next call."""
        key = (grid, block, shared_bytes, pdl, cooperative, cluster)
        found = self._configs.get(key)
        if found is None:
            if len(self._configs) >= _MAX_KEPT:
                self._configs.clear()
            config = self._build(LaunchShape(*key))
            found = self._configs[key] = (int(config.getPtr()), config)
        return found[0]

    def _build(self, shape: LaunchShape) -> Any:
        api = self._driver.api
        config = api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = shape.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = shape.block
        config.sharedMemBytes = shape.shared_bytes
        config.hStream = self._stream
        attributes = []

        def attribute(name: str) -> Any:
            attributes.append(api.CUlaunchAttribute())
            attributes[-1].id = getattr(api.CUlaunchAttributeID, f"CU_LAUNCH_ATTRIBUTE_{name}")
            return attributes[-1].value

        if shape.pdl and self._has_pdl:
            attribute("PROGRAMMATIC_STREAM_SERIALIZATION").programmaticStreamSerializationAllowed = 1
        if shape.cooperative:
            attribute("COOPERATIVE").cooperative = 1
        if shape.cluster != (1, 1, 1):
            size = attribute("CLUSTER_DIMENSION").clusterDim
            size.x, size.y, size.z = shape.cluster
        config.attrs = attributes
        config.numAttrs = len(attributes)
        return config


def refuse_shape(properties: DeviceProperties, function: CudaFunction, shape: LaunchShape) -> None:
    """Raises ``KernelError`` if the limits of the architecture rule the launch out, saying which."""
    check_launch(
        function.what,
        properties,
        shape.grid,
        shape.block,
        shared_bytes=shape.shared_bytes,
        max_dynamic_shared_bytes=function.max_dynamic_shared_bytes,
        max_threads=function.max_threads,
        cooperative=shape.cooperative,
        cluster=shape.cluster,
    )


def launch_failure(
    driver: Driver, properties: DeviceProperties, function: CudaFunction, shape: LaunchShape, code: int
) -> Exception:
    """The exception for a launch that returned the status ``code``."""
    status = driver.api.CUresult(code)
    if code not in _REFUSALS:
        return driver.failure(driver.api.cuLaunchKernelEx, status)
    try:
        refuse_shape(properties, function, shape)
    except KernelError as error:
        return error
    name, text = describe(driver.api, status)
    kinds = [kind for kind in ("pdl", "cooperative") if getattr(shape, kind)]
    resident = ""
    if shape.cooperative:
        threads = math.prod(shape.block)
        per_sm = driver.call(
            driver.api.cuOccupancyMaxActiveBlocksPerMultiprocessor, function.handle, threads, shape.shared_bytes
        )
        resident = f"; {per_sm} blocks fit on each of {properties.num_sms} SMs"
    return KernelError(
        f"{function.what}: the card refuses the launch: {name} ({text}); grid {shape.grid}, block {shape.block}, "
        f"cluster {shape.cluster}, {shape.shared_bytes} bytes of dynamic and {function.static_shared_bytes} of static "
        f"shared memory, {function.num_registers} registers a thread{', ' if kinds else ''}{', '.join(kinds)}{resident}"
    )
