"""Tells which kernel of a decode step costs what, run by hand on a GPU::

    python -m tinyvllm.bench.device.decode_step --batch-size 1 32 128 256

Drives the engine to a step in which every sequence decodes, writes down every launch and matrix product of that step
with its arguments, and times them again by kernel: a graph with all launches of that name, in order, with the weights
and caches of all layers. So it shows what the engine really launches, whatever the model is made of. Launches overlap
in the engine (programmatic dependent launch), so the sum is not the step: that is timed as one graph, last.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tinyvllm.bench.device.timing import time_us
from tinyvllm.bench.workload import uniform_jobs
from tinyvllm.device import Buffer, Gpu, TensorMap
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams

_MARGIN = 256
"""Positions kept free: kernels that advance the device's own state do so at every repetition."""
_COUNTS_STEPS = "host_ring"
"""Not timed: the engine could not go on after copies that it does not know of."""
_STREAM_NO_MATRIX = ("embedding", "rms_norm", "rope_append", "silu_mul")


@dataclass(frozen=True, slots=True)
class Call:
    """A launch or product, by kernel and shape of its weight, and how to do it again.

    ``weight_bytes`` is 0 where there is no weight.
    """

    name: str
    weight_bytes: int
    again: Callable[[], None]


@dataclass(slots=True)
class Recording:
    """Every launch and product of a stretch of work, passed on as it is written down."""

    device: Any
    calls: list[Call] = field(default_factory=list)

    def __enter__(self) -> Recording:
        launch, gemm = self.device.launch, self.device.gemm

        def recorded_launch(function: Any, grid: Any, block: Any, arguments: Any, **options: Any) -> None:
            call = partial(launch, function, grid, block, arguments, **options)
            if function.name != _COUNTS_STEPS:
                self._add(function.name, _weight(function.name, arguments), call)
            call()

        def recorded_gemm(out: Any, x: Any, weight: Any, **options: Any) -> None:
            call = partial(gemm, out, x, weight, **options)
            self._add("gemm", weight, call)
            call()

        self.device.launch, self.device.gemm = recorded_launch, recorded_gemm
        return self

    def __exit__(self, *_: object) -> None:
        del self.device.launch, self.device.gemm

    def _add(self, name: str, weight: Buffer | None, call: Callable[[], None]) -> None:
        if weight is None:
            self.calls.append(Call(name, 0, call))
        else:
            rows, columns = weight.shape
            self.calls.append(Call(f"{name} {rows} x {columns}", weight.nbytes, call))


def decode_step(llm: LLM, batch: int, context_len: int, temperature: float) -> Recording:
    """The launches of one step in which ``batch`` sequences decode at about ``context_len``."""
    engine = llm.engine
    for i, job in enumerate(uniform_jobs(llm.shape.vocab_size, batch, context_len, _MARGIN, seed=0)):
        params = SamplingParams(
            temperature=temperature, max_tokens=job.num_output, ignore_eos=True, detokenize=False, seed=i
        )
        engine.add_request(f"step-{batch}-{i}", {"prompt_token_ids": job.prompt}, params, stream=False)
    before, full = engine.stats().num_generation_tokens, 0
    while full < 3:  # the first full step still computed prompts; one step may be in flight
        engine.step()
        now = engine.stats().num_generation_tokens
        full, before = full + (now - before == batch), now
    assert llm.device is not None
    llm.device.synchronize()
    with Recording(llm.device) as recording:
        engine.step()
        llm.device.synchronize()
    return recording


def report(device: Gpu, recording: Recording, repeats: int) -> None:
    """A line a kernel, dearest first; then all of it in one graph."""

    def of(name: str | None) -> Callable[[], None]:
        chosen = [call.again for call in recording.calls if name in (None, call.name)]

        def work() -> None:
            for again in chosen:
                again()

        return work

    names = list(dict.fromkeys(call.name for call in recording.calls))
    # Anything that advances the device's state last, so that the others are timed where the engine was.
    names.sort(key=lambda name: "advance" in name)
    times = {name: time_us(device, of(name), repeats) for name in names}
    total = sum(times.values())
    for name, us in sorted(times.items(), key=lambda each: -each[1]):
        count = sum(call.name == name for call in recording.calls)
        num_bytes = sum(call.weight_bytes for call in recording.calls if call.name == name)
        rate = f"  weights at {num_bytes / us / 1e6:5.2f} TB/s" if num_bytes else ""
        print(f"  {name:32s} {count:4d} x {us / count:8.2f} us = {us:9.1f} us  {us / total:6.1%}{rate}", flush=True)
    print(f"  {'sum':32s} {len(recording.calls):4d} {'':15s} {total:9.1f} us")
    print(f"  {'all in one graph':32s} {'':20s} {time_us(device, of(None), repeats):9.1f} us", flush=True)


def _weight(name: str, arguments: Sequence[Any]) -> Buffer | None:
    """The matrix that a kernel streams: its largest argument of two dimensions in bfloat16."""
    if name in _STREAM_NO_MATRIX:
        return None
    given = [each.matrix if isinstance(each, TensorMap) else each for each in arguments]
    buffers = [each for each in given if isinstance(each, Buffer) and each.dtype.itemsize == 2]
    return max((each for each in buffers if len(each.shape) == 2), key=lambda each: each.nbytes, default=None)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tinyvllm.bench.device.decode_step", description=__doc__)
    parser.add_argument("--model", default="configs/llama-3.2-1b-shape")
    parser.add_argument("--device", default="cuda", choices=("cuda", "emulator"))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32, 128, 256])
    parser.add_argument("--context-len", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-num-batched-tokens", type=int, default=16384)
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    llm = LLM(
        options.model,
        skip_tokenizer_init=True,
        device=options.device,
        dtype="bfloat16",
        max_model_len=options.context_len + 2 * _MARGIN,
        load_format="dummy",
        batch_invariant=options.batch_invariant,
        enforce_eager=True,  # so that every launch passes by
        scheduler={"max_num_seqs": max(options.batch_size), "max_num_batched_tokens": options.max_num_batched_tokens},
    )
    assert isinstance(llm.device, Gpu)
    for batch in options.batch_size:
        print(f"{llm.device.properties.name}, {batch} sequences at context {options.context_len}")
        report(llm.device, decode_step(llm, batch, options.context_len, options.temperature), options.repeats)
        for i in range(batch):
            llm.engine.abort_request(f"step-{batch}-{i}")
        while llm.engine.has_unfinished_requests():
            llm.engine.step()


if __name__ == "__main__":
    main()
