"""Which device an engine runs on."""

from __future__ import annotations

from dataclasses import dataclass

from tinyvllm.device import Device, Gpu
from tinyvllm.devices.cpu import CpuDevice
from tinyvllm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The device's name and why it was chosen."""

    name: str
    reason: str


def choose_device(wanted: str) -> DeviceChoice:
    """What ``device:`` means here. ``auto`` is the GPU if there is a usable one, else the CPU.

    Raises:
        DeviceError: it is not available, saying what is missing.
    """
    if wanted != "auto":
        return DeviceChoice(wanted, "named in the configuration")
    from tinyvllm.devices.cuda import find_driver, probe

    if find_driver() is None:  # no extra of ours would help
        return DeviceChoice("cpu", "auto: no NVIDIA driver here")
    found = probe()
    if found.is_usable:
        return DeviceChoice("cuda", f"auto: {found.device_name}")
    missing = found.problems[0] if found.problems else "no CUDA device"
    return DeviceChoice("cpu", f"auto: {missing}")


def open_device(name: str, *, batch_invariant: bool) -> Device:
    """The CPU, the emulator, or the first GPU.

    Raises:
        DeviceError: what is missing, and how to install it.
    """
    if name == "cpu":
        return CpuDevice()
    if name == "emulator":
        from tinyvllm.devices.emulator.device import EmulatorDevice

        return EmulatorDevice()
    from tinyvllm.devices.cuda import CudaDevice

    return CudaDevice(batch_invariant=batch_invariant)


def open_gpu(name: str, *, batch_invariant: bool = False) -> Gpu:
    """The emulator, or the first GPU, for a command that launches kernels itself.

    Raises:
        ConfigError: the device launches no kernels.
        DeviceError: what is missing, and how to install it.
    """
    device = open_device(name, batch_invariant=batch_invariant)
    if not isinstance(device, Gpu):
        raise ConfigError(f"device {name} launches no kernels; use emulator or cuda")
    return device
