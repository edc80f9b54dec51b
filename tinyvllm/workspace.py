"""Where ops run and what they may keep: a device, the limits of a step, and memory between the parts of an op."""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt

from tinyvllm.device import Device, Gpu, Shape, Tensor


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What buffers are made for.

    Attributes:
        max_tokens: of a step.
        max_seqs: of a step.
        max_context_len: of a sequence.
        block_size: of the KV cache.
        max_logits_rows: rows whose logits are held at once.
        batch_invariant: a row's bits depend on its own sequence only.
    """

    max_tokens: int
    max_seqs: int
    max_context_len: int
    block_size: int
    max_logits_rows: int
    batch_invariant: bool


class Workspace:
    """A device, the limits of a step, and memory that lives as long as the engine. Made before the KV cache is sized.

    Args:
        device: where the ops run.
        limits: of a step.
    """

    def __init__(self, device: Device, limits: StepLimits) -> None:
        self.device, self.limits = device, limits
        self._buffers: dict[tuple[str, Shape, object], Tensor] = {}

    @property
    def gpu(self) -> Gpu:
        """The device, for what launches kernels and so runs nowhere else."""
        assert isinstance(self.device, Gpu), f"no kernel is launched on {self.device.name}"
        return self.device

    def buffer(self, name: str, shape: Shape, dtype: npt.DTypeLike | None = None) -> Tensor:
        """Memory between the parts of an op: the same for the same name, shape and dtype, whichever op asks.

        An op may keep nothing in it from one call to the next. Ask while binding, not in a call.

        Args:
            name: what is kept there.
            shape: its sizes.
            dtype: None: the device's ``activation_dtype``.
        """
        key = (name, shape, dtype)
        if key not in self._buffers:
            self._buffers[key] = self.device.memory.alloc(shape, dtype or self.device.activation_dtype)
        return self._buffers[key]
