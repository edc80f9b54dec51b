"""One sequence's tokens: the prompt, then what was generated. Knows nothing of blocks or scheduling.

Only the model runner appends (it plays the device's token buffer on the CPU); everyone else reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tinyvllm.batch import Int32
from tinyvllm.request import SamplingParams, SamplingRules


@dataclass(slots=True)
class SequenceTokens:
    """A growing row of token ids.

    Attributes:
        params: how the sequence is sampled.
        rules: what the tokenizer and checkpoint add to ``params``.
        num_prompt_tokens: how many of the tokens are the prompt.
        num_tokens: tokens written so far, those that the host has not yet read back included.
    """

    params: SamplingParams
    rules: SamplingRules
    num_prompt_tokens: int
    num_tokens: int
    _buffer: Int32 = field(repr=False)

    @classmethod
    def from_prompt(
        cls, prompt: Sequence[int] | Int32, params: SamplingParams, rules: SamplingRules | None = None
    ) -> SequenceTokens:
        """A sequence that holds ``prompt`` and has generated nothing."""
        buffer = np.empty(len(prompt) + 16, np.int32)
        buffer[: len(prompt)] = prompt
        return cls(params, rules or SamplingRules(), len(prompt), len(prompt), buffer)

    @property
    def all(self) -> Int32:
        """``[num_tokens]``, prompt and output; a view."""
        return self._buffer[: self.num_tokens]

    @property
    def prompt(self) -> Int32:
        """``[num_prompt_tokens]``; a view."""
        return self._buffer[: self.num_prompt_tokens]

    @property
    def output(self) -> Int32:
        """``[num_tokens - num_prompt_tokens]``; a view."""
        return self._buffer[self.num_prompt_tokens : self.num_tokens]

    def append(self, token_id: int) -> None:
        """Add one generated token."""
        if self.num_tokens == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(len(self._buffer), np.int32)])
        self._buffer[self.num_tokens] = token_id
        self.num_tokens += 1
