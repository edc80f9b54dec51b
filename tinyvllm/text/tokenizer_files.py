"""Reads the tokenizer files of a checkpoint folder: ``tokenizer.json``, ``tokenizer_config.json``, chat templates."""

from __future__ import annotations

import codecs
import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvllm._checkpoint_file import FIRST_BYTES, is_there, read_bounded, what_it_is
from tinyvllm._checks import shown
from tinyvllm._json_file import read_json_object
from tinyvllm.errors import LoadError
from tinyvllm.plugin_call import is_fatal
from tinyvllm.text.added_tokens import add_tokens, read_declared_tokens
from tinyvllm.text.chat_template import ChatTemplates, TemplateSource

if TYPE_CHECKING:
    import tokenizers

# Files of a tokenizer in a format that only transformers can convert.
_OTHER_FORMATS = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tekken.json")
_CONVERT = (
    "python -c \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{folder}')"
    ".save_pretrained('{folder}')\""
)
# The largest that are published have a tenth of this.
MAX_TOKENIZER_BYTES = 512 * 2**20
MAX_TOKENIZER_CONFIG_BYTES = 64 * 2**20
MAX_TEMPLATE_BYTES = 8 * 2**20
_MAX_NAME = 1000
# In real vocabularies the first tokens are the special ones and the single bytes or characters.
_NUM_PROBED = 256
_NUM_ENCODED = 16


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files of a folder say.

    Attributes:
        inner: the tokenizer, with the tokens that only the files beside ``tokenizer.json`` declare.
        special_tokens: ``bos_token``, ``eos_token`` and so on, to their text.
        chat_templates: of the checkpoint, or the one that the configuration names.
        report: lines for the start-up report.
    """

    inner: tokenizers.Tokenizer
    special_tokens: Mapping[str, str]
    chat_templates: ChatTemplates
    report: tuple[str, ...]


def read_tokenizer_files(path: Path, chat_template: Path | None) -> TokenizerFiles:
    """Read the tokenizer of a folder, or a ``tokenizer.json`` with the files beside it.

    Args:
        path: the folder or the file.
        chat_template: a Jinja file instead of the folder's own template.
    Raises:
        LoadError: a file is missing or malformed, naming it; or the tokenizer cannot encode or decode anything.
    """
    # Path.is_dir raises for a name that is too long.
    folder, file = (path, path / "tokenizer.json") if os.path.isdir(path) else (path.parent, path)
    if not is_there(file):
        raise LoadError(_nothing_there(folder, file))
    inner = _read_tokenizer(file)
    config_path = folder / "tokenizer_config.json"
    config = read_json_object(config_path, MAX_TOKENIZER_CONFIG_BYTES) if is_there(config_path) else {}
    declared = read_declared_tokens(folder, config, config_path)
    try:
        report = add_tokens(inner, declared)
    except BaseException as error:
        if isinstance(error, LoadError) or is_fatal(error):
            raise
        raise LoadError(f"{config_path}: its tokens cannot be added to {file.name}: {shown(str(error))}") from error
    _check_works(inner, file)
    templates = ChatTemplates(_template_sources(folder, config, config_path, chat_template), declared.named)
    if chat_template is not None and templates.problem is not None:
        raise LoadError(templates.problem)  # the checkpoint's own template may be unused, this one was asked for
    if templates.problem is not None:
        report.append(f"chat template: conversations will be refused: {templates.problem}")
    return TokenizerFiles(inner, declared.named, templates, tuple(report))


def _nothing_there(folder: Path, file: Path) -> str:
    name = str(file)
    where = name if len(name) <= _MAX_NAME and name.isprintable() else shown(name)
    others = [other for other in _OTHER_FORMATS if is_there(folder / other)]
    if others and file.name == "tokenizer.json":
        convert = _CONVERT.format(folder=folder)
        return f"{where}: is missing; {' and '.join(others)} must be converted to it first: {convert}"
    return (
        f"{where}: there is no tokenizer; put tokenizer.json there, name another folder with tokenizer:, "
        "or set skip_tokenizer_init and give token ids"
    )


def _read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Inner  # slow to import, and not needed for token-id prompts

    raw = read_bounded(file, MAX_TOKENIZER_BYTES)
    try:
        return Inner.from_buffer(raw.removeprefix(codecs.BOM_UTF8))
    except BaseException as error:  # the library raises plain Exception, and where it panics, a BaseException
        if is_fatal(error):
            raise
        what = what_it_is(raw[:FIRST_BYTES])
        if what is not None:
            raise LoadError(f"{file}: {what}") from None
        remedy = f"; convert it: {_CONVERT.format(folder=file.parent)}" if file.name in _OTHER_FORMATS else ""
        reason = shown(str(error))
        raise LoadError(f"{file}: is not a tokenizer of the tokenizers package: {reason}{remedy}") from error


def _check_works(inner: tokenizers.Tokenizer, file: Path) -> None:
    """Raise LoadError unless ``inner`` decodes its first tokens and encodes the text of one of them.

    A vocabulary without a token for unknown text may refuse some texts, but not all. Where the library panics, the
    tokenizer is broken whatever the text.
    """
    token_ids = range(min(_NUM_PROBED, inner.get_vocab_size(with_added_tokens=True)))
    try:
        texts = [inner.decode([token_id], skip_special_tokens=False) for token_id in token_ids]
    except BaseException as error:
        if is_fatal(error):
            raise
        raise LoadError(f"{file}: cannot decode its own tokens: {shown(str(error))}") from error
    probes = [text for text in texts if text][:_NUM_ENCODED] or ["a"]
    refusals = []
    for probe in probes:
        try:
            inner.decode(inner.encode(probe).ids)
        except BaseException as error:
            if is_fatal(error):
                raise
            refusals.append(error)
            if not isinstance(error, Exception) or len(refusals) == len(probes):
                raise LoadError(f"{file}: cannot encode {shown(probe)}: {shown(str(error))}") from error


def _template_sources(
    folder: Path, config: Mapping[str, Any], config_path: Path, configured: Path | None
) -> dict[str, TemplateSource]:
    """The templates by name; what is wrong with one of them is kept with it.

    The one that the configuration names wins over the checkpoint's Jinja files, these over ``tokenizer_config.json``.
    """
    if configured is not None:
        return {"default": _template_file(configured)}
    sources = _templates_in(config, config_path)
    plain = folder / "chat_template.jinja"
    if is_there(plain):
        sources["default"] = _template_file(plain)
    more = folder / "additional_chat_templates"
    if more.is_dir():
        sources.update({path.stem: _template_file(path) for path in sorted(more.glob("*.jinja"))})
    return sources


def _template_file(path: Path) -> TemplateSource:
    try:
        raw = read_bounded(path, MAX_TEMPLATE_BYTES)
        is_template = not raw or b"{{" in raw or b"{%" in raw  # whatever it begins with
        other = None if is_template else what_it_is(raw[:FIRST_BYTES])
        if other is not None:
            return TemplateSource("", str(path), f"{path}: {other}")
        return TemplateSource(raw.decode("utf-8-sig").replace("\r\n", "\n"), str(path))
    except LoadError as error:
        return TemplateSource("", str(path), f"the chat template cannot be read: {error}")
    except UnicodeDecodeError as error:
        return TemplateSource("", str(path), f"{path}: the chat template cannot be read: it is not UTF-8: {error}")


def _templates_in(config: Mapping[str, Any], path: Path) -> dict[str, TemplateSource]:
    """``chat_template`` is a string, or a list of named ones, of which ``default`` is the plain one."""
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": TemplateSource(value, str(path))}
    expected = "chat_template must be a string or a list of mappings with name and template"
    if not isinstance(value, list):
        return {"default": TemplateSource("", str(path), f"{path}: {expected}, got {shown(value)}")}
    sources = {}
    for i, each in enumerate(value):
        name, source = (each.get("name"), each.get("template")) if isinstance(each, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(source, str):
            problem = f"{path}: {expected}, got {shown(each)} at chat_template[{i}]"
            return {"default": TemplateSource("", str(path), problem)}
        sources[name] = TemplateSource(source, str(path))
    return sources
