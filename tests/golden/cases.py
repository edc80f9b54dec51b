"""The committed cases: which checkpoints there are and what transformers answered on each. Knows nothing of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
NUM_STEPS = 64  # greedy tokens continued after each prompt


@dataclass(frozen=True, slots=True)
class Case:
    """One checkpoint in HF layout and the file with the answers to it."""

    name: str
    may_refuse: str | None = None
    """A config key that an engine may refuse by name instead of supporting it; None for what must run."""
    max_model_len: int | None = None
    """Longest sequence of the engine; None: its default."""

    @property
    def checkpoint(self) -> Path:
        """The folder with ``config.json`` and the weights."""
        return HERE / "checkpoints" / self.name

    @property
    def expected(self) -> Path:
        """The file that ``Golden`` values are read from."""
        return HERE / "expected" / f"{self.name}.npz"


CASES = (
    Case("llama-default"),
    Case("llama-bare-config"),
    Case("llama-tied-theta-old"),
    Case("llama-llama3"),
    Case("llama-llama3-old"),
    Case("llama-linear"),
    Case("llama-linear-old"),
    Case("llama-biases"),
    Case("llama-head-128-f16"),
    Case("llama-sharded"),
    Case("llama-eight-to-one"),
    Case("qwen2-tied-old"),
    Case("qwen2-sharded-bf16"),
    Case("qwen3"),
    Case("qwen3-biases-tied"),
    Case("mistral-window"),
    Case("mistral-window-bf16"),
    Case("mistral-no-window-old"),
    Case("qwen2-window", may_refuse="sliding_window"),
    Case("qwen3-window", may_refuse="sliding_window"),
    Case("llama-linear-extended"),
    Case("llama-yarn"),
    Case("qwen2-yarn-old"),
    Case("qwen3-yarn-mscale"),
    Case("llama-longrope-short"),
    Case("llama-longrope-long"),
    # Beyond max_position_embeddings, transformers' frequencies follow the length of the prompt; the engine's do not.
    Case("internlm3-dynamic-short", max_model_len=256),
    Case("ministral"),
    Case("seed-oss-biases"),
    Case("iquestcoder"),
    Case("phi3-window"),
    Case("phi3-partial-longrope"),
    Case("granite"),
    Case("granite-biases-tied-old"),
    Case("olmo2"),
    Case("smollm3"),
    Case("smollm3-window-old"),
    Case("gemma3"),
    Case("gemma3-old"),
)


@dataclass(frozen=True, slots=True)
class Golden:
    """What transformers answered to one prompt of ``P`` tokens, continued greedily by ``N``; ``S = P + N``.

    Row ``t`` of a log-probability matrix is the distribution of token ``t + 1`` given tokens ``0 .. t``.
    """

    prompt: NDArray[np.int32]
    """``[P]`` token ids."""
    greedy: NDArray[np.int32]
    """``[N]`` token ids."""
    top_two: NDArray[np.float32]
    """``[N, 2]``: log-probabilities of the likeliest and the second likeliest token at each step."""
    following: NDArray[np.float32]
    """``[S - 1]``: the log-probability that every row ``0 .. S - 2`` gives to the token that follows."""
    rows: NDArray[np.int32]
    """``[R]``: which rows are kept whole, ascending, all below ``S - 1``."""
    logprobs: NDArray[np.float32]
    """``[R, V]``: these rows."""


def load(path: Path) -> tuple[Golden, ...]:
    """The answers in ``path``, one for each prompt, in the order in which ``save`` got them."""
    with np.load(path, allow_pickle=False) as arrays:
        num_prompts = sum(1 for name in arrays.files if name.endswith(".prompt"))
        return tuple(
            Golden(**{field: arrays[f"{index}.{field}"] for field in Golden.__dataclass_fields__})
            for index in range(num_prompts)
        )


def save(path: Path, goldens: tuple[Golden, ...]) -> None:
    """Write ``goldens`` to ``path``; the same values give the same bytes."""
    arrays = {
        f"{index}.{field}": getattr(golden, field)
        for index, golden in enumerate(goldens)
        for field in Golden.__dataclass_fields__
    }
    np.savez(path, allow_pickle=False, **arrays)
