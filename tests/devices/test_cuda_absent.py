"""``device: cuda`` where something of it is missing: one clear error, and nothing imported before it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from tinyvllm.cli.main import main
from tinyvllm.devices.cuda import CudaDevice, probe
from tinyvllm.devices.cuda.cublaslt import load_library
from tinyvllm.devices.cuda.driver import Driver, check_driver_version, find_card, load_bindings, start
from tinyvllm.devices.cuda.memory import load_cupy
from tinyvllm.devices.cuda.nvrtc_version import nvrtc_version
from tinyvllm.errors import DeviceError

CUDA = re.compile(r"cuda|cupy|nvidia|torch|triton")


@pytest.mark.parametrize(
    "what",
    [
        "import tinyvllm, tinyvllm.cli.main, tinyvllm.devices.cuda",
        "from tinyvllm import LLM, SamplingParams\n"
        "LLM('demo', device='cpu').generate(['12+7='], SamplingParams(max_tokens=1))",
    ],
    ids=["imports", "a run on the CPU"],
)
def test_nothing_of_cuda_is_imported_before_it_is_asked_for(what: str) -> None:
    program = f"import sys\n{what}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "tinyvllm" in printed
    assert not [name for name in printed.split() if CUDA.match(name)]


def brought_by(distribution: str, extra: str = "") -> set[str]:
    """The names of all that an install of the distribution brings, directly or not."""
    found: set[str] = set()
    pending = [(distribution, extra)]
    while pending:
        name, wanted = pending.pop()
        try:
            requirements = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:  # for another platform
            continue
        for one in requirements:
            if one.marker is None or one.marker.evaluate({"extra": wanted}):
                pending += [(one.name, each) for each in (*one.extras, "")] if one.name not in found else []
                found.add(one.name)
    return found


def test_the_plain_install_brings_nothing_of_cuda_and_the_extra_does() -> None:
    plain = brought_by("tinyvllm")
    assert {"numpy", "pydantic-core"} <= {name.replace("_", "-") for name in plain}
    assert not [name for name in plain if CUDA.match(name)]
    assert {"cuda-bindings", "nvidia-cuda-nvrtc"} <= brought_by("tinyvllm", "cuda")


def test_the_command_line_says_in_one_line_that_there_is_no_driver(capsys: pytest.CaptureFixture[str]) -> None:
    if probe().is_usable:
        pytest.skip("there is a card here")
    assert main(["generate", "12+7=", "--device", "cuda"]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: device cuda: .*(install|use device: cpu).*\n", printed.err)


@pytest.mark.parametrize(
    ("module", "load"),
    [
        ("cuda.bindings.driver", load_bindings),
        ("cuda.bindings.nvrtc", nvrtc_version),
        ("cuda.pathfinder", load_library),
        ("cupy", load_cupy),
    ],
)
def test_a_missing_package_is_an_error_that_names_the_extra(
    module: str, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # which makes its import fail
    with pytest.raises(DeviceError, match=r"device cuda.*pip install 'tinyvllm\[cuda\]'"):
        load()


def test_without_the_bindings_the_device_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(DeviceError, match="cuda-bindings is missing"):
        CudaDevice()


def test_the_probe_reports_what_is_missing_and_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cuda.bindings.driver", "cuda.bindings.nvrtc", "cuda.pathfinder", "cupy"):
        monkeypatch.setitem(sys.modules, module, None)
    found = probe()
    assert not found.is_usable
    assert found.device_name is found.nvrtc_version is found.cupy_version is found.cublaslt_version is None
    for missing in ("cuda-bindings", "NVRTC", "cupy", "cuBLASLt"):
        assert sum(missing in problem for problem in found.problems) == 1


def bindings(status: int = 0, num_cards: int = 1, capability: tuple[int, int] = (9, 0)) -> Any:
    """A stand-in for ``cuda.bindings.driver``."""
    attributes = {"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 0, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 1}
    return SimpleNamespace(
        cuInit=lambda flags: (status,),
        cuDriverGetVersion=lambda: (0, 13000),
        cuDeviceGetCount=lambda: (0, num_cards),
        cuDeviceGet=lambda ordinal: (0, ordinal),
        cuDeviceGetName=lambda size, device: (0, b"Fake V100\0\0"),
        cuDeviceGetAttribute=lambda index, device: (0, capability[index]),
        CUdevice_attribute=SimpleNamespace(**attributes),
        cuGetErrorName=lambda status: (0, b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        cuGetErrorString=lambda status: (0, b"driver mismatch"),
    )


def test_no_driver_library_is_an_error_that_says_so() -> None:
    def fail(flags: int) -> Any:
        raise RuntimeError("libcuda.so.1 not found")

    with pytest.raises(DeviceError, match=r"driver \(libcuda\) is missing .*libcuda.so.1.*device: cpu"):
        start(SimpleNamespace(cuInit=fail))


def test_a_driver_without_a_card_is_told_from_no_driver() -> None:
    with pytest.raises(DeviceError, match=r"finds no card.*CUDA_VISIBLE_DEVICES"):
        start(bindings(status=100))


def test_a_driver_that_does_not_start_gives_its_own_reason() -> None:
    with pytest.raises(DeviceError, match=r"would not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH \(driver mismatch\)"):
        start(bindings(status=803))


@pytest.mark.parametrize("ordinal", [-1, 2])
def test_a_card_that_does_not_exist_is_an_error_with_the_count(ordinal: int) -> None:
    with pytest.raises(DeviceError, match=rf"cuda:{ordinal}: there are 2 cards"):
        find_card(bindings(num_cards=2), ordinal)


def test_a_card_before_ampere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyvllm.devices.cuda.driver.load_bindings", lambda: bindings(capability=(7, 0)))
    with pytest.raises(DeviceError, match="Fake V100 is sm_70; the kernels need sm_80"):
        Driver(0)


@pytest.mark.parametrize("driver_version", [12000, 12090])
def test_a_driver_older_than_the_compiler_is_refused_with_both_versions(driver_version: int) -> None:
    with pytest.raises(DeviceError, match=r"CUDA 12\.\d, the installed NVRTC is 13\.1 and needs a driver for CUDA 13"):
        check_driver_version(driver_version, (13, 1))


def test_a_driver_of_the_same_major_version_serves_a_newer_compiler() -> None:
    check_driver_version(13000, (13, 5))
    check_driver_version(13010, (12, 9))
