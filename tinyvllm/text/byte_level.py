"""The alphabet of byte-level tokenizers: a printable character for each of the 256 bytes (Radford et al. 2019)."""

from __future__ import annotations


def bytes_of(token: str) -> bytes:
    """The bytes that a token of a vocabulary stands for.

    An added token with a character outside the alphabet (a space, say) stands for its own UTF-8.
    """
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def byte_characters() -> list[str]:
    """The character of each byte: itself where it is printable in Latin-1, the others from U+0100 on, in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256))
    return [chr(byte) if byte in printable else chr(256 + next(others)) for byte in range(256)]


_BYTE_OF = {character: byte for byte, character in enumerate(byte_characters())}
