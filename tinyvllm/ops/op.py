"""What an op is: a name, a signature, and a definition in NumPy or by other ops."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tinyvllm.interfaces import BindContext

BoundOp: TypeAlias = Callable[..., None]
"""An op that is ready to be called, with the op's signature."""


@dataclass(frozen=True, slots=True)
class Op:
    """One named operation.

    Attributes:
        name: what the configuration and the start-up report call it.
        summary: one line.
        declaration: the function that says what the op is called with; its docstring says what comes out. Of a simple
            op it is the definition.
        parts: names of the ops that a fused op is made of; empty for a simple one.
        compose: a fused op, made of what serves its parts; None for a simple one.
    """

    name: str
    summary: str
    declaration: BoundOp
    parts: tuple[str, ...] = ()
    compose: Callable[[BindContext], BoundOp] | None = None

    @property
    def is_fused(self) -> bool:
        """Whether the op is defined by other ops."""
        return self.compose is not None

    @property
    def definition(self) -> BoundOp | None:
        """A simple op over NumPy arrays; None for a fused one."""
        return None if self.is_fused else self.declaration

    @property
    def signature(self) -> inspect.Signature:
        """What it is called with."""
        return inspect.signature(self.declaration)

    def takes(self, kind: str) -> bool:
        """Whether an argument is annotated as ``kind``."""
        return any(parameter.annotation == kind for parameter in self.signature.parameters.values())


def simple(summary: str) -> Callable[[BoundOp], Op]:
    """Make an op of its definition in NumPy, which is called as any implementation is: outputs first."""
    return lambda declaration: Op(declaration.__name__, summary, declaration)


def fused(summary: str, parts: tuple[str, ...], compose: Callable[[BindContext], BoundOp]) -> Callable[[BoundOp], Op]:
    """Make an op of a function that only declares it, the names of its parts, and how it is made of them."""
    return lambda declaration: Op(declaration.__name__, summary, declaration, parts, compose)
