"""The sampler ``recorder``: greedy, and writes down every row of logits that it is shown.

A local plugin (``plugins: [tinyvllm.bench.peers.recorder]``), so that logits are compared as they come out of the
engine, through the socket that anybody's sampler uses. A row is known by its seed, which the caller chooses, and the
position that its token will have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinyvllm.batch import SampleCall, Sampled
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import HostSampler, Options, Plugin, PluginContext
from tinyvllm.shapes import Float32

NAME = "recorder"


class RecorderOptions(Options):
    """Where to write."""

    folder: str


class Recorder:
    """Chooses the most likely token and saves ``folder/<seed>-<position>.npy``, ``[V]`` float32, for each row."""

    def __init__(self, context: PluginContext) -> None:
        """The folder must exist."""
        self._folder = Path(context.options.folder)

    def sample(self, call: SampleCall) -> Sampled:
        """One token a row, whatever the row asks for."""
        logits: Float32 = np.asarray(call.logits, np.float32)
        for row, seed, position in zip(logits, call.rows.seed.tolist(), call.rows.position.tolist(), strict=True):
            np.save(_path(self._folder, seed, position), row)
        return Sampled(logits.argmax(axis=-1).astype(np.int32))


def take_recorded(folder: Path, seed: int, positions: range) -> Float32:
    """The logits of some positions of one request, ``[len(positions), V]``; they are gone from the folder then.

    Raises:
        FileNotFoundError: the sampler never saw one of them.
    """
    paths = [_path(folder, seed, position) for position in positions]
    rows = np.stack([np.load(path) for path in paths])
    for path in paths:
        path.unlink()
    return rows


def _path(folder: Path, seed: int, position: int) -> Path:
    return folder / f"{seed}-{position}.npy"


@hookimpl
def register_samplers() -> list[Plugin[HostSampler]]:
    """The plugin ``recorder``."""
    return [Plugin(NAME, Recorder, RecorderOptions, description="greedy; writes every row of logits to a folder")]
