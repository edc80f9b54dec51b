"""Tokens that stand in the files beside ``tokenizer.json``, added to the tokenizer as transformers adds them.

``added_tokens_decoder``, ``extra_special_tokens``, ``additional_special_tokens`` and every ``*_token`` of
``tokenizer_config.json``, and the older files ``special_tokens_map.json`` and ``added_tokens.json``. The order decides
the ids, because a token that ``tokenizer.json`` lacks gets the next free one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvllm._checkpoint_file import is_there
from tinyvllm._checks import shown
from tinyvllm._json_file import read_json_object
from tinyvllm.errors import LoadError

if TYPE_CHECKING:
    import tokenizers

STANDARD_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names of special tokens that every tokenizer of transformers knows."""
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_MAX_REPORTED = 5


@dataclass(slots=True)
class DeclaredTokens:
    """What the files beside ``tokenizer.json`` say about tokens.

    Attributes:
        decoder: by the id that the file gives: tokens with their flags.
        named: ``bos_token``, ``eos_token`` and so on, to their text.
        extra: further special tokens, in the order of the file.
        flags: by their text: ``lstrip`` and so on of named and extra tokens that are written with them.
    """

    decoder: dict[int, tokenizers.AddedToken] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    flags: dict[str, dict[str, bool]] = field(default_factory=dict)


def read_declared_tokens(folder: Path, config: Mapping[str, Any], config_path: Path) -> DeclaredTokens:
    """The tokens that the files of a checkpoint folder declare beside ``tokenizer.json``.

    As in transformers, the two older files count only where ``tokenizer_config.json`` has no ``added_tokens_decoder``,
    and ``special_tokens_map.json`` then wins over it.

    Args:
        folder: of the checkpoint.
        config: ``tokenizer_config.json``; empty if there is no such file.
        config_path: its path, for messages.
    Raises:
        LoadError: a value is of the wrong type, naming file and key.
    """
    declared = DeclaredTokens()
    _read_special(declared, config, config_path)
    if config.get("added_tokens_decoder") is not None:
        declared.decoder = _decoder(config["added_tokens_decoder"], f"{config_path}: added_tokens_decoder")
        return declared
    older = folder / "special_tokens_map.json"
    if is_there(older):
        _read_special(declared, read_json_object(older), older)
    oldest = folder / "added_tokens.json"
    if is_there(oldest):
        special = {*declared.named.values(), *declared.extra}
        declared.decoder = _older_decoder(read_json_object(oldest), special, str(oldest))
    return declared


def add_tokens(inner: tokenizers.Tokenizer, declared: DeclaredTokens) -> list[str]:
    """Add what ``declared`` has and ``inner`` lacks, and mark as special what is special only in ``declared``.

    Returns:
        Lines for the start-up report: an ``eos_token`` that no file gives an id to, and ids that differ from those
        of the files.
    """
    known_eos = _knows(inner, declared, declared.named.get("eos_token"))
    _add(inner, [declared.decoder[token_id] for token_id in sorted(declared.decoder)])
    present = {token.content: token for token in inner.get_added_tokens_decoder().values()}
    wanted = dict.fromkeys((*declared.named.values(), *declared.extra))
    _add(inner, [_special(content, present.get(content), declared.flags.get(content, {})) for content in wanted])
    report = [] if known_eos else [_unknown_eos(inner, declared.named["eos_token"])]
    return [*report, *_moved(inner, declared)]


def _knows(inner: tokenizers.Tokenizer, declared: DeclaredTokens, content: str | None) -> bool:
    if content is None or inner.token_to_id(content) is not None:
        return True
    return content in (token.content for token in declared.decoder.values())


def _unknown_eos(inner: tokenizers.Tokenizer, content: str) -> str:
    return (
        f"tokenizer: no file gives eos_token {shown(content)} an id; it gets the next free one, "
        f"{inner.token_to_id(content)}, as in transformers"
    )


def _moved(inner: tokenizers.Tokenizer, declared: DeclaredTokens) -> list[str]:
    """A line for each of the first tokens whose id in ``declared`` is not the one that it has."""
    lines = []
    for token_id, token in sorted(declared.decoder.items()):
        actual = inner.token_to_id(token.content)
        if actual != token_id:
            lines.append(
                f"tokenizer: {shown(token.content)} has id {actual}, as in transformers; added_tokens_decoder says "
                f"{token_id}"
            )
    hidden = len(lines) - _MAX_REPORTED
    return lines if hidden <= 0 else [*lines[:_MAX_REPORTED], f"tokenizer: {hidden} more tokens have another id"]


