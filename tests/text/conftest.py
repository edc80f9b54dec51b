"""Tokenizers made here: byte-level BPE, and Llama-style pieces with byte fall-back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Inner

from tinyvllm.text.tokenizer import Tokenizer

SPECIALS = ("<|begin|>", "<|end|>")


def byte_level_inner() -> Inner:
    """All 256 bytes, a few merges, two special tokens, and added ones with a space and beyond ASCII."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("Ġ", "w"), ("Ã", "©"), ("ð", "Ł")]
    tokens = alphabet + [a + b for a, b in merges]
    inner = Inner(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    inner.add_tokens([AddedToken("two words", special=False), AddedToken("naïve→", special=False)])
    return inner


def byte_fallback_inner() -> Inner:
    """Llama's: a space is ``▁``, one is put before the text, and what has no piece falls back to bytes."""
    pieces = ["<unk>", *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁helowrdabc", "▁w", "he", "ll", "▁h"]
    merges = [("▁", "w"), ("h", "e"), ("l", "l"), ("▁", "h")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    inner = Inner(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return inner


def word_piece_inner() -> Inner:
    """BERT's: the decoder puts spaces between words, special tokens among them."""
    words = ["[UNK]", "hello", "world", "##s", "[SEP]", "[CLS]"]
    inner = Inner(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(cleanup=False)
    inner.add_special_tokens(["[SEP]", "[CLS]"])
    return inner


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer(byte_level_inner(), {"eos_token": "<|end|>"})


@pytest.fixture(scope="session")
def byte_fallback() -> Tokenizer:
    return Tokenizer(byte_fallback_inner(), {"eos_token": "<|end|>"})


@pytest.fixture(scope="session")
def word_piece() -> Tokenizer:
    return Tokenizer(word_piece_inner(), {})


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A folder with the byte-level tokenizer, its configuration and a template in it."""
    byte_level_inner().save(str(tmp_path / "tokenizer.json"))
    config = {
        "bos_token": {"content": "<|begin|>", "special": True},
        "eos_token": "<|end|>",
        "add_bos_token": True,
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path
