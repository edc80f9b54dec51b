"""``device: emulator``: the CUDA sources compiled by the system's C++ compiler, run on the CPU, and checked."""

from tinyvllm.devices.emulator.build import Sanitizer
from tinyvllm.devices.emulator.device import EmulatorDevice

__all__ = ["EmulatorDevice", "Sanitizer"]
