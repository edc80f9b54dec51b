"""The arrays of one step. Pure values: built on the host, read by the model, attention and sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinyvllm.request import SAMPLING_COLUMNS, SamplingParams
from tinyvllm.sequence import SequenceTokens
from tinyvllm.shapes import Array, Float32, Int32

_Any = TypeVar("_Any", bound=NDArray[Any])

# In the columns of logprobs: this row wants none; -1 asks for the whole vocabulary, as in vLLM.
NO_LOGPROBS = -2
ALL_LOGPROBS = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes, for ``B`` sequences and ``T`` tokens, ragged and packed.

    There are no phases: prefill, chunked prefill and decode differ only in the numbers here.

    Attributes:
        token_ids: ``[T]``, int32.
        positions: ``[T]``, int32; the absolute position of each token in its sequence.
        cu_seqlens_q: ``[B+1]``, int32; tokens of sequence ``b`` are ``cu_seqlens_q[b]:cu_seqlens_q[b+1]``.
        context_lens: ``[B]``, int32; tokens of the sequence whose K and V are in the cache *after* this step.
        block_tables: ``[B, M]``, int32; entries past the sequence's blocks are meaningless.
        slot_mapping: ``[T]``, int32; ``block * block_size + offset`` where K and V of each token go.
    """

    token_ids: Int32
    positions: Int32
    cu_seqlens_q: Int32
    context_lens: Int32
    block_tables: Int32
    slot_mapping: Int32

    @property
    def num_tokens(self) -> int:
        """``T``."""
        return int(self.token_ids.shape[0])

    @property
    def num_sequences(self) -> int:
        """``B``."""
        return int(self.context_lens.shape[0])

    @property
    def is_decode_only(self) -> bool:
        """Whether every sequence computes exactly one token."""
        return self.num_tokens == self.num_sequences

    def read_only(self) -> Batch:
        """The same arrays, seen through views that refuse to be written."""
        return Batch(*(read_only(getattr(self, name)) for name in Batch.__slots__))


def read_only(array: _Any) -> _Any:
    """A view of ``array`` that refuses to be written; who holds ``array`` itself can write on."""
    view = array[...]
    view.setflags(write=False)
    return view  # type: ignore[return-value]  # of the same dtype


def protected(tensor: Array) -> Array:
    """A NumPy array as a view that refuses to be written; a tensor of a GPU as it is."""
    return read_only(tensor) if isinstance(tensor, np.ndarray) else tensor


