"""One sequence's tokens: the prompt, then what was generated. Knows nothing of blocks or scheduling.

While a sequence runs, its tokens lie in a row of the engine's token store, where those of a whole step are written at
once; otherwise they are its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.shapes import Int32


@dataclass(slots=True)
class SequenceTokens:
    """A growing row of token ids.

    Attributes:
        params: how the sequence is sampled.
        rules: what the tokenizer and checkpoint add to ``params``.
        num_prompt_tokens: how many of the tokens are the prompt.
    """

    params: SamplingParams
    rules: SamplingRules
    num_prompt_tokens: int
    _buffer: Int32 = field(repr=False)
    _count: Int32 = field(repr=False)  # [1]

    @classmethod
    def from_prompt(cls, prompt: Int32, params: SamplingParams, rules: SamplingRules | None = None) -> SequenceTokens:
        """A sequence that holds ``prompt``, which nobody may change from now on, and has generated nothing."""
        return cls.from_tokens(prompt, len(prompt), params, rules or SamplingRules())

    @classmethod
    def from_tokens(
        cls, token_ids: Int32, num_prompt_tokens: int, params: SamplingParams, rules: SamplingRules
    ) -> SequenceTokens:
        """A sequence that holds ``token_ids``, prompt and output, which nobody may change from now on."""
        return cls(params, rules, num_prompt_tokens, token_ids, np.array([len(token_ids)], np.int32))

    @property
    def num_tokens(self) -> int:
        """Tokens written so far."""
        return int(self._count[0])

    @property
    def all(self) -> Int32:
        """``[num_tokens]``, prompt and output; a view that cannot be written."""
        return self._seen(0, self.num_tokens)

    @property
    def prompt(self) -> Int32:
        """``[num_prompt_tokens]``; a view that cannot be written."""
        return self._seen(0, self.num_prompt_tokens)

    @property
    def output(self) -> Int32:
        """``[num_tokens - num_prompt_tokens]``; a view that cannot be written."""
        return self._seen(self.num_prompt_tokens, self.num_tokens)

    def append(self, token_id: int) -> None:
        """Add one generated token."""
        count = self.num_tokens
        if count == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(max(16, count), np.int32)])
        self._buffer[count] = token_id
        self._count[0] += 1

    def move_to(self, buffer: Int32, count: Int32) -> None:
        """Go on in memory of somebody else, who writes there from now on.

        Args:
            buffer: room for the tokens, those to come included.
            count: ``[1]``, how many of them are written.
        """
        buffer[: self.num_tokens] = self.all
        count[0] = self._count[0]
        self._buffer, self._count = buffer, count

    def move_out(self) -> None:
        """Go on in memory of its own: what ``move_to`` was given is somebody else's again."""
        self._buffer, self._count = self.all.copy(), self._count.copy()

    def _seen(self, start: int, stop: int) -> Int32:
        view = self._buffer[start:stop]
        view.flags.writeable = False
        return view
