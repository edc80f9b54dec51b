"""Others that do the same work in turn with us, on the same weights, in the same process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tinyvllm.bench.peers.source import WeightSource
from tinyvllm.bench.workload import Job, heap_set_aside
from tinyvllm.device import Device
from tinyvllm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PeerTiming:
    """How one run of a peer went.

    Attributes:
        step_s: of a decode step of the whole batch.
        total_s: of everything, prompts included.
    """

    step_s: float
    total_s: float


class Peer(Protocol):
    """Generates as many tokens as each job asks for, greedily."""

    @property
    def name(self) -> str:
        """As given to ``--peer``."""
        ...

    def run(self, jobs: Sequence[Job]) -> PeerTiming:
        """Do all jobs in one batch. The first run of a shape may take long: it compiles."""
        ...


def _transformers(source: WeightSource, torch_device: str) -> Peer:
    from tinyvllm.bench.peers.transformers import TransformersPeer

    return TransformersPeer(source, torch_device=torch_device)


def _torch_loop(source: WeightSource, torch_device: str) -> Peer:
    try:
        from tinyvllm.bench.peers.torch_loop import TorchLoopPeer
    except ImportError as error:
        raise ConfigError(f"--peer torch-loop needs torch: {error}; pip install torch") from error
    return TorchLoopPeer(source, torch_device=torch_device)


PEERS: Mapping[str, Callable[[WeightSource, str], Peer]] = {
    "transformers": _transformers,
    "torch-loop": _torch_loop,
}


class PeerSeries:
    """One peer over the repetitions of a benchmark. What fails in it is remembered, and it is not asked again.

    Args:
        name: one of ``PEERS``.
        source: the weights.
        torch_device: ``cpu`` or ``cuda``.
    Raises:
        ConfigError: torch or transformers is not installed, or the peer does not know such models.
    """

    def __init__(self, name: str, source: WeightSource, *, torch_device: str) -> None:
        self.name = name
        self.error: str | None = None
        self._timings: list[PeerTiming] = []
        self._peer: Peer | None = None
        try:
            self._peer = PEERS[name](source, torch_device)
        except ConfigError:
            raise
        except Exception as error:  # a peer is not ours: whatever it raises must not end our own measurement
            self._failed(error)

    def run(self, jobs: Sequence[Job], *, is_warm_up: bool = False) -> None:
        """Once; a warm-up does not count."""
        if self._peer is None:
            return
        try:
            with heap_set_aside():
                timing = self._peer.run(jobs)
        except Exception as error:
            self._failed(error)
            return
        if not is_warm_up:
            self._timings.append(timing)

    def take(self) -> Sequence[PeerTiming]:
        """The runs since the last call; empty if it failed."""
        timings, self._timings = self._timings, []
        return [] if self.error else timings

    def _failed(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        self._peer = None


def torch_device_of(device: Device) -> str:
    """Where torch shall compute beside an engine on ``device``; the emulator is a CPU too."""
    return "cuda" if device.name == "cuda" else "cpu"
