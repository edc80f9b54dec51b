"""Ids in, text out, one token at a time, and never half a character."""

from __future__ import annotations

from collections.abc import Sequence

from tinyvllm.text.tokenizer import Tokenizer

# Tokens of the prompt that are decoded along with the first new ones: a leading space depends on what is before it.
_CONTEXT = 6
# A character has at most four bytes; whatever is still incomplete after so many tokens is no character at all.
_MOST_HELD = 8
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """The text of a growing row of tokens.

    Two windows are decoded at each token, one without the newest tokens and one with them; what the second has more
    is new text, unless it ends in the middle of a character (the method of Hugging Face's text-generation-inference).

    Args:
        tokenizer: decodes.
        prompt: the tokens before.
        skip_special_tokens: leave special tokens out.
        spaces_between_special_tokens: False: no space between two special tokens that follow each other.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._joins_specials = not (skip_special_tokens or spaces_between_special_tokens)
        self._window = list(prompt[-_CONTEXT:])  # context, then tokens whose text is not out yet
        self._read = len(self._window)
        self._before = self._decode(self._window)

    def add(self, token_id: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        if self._joins_specials and self._follows_special(token_id):
            text = self.flush() + self._tokenizer.decode_single(token_id).lstrip(" ")
            self._forget([*self._window, token_id])
            return text
        self._window.append(token_id)
        text = self._decode(self._window)
        is_incomplete = text.endswith(_REPLACEMENT) and len(self._window) - self._read < _MOST_HELD
        if is_incomplete or len(text) <= len(self._before):
            return ""
        new = text[len(self._before) :]
        self._forget(self._window[self._read :])
        return new

    def flush(self) -> str:
        """What is left at the end: an incomplete character comes as U+FFFD, as the whole decoded at once has it."""
        new = self._decode(self._window)[len(self._before) :]
        self._forget(self._window)
        return new

    def _forget(self, context: list[int]) -> None:
        """Keep the last tokens, whose text is out, as context for the next."""
        self._window = context[-_CONTEXT:]
        self._read = len(self._window)
        self._before = self._decode(self._window)

    def _follows_special(self, token_id: int) -> bool:
        specials = self._tokenizer.special_token_ids
        return token_id in specials and bool(self._window) and self._window[-1] in specials

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)
