"""The operations that models call, each with its definition.

A simple op is defined in NumPy; a fused op by how it is composed of simpler ones. Models call the *largest* op; where
nothing implements it whole, its composition runs through the same table, on every device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tinyvllm.interfaces import BindContext
from tinyvllm.ops import compositions, definitions
from tinyvllm.ops.compositions import BoundOp
from tinyvllm.ops.signatures import Ops


@dataclass(frozen=True, slots=True)
class Op:
    """One named operation.

    Attributes:
        name: what the configuration and the start-up report call it.
        summary: one line.
        definition: in NumPy, of a simple op; None for a fused one.
        parts: names of the ops that a fused op is made of; empty for a simple one.
        compose: the fused op, made of what serves its parts.
        applies_linear: whether it applies a linear layer, which then decides who serves it.
        splits_heads: whether it splits rows into heads, which then decide too.
    """

    name: str
    summary: str
    definition: BoundOp | None = None
    parts: tuple[str, ...] = ()
    compose: Callable[[BindContext], BoundOp] | None = None
    applies_linear: bool = False
    splits_heads: bool = False

    @property
    def is_fused(self) -> bool:
        """Whether the op is defined by other ops."""
        return self.compose is not None

    @property
    def signature(self) -> inspect.Signature:
        """What it is called with."""
        signature = inspect.signature(getattr(Ops, self.name))
        return signature.replace(parameters=list(signature.parameters.values())[1:])  # without self


OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        Op("embedding", "token ids to rows of the embedding table", definitions.embedding),
        Op("rms_norm", "root-mean-square normalisation of rows", definitions.rms_norm),
        Op("linear", "x W + b", definitions.linear, applies_linear=True),
        Op("add", "residual + x", definitions.add),
        Op(
            "rope_append",
            "head norms, rotation, and the append to the cache",
            definitions.rope_append,
            splits_heads=True,
        ),
        Op("silu_mul", "silu(gate) * up", definitions.silu_mul),
        Op("gelu_mul", "gelu(gate) * up, by the hyperbolic tangent", definitions.gelu_mul),
        Op("scale", "x * factor", definitions.scale),
        Op("norm_columns", "root-mean-square normalisation of some columns", definitions.norm_columns),
        Op("lm_head", "logits of normalised rows", definitions.linear, applies_linear=True),
        Op("argmax", "the most likely token of each row", definitions.argmax),
        Op(
            "rms_norm_qkv_rope_append",
            "everything of a layer before attention",
            parts=("rms_norm", "linear", "rope_append"),
            compose=compositions.compose_qkv,
            applies_linear=True,
            splits_heads=True,
        ),
        Op(
            "linear_residual",
            "residual + x W + b",
            parts=("linear", "add"),
            compose=compositions.compose_linear_residual,
            applies_linear=True,
        ),
        Op(
            "rms_norm_gate_up_silu",
            "the first half of the MLP",
            parts=("rms_norm", "linear", "silu_mul"),
            compose=compositions.compose_gate_up,
            applies_linear=True,
        ),
        Op(
            "rms_norm_lm_head",
            "final norm and logits",
            parts=("rms_norm", "lm_head"),
            compose=compositions.compose_lm_head,
            applies_linear=True,
        ),
        Op(
            "lm_head_argmax",
            "final norm and the most likely token",
            parts=("rms_norm_lm_head", "argmax"),
            compose=compositions.compose_lm_head_argmax,
            applies_linear=True,
        ),
    )
}


def parts_of(name: str) -> list[str]:
    """Every op that a fused op is made of, and what those are made of."""
    return [inner for part in OPS[name].parts for inner in (part, *parts_of(part))]
