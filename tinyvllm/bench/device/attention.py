"""Times the attention kernels alone in the shape of Llama 3.2 1B, run by hand on a GPU::

    python -m tinyvllm.bench.device.attention

Random queries, keys and values, blocks permuted. A graph holds one launch for each of 16 layers with caches of their
own, 0.5 GB and more together from 16 sequences on, so that no cache of the card holds them; fewer sequences are found
there in part, and their figures are no bandwidth. Prints microseconds of one launch; for decode bytes a second as a
fraction of what a copy on the card reaches in the same run, for prefill operations a second likewise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from tinyvllm.bench.device.launchers import AttentionDecode, AttentionPrefill, AttentionSizes, decode_bytes
from tinyvllm.bench.device.timing import time_us
from tinyvllm.bench.roofline import Machine, measure
from tinyvllm.device import Buffer, Gpu
from tinyvllm.start.devices import open_gpu
from tinyvllm.testing.case import Bench

BF16 = np.dtype(ml_dtypes.bfloat16)
NUM_LAYERS = 16


class Caches:
    """Caches of all layers and tables of permuted blocks, for so many sequences of so many tokens.

    Args:
        device: where they are.
        sizes: of the attention.
        batch: sequences.
        context_len: tokens of each, those of the step included.
        num_layers: caches.
    """

    def __init__(self, device: Gpu, sizes: AttentionSizes, batch: int, context_len: int, num_layers: int) -> None:
        rng, put = np.random.default_rng(0), Bench(device).put
        num_blocks = -(-context_len // sizes.block_size)
        shape = (batch * num_blocks, sizes.num_kv_heads, sizes.block_size, sizes.head_dim)
        values = rng.standard_normal(1 << 20, np.float32).astype(BF16)
        random = np.resize(values, shape)
        self.layers = [(put(random), put(random)) for _ in range(num_layers)]
        tables = np.zeros((batch, -(-sizes.max_context_len // sizes.block_size)), np.int32)
        tables[:, :num_blocks] = rng.permutation(batch * num_blocks).reshape(batch, num_blocks)
        self.tables = put(tables)
        self.context_lens = put(np.full(batch, context_len, np.int32))


def queries(device: Gpu, sizes: AttentionSizes, num_tokens: int) -> tuple[Buffer, Buffer]:
    """Rows out, and random queries."""
    shape = (num_tokens, sizes.num_heads, sizes.head_dim)
    random = np.random.default_rng(1).standard_normal(shape, np.float32).astype(BF16)
    return device.memory.alloc(shape, BF16), Bench(device).put(random)


def decode_us(device: Gpu, sizes: AttentionSizes, batch: int, context_len: int, options: argparse.Namespace) -> float:
    """One launch, one token a sequence."""
    caches = Caches(device, sizes, batch, context_len, options.num_layers)
    out, query = queries(device, sizes, batch)
    attend = AttentionDecode(device, sizes=sizes)

    def layers() -> None:
        for i, (keys, values) in enumerate(caches.layers):
            attend(out, query, keys, values, caches.tables, caches.context_lens, is_plan_older=i > 0)

    return time_us(device, layers, options.repeats) / len(caches.layers)


def prefill_us(device: Gpu, sizes: AttentionSizes, num_tokens: int, options: argparse.Namespace) -> float:
    """One launch, one whole prompt."""
    caches = Caches(device, sizes, 1, num_tokens, options.num_layers)
    out, query = queries(device, sizes, num_tokens)
    attend = AttentionPrefill(device, sizes=sizes)
    cu_seqlens_q = Bench(device).put(np.array([0, num_tokens], np.int32))

    def layers() -> None:
        for i, (keys, values) in enumerate(caches.layers):
            attend(out, query, keys, values, caches.tables, caches.context_lens, cu_seqlens_q, is_plan_older=i > 0)

    return time_us(device, layers, options.repeats) / len(caches.layers)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tinyvllm.bench.device.attention", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "emulator"))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--context-len", type=int, nargs="+", default=[1024])
    parser.add_argument("--prefill", type=int, nargs="*", default=[1024, 4096], help="tokens of a prompt")
    parser.add_argument("--heads", type=int, nargs=3, default=[32, 8, 64], help="query heads, KV heads, head size")
    parser.add_argument("--num-layers", type=int, default=NUM_LAYERS)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    device = open_gpu(options.device, batch_invariant=options.batch_invariant)
    machine = measure(device) if hasattr(device, "time_us") else Machine(1.0, 1.0, "emulator")
    print(
        f"{device.properties.name}: copy {machine.bandwidth / 1e12:.2f} TB/s, "
        f"matrix {machine.matrix_rate / 1e12:.0f} TFLOP/s"
    )

    num_heads, num_kv_heads, head_dim = options.heads

    def sizes(batch: int, context_len: int) -> AttentionSizes:
        return AttentionSizes(
            num_heads, num_kv_heads, head_dim, options.block_size, batch, context_len,
            batch_invariant=options.batch_invariant,
        )  # fmt: skip

    for context_len in options.context_len:
        for batch in options.batch_size:
            each = sizes(batch, context_len)
            us = decode_us(device, each, batch, context_len, options)
            rate = 1e6 * decode_bytes(each, [context_len] * batch) / us
            print(
                f"decode {batch:4d} x {context_len:6d}  {us:9.2f} us  {rate / 1e12:6.2f} TB/s  "
                f"{rate / machine.bandwidth:5.2f} of the copy's bandwidth",
                flush=True,
            )
    for num_tokens in options.prefill:
        us = prefill_us(device, sizes(1, num_tokens), num_tokens, options)
        rate = 1e6 * 2.0 * num_heads * head_dim * num_tokens**2 / us  # causal: half of 4 H D T^2
        print(
            f"prefill    1 x {num_tokens:6d}  {us:9.2f} us  {rate / 1e12:6.1f} TFLOP/s  "
            f"{rate / machine.matrix_rate:5.2f} of the matrix rate",
            flush=True,
        )


if __name__ == "__main__":
    main()
