"""Times the kernels of a decode step in the shape of Llama 3.2 1B, run by hand on a GPU::

    python -m tinyvllm.bench.device.decode_chain --rows 1 --variants

Random weights; every kernel streams the weights of its 16 layers in turn, 200 MB and more, so that no cache holds them.
Prints microseconds for each kernel in a graph of dependent launches, its bandwidth, and that of the whole chain.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from tinyvllm.bench.device.chain import KERNELS, LLAMA_1B, ChainShape, ChainWeights, DecodeChain
from tinyvllm.bench.device.launchers import Tiling, choose_tiling, rows_tier
from tinyvllm.device import Gpu, Graph
from tinyvllm.errors import TinyvllmError
from tinyvllm.start.devices import open_gpu

PEAK_BYTES_PER_S = 4.29e12  # a read-only stream on an H200
TINY = ChainShape(2, 192, 4, 2, 64, 64, 300)


def variants(rows: int, kernel: str) -> dict[str, Tiling]:
    """Tilings worth trying."""
    looped = (
        {"": None, " x2/SM": 2, " x3/SM": 3, " x4/SM": 4} if kernel in ("gate_up", "down", "lm_head") else {"": None}
    )
    found: dict[str, Tiling] = {}
    if rows == 1:
        for threads, blocks in ((256, 3), (384, 2), (512, 2), (768, 1)):
            for per_warp in (2, 4, 8):
                for num_stages in (2, 3, 4, 6, 8, 13):
                    tiling = Tiling(1, threads, blocks, rows_per_warp=per_warp, max_stages=num_stages, blocks_per_sm=1)
                    found[f"{threads} thr, {per_warp} rows, {num_stages} stages"] = tiling
    for suffix, per_sm in looped.items():
        batch_rows = max(8, rows_tier(rows))
        per_block = 1 if kernel == "lm_head" else per_sm
        for warps, per_warp, split, stage_k, blocks in (
            (1, 16, 1, 64, 1),
            (1, 16, 1, 64, 2),
            (2, 32, 1, 64, 2),
            (2, 16, 4, 128, 2),
            (4, 32, 4, 128, 2),
            (4, 16, 2, 256, 2),
            (8, 16, 1, 256, 2),
            (8, 16, 1, 512, 2),
        ):
            if split == 1 or kernel != "lm_head":
                name = (
                    f"mma{batch_rows} {warps} warps/row, {per_warp} rows, split {split}, stage {stage_k}, {blocks} min"
                )
                found[name + suffix] = Tiling(
                    batch_rows, min_blocks=blocks, warps_per_row=warps, rows_per_warp=per_warp, split=split,
                    stage_k=stage_k, blocks_per_sm=per_block,
                )  # fmt: skip
    return found


def _on_tensor_cores(shape: ChainShape, kernel: str) -> Tiling:
    num_outputs, size_k = shape.weights[kernel]
    return choose_tiling(size_k, 8, num_outputs=num_outputs, may_split=kernel != "lm_head")


def median_us(device: Gpu, graph: Graph, replays: int, rounds: int) -> float:
    """Median over ``rounds`` of the time of one replay, from queueing ``replays`` of them to the last one's end."""
    graph.replay()
    device.synchronize()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(replays):
            graph.replay()
        device.synchronize()
        times.append((time.perf_counter() - start) / replays)
    return statistics.median(times) * 1e6


def record(device: Gpu, launches: Sequence[Callable[[], None]]) -> Graph:
    """All launches in one graph; each is run once before, so that nothing is loaded while it is recorded."""
    for launch in launches:
        launch()
    device.synchronize()
    with device.capture() as graph:
        for launch in launches:
            launch()
    return graph


