"""Graphs of steps that compute prompts, by size: a step's arrays are padded so that steps of about one size share one.

Kernel by kernel the host needs 2 ms for the layers of a 1B model, longer than a card for a short prompt, and the card
pauses between kernels; a graph is queued at once and has shorter pauses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tinyvllm.batch import Batch
from tinyvllm.device import Gpu, Graph
from tinyvllm.workspace import StepLimits

_SMALL_SIZES = (8, 16, 32)
_TOKEN_STEP = 64
_MAX_TOKENS = 2048
"""Above it the host is far ahead of the device, and padding would cost more than a graph saves."""
_MAX_KEPT = 64


@dataclass(frozen=True, slots=True)
class StepSize:
    """What decides which kernels a step queues, and how large.

    Attributes:
        num_tokens, num_sequences: with padding.
        has_decodes: whether some sequence computes one token.
    """

    num_tokens: int
    num_sequences: int
    has_decodes: bool

    @classmethod
    def of(cls, batch: Batch) -> StepSize:
        """Without padding."""
        num_tokens, num_sequences, ends = batch.num_tokens, batch.num_sequences, batch.cu_seqlens_q
        has_decodes = num_tokens == 1 if num_sequences == 1 else bool((ends[1:] - ends[:-1] == 1).any())
        return cls(num_tokens, num_sequences, has_decodes)


class PromptGraphs:
    """Graphs of the sizes that came most recently; one is recorded when its size comes for the second time.

    Args:
        device: where they run.
        limits: of a step.
    """

    def __init__(self, device: Gpu, limits: StepLimits) -> None:
        self._device = device
        most = min(limits.max_tokens, _MAX_TOKENS)
        self._token_sizes = _up_to(most, (*_SMALL_SIZES, *range(_TOKEN_STEP, most, _TOKEN_STEP)))
        self._sequence_sizes = _up_to(limits.max_seqs, (1 << i for i in range(limits.max_seqs.bit_length())))
        self._graphs: dict[StepSize, Graph | None] = {}  # the latest last; None: came once

    def padded(self, size: StepSize) -> StepSize | None:
        """The size of the graph for steps of that size; None: there is none for so many tokens."""
        i = bisect_left(self._token_sizes, size.num_tokens)
        if i == len(self._token_sizes):
            return None
        num_sequences = self._sequence_sizes[bisect_left(self._sequence_sizes, size.num_sequences)]
        return StepSize(self._token_sizes[i], num_sequences, size.has_decodes)

    def run(self, size: StepSize, queue: Callable[[], None]) -> None:
        """Queue what ``queue`` queues, as a graph if there is one.

        Args:
            size: with padding; the launches of ``queue`` and their arguments depend on it alone.
            queue: may be called twice. Launchers are made, and memory is allocated, in its first call.
        """
        is_known = size in self._graphs
        graph = self._graphs.pop(size, None)
        if graph is not None:
            graph.replay()
        else:
            queue()
            if is_known:
                with self._device.capture() as graph:  # while the device is at work
                    queue()
        self._graphs[size] = graph
        if len(self._graphs) > _MAX_KEPT:
            del self._graphs[next(iter(self._graphs))]


def _up_to(most: int, sizes: Iterable[int]) -> list[int]:
    return [*(size for size in sizes if size < most), most]
