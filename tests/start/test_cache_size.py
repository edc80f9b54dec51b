"""How large the KV cache is: what was asked for, never more than is useful, and a refusal where memory lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinyvllm import LLM, SamplingParams
from tinyvllm.config.schema import CacheConfig
from tinyvllm.errors import CapacityError
from tinyvllm.interfaces import PluginContext
from tinyvllm.shapes import ModelShape
from tinyvllm.start.cache_size import block_bytes, num_kv_blocks

SHAPE = ModelShape(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=64,
    vocab_size=259,
    max_position_embeddings=256,
)
BLOCK = block_bytes(SHAPE, 16, 4)


def num_blocks(free: int = 2**30, share: int = 2**30, **cache: Any) -> int:
    context = PluginContext(
        options=None,
        device="cpu",
        model=SHAPE,
        max_model_len=100,
        max_num_seqs=3,
        max_num_batched_tokens=64,
        block_size=16,
        batch_invariant=False,
        seed=0,
    )
    return num_kv_blocks(CacheConfig(**cache), context, 4, free_bytes=free, share_bytes=share)


def test_the_cache_is_as_large_as_is_useful_within_what_was_asked_for() -> None:
    assert BLOCK == 2 * 2 * 1 * 16 * 16 * 4
    assert num_blocks() == 3 * 7  # 100 tokens are 7 blocks
    assert num_blocks(share=5 * BLOCK + 1) == 5
    assert num_blocks(kv_bytes=5 * BLOCK + 1) == 5
    assert num_blocks(kv_bytes=2**29) == 3 * 7
    assert num_blocks(num_blocks_override=1000) == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": BLOCK - 1}, r"cache.gpu_memory_utilization is 0.9; raise it"),
        ({"share": -1}, r"cache.gpu_memory_utilization is 0.9; raise it"),
        (
            {"kv_bytes": BLOCK - 1},
            rf"block of 16 tokens takes {BLOCK} bytes.*kv_bytes is {BLOCK - 1}; raise it",
        ),
        (
            {"kv_bytes": 2**62, "free": BLOCK},
            r"kv_bytes is \d+, .* 21 take 0.0 GiB, and 0.0 GiB are free; lower it",
        ),
        (
            {"num_blocks_override": 2**31 - 1},
            r"override is 2147483647, .* take 8192.0 GiB, and 1.0 GiB are free",
        ),
    ],
    ids=str,
)
def test_a_cache_that_memory_does_not_hold_is_refused_with_the_numbers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CapacityError, match=message):
        num_blocks(**arguments)


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_bytes_of_the_configuration_size_the_cache_of_every_device(tiny_model: Path, device: str) -> None:
    element_bytes = 4 if device == "cpu" else 2
    llm = LLM(
        str(tiny_model),
        device=device,
        dtype="auto" if device == "cpu" else "bfloat16",
        load_format="dummy",
        cache={"kv_bytes": 3 * 2 * 16 * 16 * element_bytes},
        enforce_eager=True,
    )
    assert any("kv cache: 3 blocks of 16 tokens" in line for line in llm.report)
    assert len(llm.generate("ab", SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids) == 3