def kernel_us(device: Gpu, chain: DecodeChain, kernel: str, replays: int, rounds: int) -> float:
    """One launch of ``kernel`` in a graph of nothing else."""
    launches = [launch for name, launch in chain.launches() if name == kernel]
    launches *= max(1, 8 // len(launches))
    return median_us(device, record(device, launches), replays, rounds) / len(launches)


def bandwidth(num_bytes: int, microseconds: float) -> str:
    """In GB/s, and as a fraction of the peak."""
    rate = num_bytes / microseconds * 1e6
    return f"{rate / 1e9:7.0f} GB/s  {rate / PEAK_BYTES_PER_S:5.2f}"


def report_chain(device: Gpu, title: str, chain: DecodeChain, shape: ChainShape, options: argparse.Namespace) -> None:
    """Prints each kernel and the whole chain."""
    print(f"\n{title}")
    for kernel in KERNELS:
        time_us = kernel_us(device, chain, kernel, options.replays, options.rounds)
        print(f"  {kernel:10s} {time_us:8.2f} us  {bandwidth(shape.weight_bytes(kernel), time_us)}", flush=True)
    graph = record(device, [launch for _, launch in chain.launches()])
    total_us = median_us(device, graph, options.replays, options.rounds)
    per_layer = sum(shape.weight_bytes(kernel) for kernel in KERNELS if kernel != "lm_head")
    num_bytes = shape.num_layers * per_layer + shape.weight_bytes("lm_head")
    print(f"  {'chain':10s} {total_us:8.2f} us  {bandwidth(num_bytes, total_us)}", flush=True)


def best_of_variants(
    device: Gpu, weights: ChainWeights, kernel: str, options: argparse.Namespace
) -> tuple[str, Tiling]:
    """Times every variant of one kernel, prints them from best to worst, and returns the best."""
    shape, timed = weights.shape, []
    for name, tiling in variants(options.rows, kernel).items():
        try:
            chain = DecodeChain(device, weights, rows=options.rows, tilings={kernel: tiling}, pdl=not options.no_pdl)
            timed.append((kernel_us(device, chain, kernel, options.replays, options.rounds), name, tiling))
        except TinyvllmError as error:
            print(f"  {kernel} {name}: {str(error).splitlines()[0]}")
    timed.sort(key=lambda entry: entry[0])
    print(f"\n{kernel}")
    for time_us, name, _ in timed:
        print(f"  {time_us:8.2f} us  {bandwidth(shape.weight_bytes(kernel), time_us)}  {name}", flush=True)
    return timed[0][1], timed[0][2]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tinyvllm.bench.device.decode_chain", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "emulator"))
    parser.add_argument("--rows", type=int, default=1, help="sequences in the batch, up to 32")
    parser.add_argument("--variants", action="store_true", help="try every tiling of every kernel, then the best")
    parser.add_argument("--kernels", nargs="+", default=KERNELS, choices=KERNELS, help="those whose tilings to try")
    parser.add_argument("--no-pdl", action="store_true", help="ordinary launches")
    parser.add_argument("--replays", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tiny", action="store_true", help="a model of a few kilobytes: does the script run")
    options = parser.parse_args(arguments)
    device = open_gpu(options.device)
    shape = TINY if options.tiny else LLAMA_1B
    print(f"{device.properties.name}, {options.rows} rows, {shape}, pdl {not options.no_pdl}")
    weights = ChainWeights(device, shape)

    def chain(tilings: Mapping[str, Tiling]) -> DecodeChain:
        return DecodeChain(device, weights, rows=options.rows, tilings=tilings, pdl=not options.no_pdl)

    report_chain(device, "default tilings", chain({}), shape, options)
    if options.rows == 1:
        on_tensor_cores = {kernel: _on_tensor_cores(shape, kernel) for kernel in KERNELS}
        report_chain(device, "tensor cores for one row", chain(on_tensor_cores), shape, options)
    if options.variants:
        best = {kernel: best_of_variants(device, weights, kernel, options) for kernel in options.kernels}
        for kernel, (name, _) in best.items():
            print(f"best {kernel}: {name}")
        report_chain(
            device, "best tilings", chain({kernel: tiling for kernel, (_, tiling) in best.items()}), shape, options
        )


if __name__ == "__main__":
    main()
