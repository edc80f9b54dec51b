"""The page that shows the forward pass: its ops exist, in the order of the decoder, and its sizes are right."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from tinyvllm.models import blocks
from tinyvllm.models.decoder import Decoder
from tinyvllm.ops.catalogue import OPS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "forward.md").read_text(encoding="utf-8")
NUM_TOKENS, NUM_LOGITS_ROWS = 8192, 256


def test_every_op_of_the_picture_exists_and_is_made_of_the_parts_that_it_shows() -> None:
    picture = PAGE.split("```")[1]
    called = re.findall(r"^ +(?:for [^\n]*)?(\w+)\(", picture, re.MULTILINE)
    ops = [name for name in called if name in OPS]
    assert ops == ["embedding", "rms_norm_qkv_rope_append", "linear_residual", "rms_norm_gate_up_silu",
                   "linear_residual", "embedding", "rms_norm_lm_head"]  # fmt: skip
    parts_of = dict(re.findall(r"^ +(\w+)\([^\n]*\n +(?:[^\n]*?)= ([\w, ]+?)(?:  |$)", picture, re.MULTILINE))
    assert parts_of.keys() == set(ops) - {"embedding"}
    for name, parts in parts_of.items():
        assert OPS[name].parts == tuple(parts.strip().split(", ")), name


def test_the_tensors_are_those_of_the_decoder_and_its_parts() -> None:
    source = inspect.getsource(Decoder.__init__)
    for name in ("x", "rows", "logits"):
        assert f"self._{name} = alloc(" in source, name
    for name in ("query", "mixed", "active"):
        assert f'context.rows("{name}", ' in inspect.getsource(blocks), name


def test_the_sizes_are_those_of_the_shape() -> None:
    shape = json.loads((ROOT / "configs" / "llama-3.2-1b-shape" / "config.json").read_text())
    e, f, v = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    heads, kv_heads, d = shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]
    mib = {name: NUM_TOKENS * width * 2 / 2**20 for name, width in (
        ("x", e), ("query", heads * d), ("active", f), ("qkv", (heads + 2 * kv_heads) * d), ("gate_up", 2 * f)
    )}  # fmt: skip
    assert f"| `x` | `Decoder` | as long as the engine | {mib['x']:.0f} MiB |" in PAGE
    assert f"| {mib['query']:.0f} MiB each |" in PAGE
    assert f"| `active` | the MLP of `blocks.py` | shared by the layers | {mib['active']:.0f} MiB |" in PAGE
    assert f"{mib['x']:.0f}, {mib['qkv']:.0f}, {mib['x']:.0f} and {mib['gate_up']:.0f} MiB" in PAGE
    assert f"{NUM_LOGITS_ROWS * v * 4 / 2**20:.0f} MiB for {NUM_LOGITS_ROWS} rows" in PAGE
    assert f"{2 * shape['num_hidden_layers'] * kv_heads * d * 2 // 1024} KiB a token" in PAGE