def _add(inner: tokenizers.Tokenizer, tokens: Iterable[tokenizers.AddedToken]) -> None:
    """Add tokens whose content or flags ``inner`` does not have yet."""
    present = {token.content: repr(token) for token in inner.get_added_tokens_decoder().values()}
    missing = [token for token in tokens if present.get(token.content) != repr(token)]
    if missing:
        inner.add_tokens(missing)


def _special(
    content: str, present: tokenizers.AddedToken | None, declared: Mapping[str, bool]
) -> tokenizers.AddedToken:
    """The special token ``content``; an added token of that content keeps its other flags."""
    from tokenizers import AddedToken

    flags = declared if present is None else {name: getattr(present, name) for name in _FLAGS}
    return AddedToken(content, **{**flags, "special": True})


def _read_special(declared: DeclaredTokens, config: Mapping[str, Any], path: Path) -> None:
    """Take ``*_token``, ``extra_special_tokens`` and ``additional_special_tokens`` from a file's mapping."""
    for name, value in config.items():
        # add_bos_token is a flag, and further names of a model count only where they name a token.
        if name in STANDARD_NAMES or (name.endswith("_token") and isinstance(value, (str, dict))):
            _name(declared, name, value, f"{path}: {name}")
    # additional_special_tokens is what older versions called extra_special_tokens.
    for name in ("extra_special_tokens", "additional_special_tokens"):
        value = config.get(name)
        if isinstance(value, dict):
            for key, token in value.items():
                _name(declared, key, token, f"{path}: {name}.{key}")
        elif isinstance(value, list):
            texts = [_take(declared, token, f"{path}: {name}[{i}]") for i, token in enumerate(value)]
            declared.extra += [text for text in texts if text]
        elif value is not None:
            raise LoadError(
                f"{path}: {name} must be a list of tokens or a mapping of name to token, got {shown(value)}"
            )
        if declared.extra:
            return


def _name(declared: DeclaredTokens, name: str, value: Any, where: str) -> None:
    text = _take(declared, value, where) if value is not None else ""
    if text:
        declared.named[name] = text
    else:
        declared.named.pop(name, None)


def _take(declared: DeclaredTokens, token: Any, where: str) -> str:
    """The text of a token, whose flags are noted."""
    text = _text(token, where)
    if isinstance(token, dict):
        declared.flags[text] = _flags(token, where)
    return text


def _text(token: Any, where: str) -> str:
    """A token is written as a string, or as a mapping with its ``content``."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise LoadError(f"{where} must be a string, or a mapping with content, got {shown(token)}")
    return _checked_text(content, where)


def _checked_text(content: str, where: str) -> str:
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise LoadError(f"{where} has a lone surrogate, which is no text, got {shown(content)}") from error
    return content


def _decoder(value: Any, where: str) -> dict[int, tokenizers.AddedToken]:
    from tokenizers import AddedToken

    if not isinstance(value, dict):
        raise LoadError(f"{where} must be a mapping of token id to token, got {shown(value)}")
    decoder = {}
    for key, token in value.items():
        if not isinstance(token, dict):
            raise LoadError(f"{where}.{shown(key)} must be a mapping with content, got {shown(token)}")
        content = _text(token, f"{where}.{shown(key)}")
        if content:
            decoder[_token_id(key, where)] = AddedToken(content, **_flags(token, f"{where}.{shown(key)}"))
    return decoder


def _flags(token: Mapping[str, Any], where: str) -> dict[str, bool]:
    flags = {name: token[name] for name in _FLAGS if name in token}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise LoadError(f"{where}.{name} must be true or false, got {shown(flag)}")
    return flags


def _older_decoder(tokens: Mapping[str, Any], special: set[str], where: str) -> dict[int, tokenizers.AddedToken]:
    """``added_tokens.json``: content to id, all flags at their defaults."""
    from tokenizers import AddedToken

    decoder = {}
    for content, token_id in tokens.items():
        is_special = _checked_text(content, where) in special
        if content:
            token = AddedToken(content, special=is_special, normalized=not is_special)
            decoder[_token_id(token_id, f"{where}: {shown(content)}")] = token
    return decoder


def _token_id(value: Any, where: str) -> int:
    is_decimal = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 10
    token_id = int(value) if is_decimal else value
    if type(token_id) is not int or not 0 <= token_id < 2**31:
        raise LoadError(f"{where} must be a token id from 0 to {2**31 - 1}, got {shown(value)}")
    return token_id