@dataclass(frozen=True, slots=True)
class BatchTensors:
    """The arrays of a step where the model is; see :class:`Batch`.

    On a GPU a step may be padded. Rows of padding have position 0, slot -1 and context length 0; with ``cu_seqlens_q``
    they are rows of no sequence, behind its last entry, which sequences of padding repeat: they have no token.

    Attributes:
        token_ids, positions, slot_mapping: ``[T]``, int32.
        context_lens: ``[B]``, int32.
        block_tables: ``[B, M]``, int32.
        cu_seqlens_q: ``[B+1]``, int32; None: every sequence computes one token. On the CPU it is always there.
        has_decodes: false only if no sequence computes exactly one token: a step of prompts alone.
    """

    token_ids: Array
    positions: Array
    slot_mapping: Array
    context_lens: Array
    block_tables: Array
    cu_seqlens_q: Array | None
    has_decodes: bool = True

    @property
    def num_tokens(self) -> int:
        """``T``."""
        return int(self.token_ids.shape[0])


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The KV cache of one layer, in the core's layout: the positions of a block lie together, for each head.

    Attributes:
        key, value: ``[num_blocks, K, block_size, D]``; read through ``batch.block_tables``.
    """

    key: Array
    value: Array

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.key.shape[2])


_OTHER_COLUMNS: Mapping[str, str] = {
    "seed": "uint64",
    "completion_index": "int32",
    "position": "int32",
    "num_logprobs": "int32",
    "has_rules": "bool",
}
ROW_COLUMNS: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype) for name, dtype in {**SAMPLING_COLUMNS, **_OTHER_COLUMNS}.items()
}
"""Name and dtype of every column of ``SamplingRows``."""


class SamplingRows:
    """The sampling parameters of ``B`` rows, as columns.

    Those that ``SamplingParams`` declares to be columns come first, under their names.

    Attributes:
        temperature: ``[B]``, float32; 0 is greedy.
        top_p, min_p: ``[B]``, float32.
        top_k: ``[B]``, int32; 0 keeps all.
        presence_penalty, frequency_penalty, repetition_penalty: ``[B]``, float32.
        seed: ``[B]``, uint64; key of the row's random stream.
        completion_index: ``[B]``, int32; 0 to ``n - 1`` within the request.
        position: ``[B]``, int32; position that the sampled token will have in its sequence.
        num_logprobs: ``[B]``, int32; how many to report beside the sampled token's; -2 (``NO_LOGPROBS``): not even
            that one; -1 (``ALL_LOGPROBS``): the whole vocabulary.
        has_rules: ``[B]``, bool; the row needs its history: a penalty, ``logit_bias``, ``allowed_token_ids``,
            ``bad_words`` or ``min_tokens`` applies.
    """

    __slots__ = tuple(ROW_COLUMNS)

    temperature: Float32
    top_p: Float32
    top_k: Int32
    min_p: Float32
    presence_penalty: Float32
    frequency_penalty: Float32
    repetition_penalty: Float32
    seed: NDArray[np.uint64]
    completion_index: Int32
    position: Int32
    num_logprobs: Int32
    has_rules: NDArray[np.bool_]

    def __init__(self, **columns: NDArray[Any]) -> None:
        """Every column of ``ROW_COLUMNS``, ``[B]`` each."""
        for name in ROW_COLUMNS:
            setattr(self, name, columns[name])

    @classmethod
    def of(cls, num_rows: int, **columns: Any) -> SamplingRows:
        """Rows with the defaults of ``SamplingParams``, but for some columns.

        Args:
            num_rows: ``B``.
            columns: a scalar for all rows, or ``[B]``, each.
        """
        params = SamplingParams()
        values = {name: getattr(params, name) for name in SAMPLING_COLUMNS}
        values |= {"seed": 0, "completion_index": 0, "position": 0, "num_logprobs": NO_LOGPROBS, "has_rules": False}
        assert columns.keys() <= values.keys(), sorted(columns)
        return cls(
            **{
                name: np.broadcast_to(np.asarray(value, ROW_COLUMNS[name]), (num_rows,)).copy()
                for name, value in (values | columns).items()
            }
        )

    def replace(self, **columns: NDArray[Any]) -> SamplingRows:
        """The same rows with other columns."""
        return SamplingRows(**({name: getattr(self, name) for name in ROW_COLUMNS} | columns))

    def take(self, rows: NDArray[np.intp] | slice) -> SamplingRows:
        """Some of the rows, in the order given."""
        return SamplingRows(**{name: getattr(self, name)[rows] for name in ROW_COLUMNS})

    def __len__(self) -> int:
        return int(self.temperature.shape[0])


@dataclass(frozen=True, slots=True)
class SampleCall:
    """What a sampler is given.

    Attributes:
        logits: ``[B, V]``, float32, as the model gave them; read-only for the sampler.
        rows: the parameters of each row.
        tokens: ``B`` of them, the tokens of each sequence with its parameters and rules; None where ``rows.has_rules``
            is false.
    """

    logits: Array
    rows: SamplingRows
    tokens: Sequence[SequenceTokens | None] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LogprobColumns:
    """Log-probabilities of the raw logits, for ``B`` rows; column 0 is the chosen token, then the best ``k``.

    Attributes:
        token_ids: ``[B, 1 + k]``, int32.
        logprobs: ``[B, 1 + k]``, float32.
        rank: ``[B]``, int32; rank of the chosen token, 1 for the most likely.
    """

    token_ids: Int32
    logprobs: Float32
    rank: Int32


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a sampler returns.

    Attributes:
        token_ids: ``[B]``, int32, each of the vocabulary; that of a corrupt row is not used.
        logprobs: for all rows, with ``k`` the largest number that any row asks for; None if no row asks.
        is_corrupt: ``[B]``, bool; rows whose logits held a NaN (the request fails, the others go on). None: no row.
    """

    token_ids: Int32
    logprobs: LogprobColumns | None = None
    is_corrupt: NDArray[np.bool_] | None = None
