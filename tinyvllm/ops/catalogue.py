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
    """

    name: str
    summary: str
    definition: BoundOp | None = None
    parts: tuple[str, ...] = ()
    compose: Callable[[BindContext], BoundOp] | None = None

    @property
    def is_fused(self) -> bool:
        """Whether the op is defined by other ops."""
        return self.compose is not None

    @property
    def signature(self) -> inspect.Signature:
        """What it is called with."""
        signature = inspect.signature(getattr(Ops, self.name))
        return signature.replace(parameters=list(signature.parameters.values())[1:])  # without self

    @property
    def applies_linear(self) -> bool:
        """Whether the op applies a linear layer, itself or in one of its parts."""
        return self._takes("Linear") or any(OPS[part].applies_linear for part in self.parts)

    @property
    def splits_heads(self) -> bool:
        """Whether the op splits its rows into heads."""
        return self._takes("AttentionProjection")

    def _takes(self, kind: str) -> bool:
        return any(parameter.annotation == kind for parameter in self.signature.parameters.values())


OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        Op("embedding", "token ids to rows of the embedding table", definitions.embedding),
        Op("rms_norm", "root-mean-square normalisation of rows", definitions.rms_norm),
        Op("linear", "x W + b", definitions.linear),
        Op("add", "residual + x", definitions.add),
        Op("rope_append", "head norms, rotation, and the append to the cache", definitions.rope_append),
        Op("silu_mul", "silu(gate) * up", definitions.silu_mul),
        Op("lm_head", "logits of normalised rows", definitions.linear),
        Op("argmax", "the most likely token of each row", definitions.argmax),
        Op(
            "rms_norm_qkv_rope_append",
            "everything of a layer before attention",
            parts=("rms_norm", "linear", "rope_append"),
            compose=compositions.compose_qkv,
        ),
        Op(
            "linear_residual",
            "residual + x W + b",
            parts=("linear", "add"),
            compose=compositions.compose_linear_residual,
        ),
        Op(
            "rms_norm_gate_up_silu",
            "the first half of the MLP",
            parts=("rms_norm", "linear", "silu_mul"),
            compose=compositions.compose_gate_up,
        ),
        Op(
            "rms_norm_lm_head",
            "final norm and logits",
            parts=("rms_norm", "lm_head"),
            compose=compositions.compose_lm_head,
        ),
        Op(
            "lm_head_argmax",
            "final norm and the most likely token",
            parts=("rms_norm_lm_head", "argmax"),
            compose=compositions.compose_lm_head_argmax,
        ),
    )
}


def parts_of(name: str) -> list[str]:
    """Every op that a fused op is made of, and what those are made of."""
    return [inner for part in OPS[name].parts for inner in (part, *parts_of(part))]
