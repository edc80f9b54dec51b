"""Times drawing a token a row on the device, run by hand on a GPU::

    python -m tinyvllm.bench.device.sampling

Logits are normal with the deviation ``--sigma``: 0.9 is what random weights give, where top_p keeps most of the
vocabulary; 4 is as peaked as a trained model's. A graph holds a call for each of several positions, so that rows are
drawn anew each time; the logits are the same, as a step finds in L2 what the step has just written. Prints microseconds
of one call, and of the part that it adds to drawing from the whole vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyvllm.bench.device.launchers import Logprobs, Sample
from tinyvllm.bench.device.timing import time_us
from tinyvllm.device import Gpu
from tinyvllm.slots import LogprobBuffers, SampledBuffers, SlotParameters
from tinyvllm.start.devices import open_gpu
from tinyvllm.testing.case import Bench
from tinyvllm.testing.sampling_rows import rows_of

CUTS: dict[str, dict[str, Any]] = {
    "none": {},
    "top_p 0.9": {"top_p": 0.9},
    "top_p 0.5": {"top_p": 0.5},
    "top_k 50": {"top_k": 50},
    "top_k 50 top_p 0.9": {"top_k": 50, "top_p": 0.9},
    "min_p 0.05": {"min_p": 0.05},
}


class Rows:
    """Logits of so many rows, and what is needed to draw from them at several positions."""

    def __init__(self, device: Gpu, num_rows: int, sigma: float, options: argparse.Namespace) -> None:
        rng, put = np.random.default_rng(num_rows), Bench(device).put
        logits = rng.standard_normal((num_rows, options.vocab_size), np.float32) * np.float32(sigma)
        self.device, self.num_rows, self.options = device, num_rows, options
        self.logits = put(logits)
        self.slots = put(np.arange(num_rows, dtype=np.int32))
        self.positions = [put(np.arange(i, i + num_rows, dtype=np.int32)) for i in range(0, options.calls * 1000, 1000)]
        self.columns = SlotParameters(device, num_rows)
        self.sample = Sample(device, vocab_size=options.vocab_size, max_rows=num_rows)
        self.out = SampledBuffers.allocate(device, num_rows)

    def sample_us(self, cut: dict[str, Any]) -> float:
        """One call."""
        rows = rows_of(self.num_rows, temperature=self.options.temperature, seed=1, **cut)
        self.columns.write(np.arange(self.num_rows, dtype=np.int32), rows)
        self.columns.upload()

        def work() -> None:
            for positions in self.positions:
                self.sample(self.out, self.logits, self.columns, self.slots, positions, may_cut=bool(cut))

        return time_us(self.device, work, self.options.repeats) / len(self.positions)

    def logprobs_us(self, num_listed: int) -> float:
        """One call."""
        self.columns.write(np.arange(self.num_rows, dtype=np.int32), rows_of(self.num_rows, num_logprobs=num_listed))
        self.columns.upload()
        logprobs = Logprobs(self.device, vocab_size=self.options.vocab_size)
        out = LogprobBuffers.allocate(self.device, self.num_rows, num_listed)

        def work() -> None:
            for _ in self.positions:
                logprobs(out, self.logits, self.out.token_ids, self.slots, self.columns.num_logprobs)

        return time_us(self.device, work, self.options.repeats) / len(self.positions)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tinyvllm.bench.device.sampling", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "emulator"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.9, 4.0])
    parser.add_argument("--vocab-size", type=int, default=128_256)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--calls", type=int, default=8, help="positions in turn")
    parser.add_argument("--logprobs", type=int, nargs="*", default=[0, 20], help="tokens listed")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    device = open_gpu(options.device)
    print(f"{device.properties.name}: vocabulary {options.vocab_size}, temperature {options.temperature}")
    for num_rows in options.rows:
        for sigma in options.sigma:
            bench = Rows(device, num_rows, sigma, options)
            times = {name: bench.sample_us(cut) for name, cut in CUTS.items()}
            times |= {f"logprobs {k}": bench.logprobs_us(k) for k in options.logprobs}
            columns = "  ".join(f"{name}: {us:7.1f}" for name, us in times.items())
            print(f"{num_rows:4d} rows, sigma {sigma:3.1f}, us:  {columns}", flush=True)


if __name__ == "__main__":
    main()
