"""Ids in, text out, one token at a time, and never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from tinyvllm.text.tokenizer import Tokenizer

# Tokens of the prompt that are decoded along with the first new ones: a leading space depends on what is before it.
_CONTEXT = 6
# A character has at most four bytes; what still ends in U+FFFD after so many tokens is no half of a character.
_MAX_HELD = 8
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """The text of a growing row of tokens, as it becomes certain.

    The pieces together are what the tokenizer makes of all the tokens at once: for a byte-level tokenizer whatever
    the tokens, for others wherever the tokens are well-formed text. ``clean_up_tokenization_spaces`` is not applied,
    because it changes text that is already out.
    """

    __slots__ = ("_inner",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        """Begin after a prompt.

        Args:
            tokenizer: decodes.
            prompt: the tokens before; where spaces are put by tokens' neighbours, the last of them decide the first.
            skip_special_tokens: leave special tokens out.
            spaces_between_special_tokens: False: no space between two special tokens that follow each other.
        """
        self._inner: _Decoding
        if tokenizer.is_byte_level:
            self._inner = _Bytes(tokenizer, skip_special_tokens)
        else:
            joins_specials = not (skip_special_tokens or spaces_between_special_tokens)
            self._inner = _Windows(tokenizer, prompt, skip_special_tokens, joins_specials)

    def add(self, token_id: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        return self._inner.add(token_id)

    def flush(self) -> str:
        """What is left at the end: an incomplete character comes as U+FFFD, as the whole decoded at once has it."""
        return self._inner.flush()


class _Decoding(Protocol):
    def add(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class _Bytes:
    """Byte-level tokenizers: every token is some bytes, and the text is their UTF-8 (0.4 µs a token)."""

    __slots__ = ("_decoder", "_skipped", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skips_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skips_special_tokens else frozenset()
        # Replaces what is no UTF-8 by the same rule as the tokenizers package: one U+FFFD a maximal subpart.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Windows:
    """Any tokenizer: a window is decoded with and without the newest tokens, and the difference is new text, unless
    it ends within a character (the method of Hugging Face's text-generation-inference).
    """

    __slots__ = ("_before", "_joins_specials", "_num_read", "_skips", "_tokenizer", "_window")

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], skips: bool, joins_specials: bool) -> None:
        self._tokenizer = tokenizer
        self._skips = skips
        self._joins_specials = joins_specials
        context = [token_id for token_id in prompt[-2 * _CONTEXT :] if not self._is_silent(token_id)][-_CONTEXT:]
        # Half a character before it would spoil a whole run of byte tokens.
        while context and self._decode(context).startswith(_REPLACEMENT):
            del context[0]
        self._forget(context)

    def add(self, token_id: int) -> str:
        if self._is_silent(token_id):
            return ""
        if self._joins_specials and self._follows_special(token_id):
            text = self.flush() + self._tokenizer.decode_single(token_id).lstrip(" ")
            self._forget([*self._window, token_id])
            return text
        self._window.append(token_id)
        text = self._decode(self._window)
        if len(text) <= len(self._before) or (text.endswith(_REPLACEMENT) and self._is_unfinished()):
            return ""
        new = text[len(self._before) :]
        self._forget(self._window[self._num_read :])
        return new

    def flush(self) -> str:
        new = self._decode(self._window)[len(self._before) :]
        self._forget(self._window)
        return new

    def _forget(self, context: list[int]) -> None:
        """Keep tokens whose text is out as context for the next."""
        self._window = context
        self._num_read = len(context)
        self._before = self._decode(context)

    def _is_unfinished(self) -> bool:
        """Whether the window ends within a character, given that its text ends in U+FFFD."""
        run = bytearray()
        for token_id in reversed(self._window):
            byte = self._tokenizer.fallback_byte(token_id)
            if byte is None:
                break
            run.append(byte)
        if not run:  # no byte fall-back, so it cannot be known
            return len(self._window) - self._num_read < _MAX_HELD
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(bytes(reversed(run)))
        except UnicodeDecodeError:  # it never becomes text, so there is nothing to wait for
            return False
        return decoder.getstate()[0] != b""

    def _is_silent(self, token_id: int) -> bool:
        """Whether it is left out of the text, and so must not fill the window."""
        is_skipped = self._skips and token_id in self._tokenizer.special_token_ids
        return is_skipped or self._tokenizer.id_to_token(token_id) is None

    def _follows_special(self, token_id: int) -> bool:
        specials = self._tokenizer.special_token_ids
        return token_id in specials and bool(self._window) and self._window[-1] in specials

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skips)
