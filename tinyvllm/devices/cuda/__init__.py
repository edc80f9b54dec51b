"""``device: cuda``: the kernels compiled by NVRTC for the card's own architecture and run on it.

Needs the extra ``tinyvllm[cuda]`` and an NVIDIA driver. Importing this package imports nothing of either; making a
``CudaDevice`` does, and raises one ``DeviceError`` that says what is missing.
"""

from __future__ import annotations

from tinyvllm.devices.cuda.device import CudaDevice
from tinyvllm.devices.cuda.facts import CudaProbe, find_driver, probe

__all__ = ["CudaDevice", "CudaProbe", "find_driver", "probe"]
