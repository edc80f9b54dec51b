"""The arrays of a step on the CPU: they are where the model is already."""

from __future__ import annotations

import numpy as np

from tinyvllm.batch import BatchTensors
from tinyvllm.interfaces import BoundAttention
from tinyvllm.runner.inputs import SampledRows, StepTensors
from tinyvllm.shapes import Int32
from tinyvllm.step import Step


class HostInputs:
    """Shows the engine's own arrays to the model, read-only: plugins see them.

    Args:
        attention: asked for its host plan in each step.
    """

    def __init__(self, attention: BoundAttention) -> None:
        self._attention = attention

    def upload(self, step: Step) -> StepTensors:
        """The arrays of a step."""
        batch = step.batch.read_only()
        tensors = BatchTensors(
            batch.token_ids, batch.positions, batch.slot_mapping, batch.context_lens, batch.block_tables,
            batch.cu_seqlens_q,
        )  # fmt: skip
        # A step that samples every one of its tokens needs no row gathered.
        rows = None if len(step.sampled) == batch.num_tokens else step.sampled_rows
        positions = np.zeros(0, np.int32) if step.sampling is None else step.sampling.position
        return StepTensors(tensors, SampledRows(rows, step.slots, positions), self._attention.host_plan(batch))

    def upload_rows(self, indices: Int32) -> Int32:
        """Indices of rows."""
        return indices
