"""What a case is drawn from: sizes, a step's sequences, options and a seed. Everything else follows from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tinyvllm.errors import ConfigError
from tinyvllm.shapes import ModelShape

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

MAX_CONTEXT = 384
MAX_TOKENS = 72
MAX_SEQUENCES = 40
MAX_LOGITS_ROWS = 24
"""Below ``MAX_SEQUENCES``, so that more rows are chosen for than logits are held of."""

MODELS = tuple(
    ModelShape(1, e, h, k, d, f, v, MAX_CONTEXT)
    for e, h, k, d, f, v in (
        # Below a vector for each lane; the demo's; ragged; seven heads of one; large; odd.
        (40, 2, 1, 16, 24, 61),
        (192, 4, 2, 64, 512, 4096),
        (1096, 6, 2, 80, 264, 300),
        (104, 7, 1, 96, 64, 1000),
        (256, 8, 1, 128, 128, 5000),
        (72, 6, 3, 32, 40, 17),
    )
)
BLOCK_SIZES = (8, 16, 32, 64)

_STEPS = (
    # Few rows go to kernels made for 1, 8, 16 or 32 of them, more to matrix products.
    (1,), (1, 1), (1,) * 7, (1,) * 8, (1,) * 9, (1,) * 17, (1,) * 33, (1,) * 40,
    (2,), (5, 1, 3), (1, 20), (17,), (1, 1, 30, 1), (40, 2), (64, 1, 1, 1),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parameters:
    """One case.

    Attributes:
        model: the sizes.
        num_tokens: tokens that each sequence computes.
        num_known: tokens of each that are in the cache before the step.
        num_padding: rows without a sequence at the end, as a step in a graph has them.
        block_size: of the cache.
        batch_invariant: as an engine may ask for it.
        has_bias: linear layers have one, where the op takes one.
        has_qk_norm: heads of queries and keys have norms, where the op takes them.
        sliding_window: of attention.
        seed: of all values.
        max_context: longest sequence that tables are made for.
        max_logits_rows: rows whose logits are held at once.
    """

    model: ModelShape
    num_tokens: tuple[int, ...]
    num_known: tuple[int, ...]
    num_padding: int = 0
    block_size: int = 16
    batch_invariant: bool = False
    has_bias: bool = False
    has_qk_norm: bool = False
    sliding_window: int | None = None
    seed: int = 0
    max_context: int = MAX_CONTEXT
    max_logits_rows: int = MAX_LOGITS_ROWS

    def __str__(self) -> str:
        """Sizes by their letters, and what is not as usual."""
        m = self.model
        sizes = (
            f"E={m.hidden_size} H={m.num_heads} K={m.num_kv_heads} D={m.head_dim} F={m.intermediate_size} "
            f"V={m.vocab_size} num_tokens={list(self.num_tokens)} num_known={list(self.num_known)}"
        )
        usual = Parameters(m, self.num_tokens, self.num_known)
        others = (each.name for each in fields(self) if each.name != "model")
        return " ".join(
            [
                sizes,
                *(f"{name}={getattr(self, name)}" for name in others if getattr(self, name) != getattr(usual, name)),
            ]
        )

    @property
    def num_rows(self) -> int:
        """``T``, padding included."""
        return sum(self.num_tokens) + self.num_padding

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computes one token."""
        return max(self.num_tokens) == 1


def drawn() -> SearchStrategy[Parameters]:
    """A hypothesis strategy for parameters.

    Raises:
        ConfigError: hypothesis is not installed; names the extra.
    """
    st = strategies()

    def with_contexts(step: tuple[int, ...]) -> Any:
        most = MAX_CONTEXT - max(step)
        known = st.tuples(*(st.integers(0, most) | st.integers(0, 2) for _ in step))
        return st.builds(
            Parameters,
            model=st.sampled_from(MODELS),
            num_tokens=st.just(step),
            num_known=known,
            num_padding=st.sampled_from((0, 2)) if max(step) == 1 and len(step) <= MAX_SEQUENCES - 2 else st.just(0),
            block_size=st.sampled_from(BLOCK_SIZES),
            batch_invariant=st.booleans(),
            has_bias=st.booleans(),
            has_qk_norm=st.booleans(),
            sliding_window=st.sampled_from((None, None, 5, 100)),
            seed=st.integers(0, 2**32 - 1),
        )

    found: SearchStrategy[Parameters] = st.sampled_from(_STEPS).flatmap(with_contexts)
    return found


def strategies() -> Any:
    """``hypothesis.strategies``.

    Raises:
        ConfigError: it is not installed; names the extra.
    """
    try:
        from hypothesis import strategies as found
    except ImportError as error:
        raise ConfigError(
            f"the property tests need hypothesis ({error}): python -m pip install 'tinyvllm[test]'"
        ) from error
    return found
