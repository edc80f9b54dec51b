"""All ops, by name.

Models call the *largest* op; where nothing implements it whole, its composition runs through the same table, on every
device.
"""

from __future__ import annotations

from collections.abc import Mapping

from tinyvllm.ops import fused, simple
from tinyvllm.ops.op import Op

OPS: Mapping[str, Op] = {
    op.name: op for module in (simple, fused) for op in vars(module).values() if isinstance(op, Op)
}


def parts_of(name: str) -> list[str]:
    """Every op that a fused op is made of, and what those are made of."""
    return [inner for part in OPS[name].parts for inner in (part, *parts_of(part))]


def applies_linear(name: str) -> bool:
    """Whether an op applies a linear layer, itself or in one of its parts."""
    return OPS[name].takes("Linear") or any(applies_linear(part) for part in OPS[name].parts)


def splits_heads(name: str) -> bool:
    """Whether an op splits its rows into heads."""
    return OPS[name].takes("AttentionProjection")
