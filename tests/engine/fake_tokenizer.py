"""A tokenizer of one printable character a token, which may fail."""

from __future__ import annotations

from tests.engine.faults import Faults

FIRST_CHARACTER = 33


class FakeTokenizer:
    """What the engine asks of :class:`~tinyvllm.text.tokenizer.Tokenizer`, without a file."""

    is_byte_level = True
    special_token_ids: frozenset[int] = frozenset()

    def __init__(self, faults: Faults | None = None) -> None:
        self._faults = faults or Faults()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self._faults.pass_through("encode")
        return [ord(character) - FIRST_CHARACTER for character in text]

    def token_bytes(self, token_id: int) -> bytes:
        self._faults.pass_through("tokenizer")
        return text_of([token_id]).encode()

    def decode_single(self, token_id: int) -> str:
        self._faults.pass_through("tokenizer")
        return text_of([token_id])


def text_of(token_ids: list[int]) -> str:
    """A character a token."""
    return "".join(chr(FIRST_CHARACTER + token_id) for token_id in token_ids)
