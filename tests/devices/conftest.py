"""The card, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyvllm.device import Gpu
from tinyvllm.devices.cuda import CudaDevice, probe


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda-cache")


@pytest.fixture(scope="session")
def has_card() -> bool:
    return probe().is_usable


@pytest.fixture(scope="session")
def session_cuda(has_card: bool, cache_dir: Path) -> CudaDevice:
    if not has_card:
        pytest.skip("no NVIDIA card with driver and extra here")
    return CudaDevice(cache_dir=cache_dir)


@pytest.fixture(scope="session")
def device(session_cuda: CudaDevice) -> Gpu:
    return session_cuda  # mypy sees here that it is one


@pytest.fixture
def cuda(session_cuda: CudaDevice) -> Iterator[CudaDevice]:
    yield session_cuda
    session_cuda.synchronize()  # a failure belongs to the test that made it
