"""A Hugging Face tokenizer: ``tokenizer.json``, with what ``tokenizer_config.json`` adds to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvllm._checks import shown
from tinyvllm.errors import RequestError
from tinyvllm.plugin_call import is_fatal
from tinyvllm.text.byte_level import bytes_of
from tinyvllm.text.chat_options import ChatOptions
from tinyvllm.text.chat_template import ChatTemplates
from tinyvllm.text.messages import Messages
from tinyvllm.text.tokenizer_files import read_tokenizer_files

if TYPE_CHECKING:
    import tokenizers

_CACHED_TOKENS = 1 << 18  # as many as a large vocabulary has
_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Encodes and decodes; renders conversations.

    Attributes:
        special_token_ids: tokens that ``skip_special_tokens`` leaves out.
        special_tokens: ``bos_token``, ``eos_token`` and so on, to their text.
        report: lines for the start-up report: what in the files is odd.
        is_byte_level: the text of tokens is their :meth:`token_bytes` one after the other, read as UTF-8.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        chat_templates: ChatTemplates | None = None,
        report: Sequence[str] = (),
    ) -> None:
        """Wrap a tokenizer.

        Args:
            inner: of the ``tokenizers`` package.
            special_tokens: name to text, as ``tokenizer_config.json`` gives them.
            chat_templates: None: only conversations that bring a template are rendered.
            report: see the attribute.
        """
        self._inner = inner
        # Some files cut or pad, as was convenient for training; a prompt must stay whole.
        inner.no_truncation()
        inner.no_padding()
        self.special_tokens = special_tokens
        self.report = tuple(report)
        self._chat_templates = chat_templates or ChatTemplates({}, special_tokens)
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
            LoadError: a file is missing or malformed, naming it; or the tokenizer cannot encode or decode anything.
                A chat template of the folder that is malformed is an error of the first conversation only.
        """
        files = read_tokenizer_files(path, chat_template)
        return cls(files.inner, files.special_tokens, files.chat_templates, files.report)

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
            RequestError: the text holds a lone surrogate, which no encoding has bytes for; or the tokenizer fails.
        """
        try:
            return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)
        except BaseException as error:  # where the library panics, it raises a BaseException
            if is_fatal(error):
                raise
            raise RequestError(f"the prompt cannot be encoded: {_why(text, error)}") from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some tokens; incomplete characters become U+FFFD.

        Raises:
            RequestError: an id is no number from 0 to 2**32 - 1, or the tokenizer fails.
        """
        ids = list(token_ids)
        try:
            return str(self._inner.decode(ids, skip_special_tokens=skip_special_tokens))
        except BaseException as error:
            if is_fatal(error):
                raise
            raise RequestError(f"the tokens {shown(ids)} cannot be decoded: {shown(str(error))}") from error

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
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, ready for the model to answer.

        Args:
            messages: mappings with ``role`` and ``content``, a string or a list of text parts.
            add_generation_prompt, continue_final_message, tools, chat_template: see
                :class:`~tinyvllm.text.chat_options.ChatOptions`.
            variables: whatever else the template reads.
        Raises:
            RequestError: there is no template, it is malformed, or it refuses the messages; or something is not in
                the format, by its place.
        """
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template=chat_template,
            chat_template_kwargs=variables,
        )
        return self.render_conversation(messages, options)

    def render_conversation(self, messages: Messages, options: ChatOptions, where: str = "messages") -> str:
        """As :meth:`apply_chat_template`, with the options in one value.

        Args:
            messages: mappings with ``role`` and ``content``, a string or a list of text parts.
            options: beside the messages.
            where: what the user calls the messages, for messages of errors.
        Raises:
            RequestError: as :meth:`apply_chat_template`.
        """
        template = self._chat_templates.choose(options.chat_template, has_tools=bool(options.tools))
        return template.render(messages, options, where)


def _why(text: object, error: BaseException) -> str:
    if not isinstance(text, str):
        return "it is not text"
    at = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
    return f"character {at} is half of a surrogate pair" if at is not None else shown(str(error))


def _is_byte_level(inner: tokenizers.Tokenizer) -> bool:
    if inner.decoder is None:
        return False
    decoder = json.loads(inner.decoder.__getstate__())
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return [part["type"] for part in parts if part["type"] != "Fuse"] == ["ByteLevel"]
