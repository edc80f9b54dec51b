"""A Hugging Face tokenizer: ``tokenizer.json``, with what ``tokenizer_config.json`` adds to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvllm.errors import LoadError, RequestError
from tinyvllm.json_file import read_json_object
from tinyvllm.text.byte_level import bytes_of
from tinyvllm.text.chat_template import ChatTemplate

if TYPE_CHECKING:
    import tokenizers

_CACHED_TOKENS = 1 << 18  # as many as a large vocabulary has
_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Encodes and decodes; renders conversations.

    Attributes:
        special_token_ids: tokens that ``skip_special_tokens`` leaves out.
        special_tokens: ``bos_token``, ``eos_token`` and so on, to their text.
        is_byte_level: the text of tokens is their :meth:`token_bytes` one after the other, read as UTF-8.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, special_tokens: Mapping[str, str], chat_template: ChatTemplate | None = None
    ) -> None:
        """Wrap a tokenizer.

        Args:
            inner: of the ``tokenizers`` package.
            special_tokens: name to text, as ``tokenizer_config.json`` gives them.
            chat_template: None: conversations are refused.
        """
        self._inner = inner
        # Some files cut or pad, as was convenient for training; a prompt must stay whole.
        inner.no_truncation()
        inner.no_padding()
        self.special_tokens = special_tokens
        self._chat_template = chat_template
        added = inner.get_added_tokens_decoder()
        self.special_token_ids = frozenset(i for i, token in added.items() if token.special)
        self.is_byte_level = _is_byte_level(inner)
        self._single: dict[int, str] = {}
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_folder(cls, path: Path, chat_template: Path | None = None) -> Tokenizer:
        """The tokenizer of a checkpoint folder, or of a ``tokenizer.json``.

        Args:
            path: the folder or the file.
            chat_template: a Jinja file instead of the folder's own template.
        Raises:
            LoadError: a file is missing or malformed, naming it.
        """
        folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
        if not file.is_file():
            raise LoadError(
                f"{file}: there is no tokenizer; put tokenizer.json there, name another folder with tokenizer:, "
                "or set skip_tokenizer_init and give token ids"
            )
        inner = _read_tokenizer(file)
        config_path = folder / "tokenizer_config.json"
        config = read_json_object(config_path) if config_path.is_file() else {}
        special_tokens = _special_tokens(folder, config)
        where = chat_template or folder / "chat_template.jinja"
        if chat_template is not None or where.is_file():
            source: str | None = _read_text(where)
        else:
            where, source = config_path, _template_in(config, config_path)
        template = None if source is None else ChatTemplate(source, str(where), special_tokens)
        return cls(inner, special_tokens, template)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-sequence token that ``tokenizer_config.json`` names."""
        token = self.special_tokens.get("eos_token")
        return None if token is None else self.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; with ``add_special_tokens`` whatever the tokenizer puts around it.

        Raises:
            RequestError: the text holds a lone surrogate, which no encoding has bytes for.
        """
        try:
            return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError as error:
            at = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
            what = "it is not text" if at is None else f"character {at} is half of a surrogate pair"
            raise RequestError(f"the prompt cannot be encoded: {what}") from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some tokens; incomplete characters become U+FFFD."""
        return str(self._inner.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def decode_single(self, token_id: int) -> str:
        """The text of one token by itself, special ones included."""
        text = self._single.get(token_id)
        if text is None:
            text = self.decode([token_id], skip_special_tokens=False)
            if len(self._single) < _CACHED_TOKENS:
                self._single[token_id] = text
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What a token of a byte-level tokenizer stands for; no bytes if there is no such token."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self.id_to_token(token_id)
            known = b"" if token is None else bytes_of(token)
            if len(self._bytes) < _CACHED_TOKENS:
                self._bytes[token_id] = known
        return known

    def fallback_byte(self, token_id: int) -> int | None:
        """The byte that a token like ``<0xE2>`` stands for; None for other tokens."""
        match = _FALLBACK_BYTE.fullmatch(self.id_to_token(token_id) or "")
        return None if match is None else int(match[1], 16)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None if there is no such token."""
        token_id = self._inner.token_to_id(token)
        return None if token_id is None else int(token_id)

    def id_to_token(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it; None if there is no such id."""
        token = self._inner.id_to_token(token_id)
        return None if token is None else str(token)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation, ready for the model to answer.

        Raises:
            RequestError: there is no template, or it refuses the messages.
        """
        if self._chat_template is None:
            raise RequestError(
                "this checkpoint has no chat template; use prompts, or name a Jinja file with chat_template:"
            )
        return self._chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)


def _read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Inner  # slow to import, and not needed for token-id prompts

    try:
        return Inner.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and where it panics, a BaseException
        raise LoadError(f"{file}: is not a tokenizer of the tokenizers package: {error}") from error


def _is_byte_level(inner: tokenizers.Tokenizer) -> bool:
    if inner.decoder is None:
        return False
    decoder = json.loads(inner.decoder.__getstate__())
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return [part["type"] for part in parts if part["type"] != "Fuse"] == ["ByteLevel"]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: the chat template cannot be read: {error}") from error


def _template_in(config: Mapping[str, Any], path: Path) -> str | None:
    """``chat_template`` is a string, or a list of named ones of which ``default`` is meant."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise LoadError(f"{path}: chat_template must be a string or a list with one named default")
    return template


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token``, ``eos_token`` and so on, which templates may use by name."""
    older = folder / "special_tokens_map.json"
    named = {**(read_json_object(older) if older.is_file() else {}), **config}
    tokens = {name: _content(value) for name, value in named.items() if name.endswith("_token")}
    return {name: token for name, token in tokens.items() if token is not None}


def _content(token: Any) -> str | None:
    """A token is written as a string, or as a mapping with its ``content``."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
