"""YAML text to a tree with the line of every value.

PyYAML's tokens and syntax, but the scalars of YAML 1.2's core schema (``1e-5`` is a number, ``on`` is text,
``012`` is 12, ``10:30`` is text: https://yaml.org/spec/1.2.2/#103-core-schema), no duplicate keys, no tags that make
objects, and bounds on depth, size and what aliases expand to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from tinyvllm._checks import escaped, has_lone_surrogate, shown
from tinyvllm.config.problems import Place, Problem
from tinyvllm.config.tree import LONE_SURROGATE, KeyPath, Tree, dotted, shown_key
from tinyvllm.errors import ConfigError

MAX_BYTES = 2**20
_MAX_DEPTH = 32
# PyYAML reads about 40,000 values a second, and nobody should wait for more than one to hear of a mistake.
_MAX_VALUES = 20_000
# Longer than any number of a configuration; Python takes seconds for a million digits.
_MAX_NUMBER_CHARACTERS = 100

_MAX_SYNTAX_CHARACTERS = 200  # of what PyYAML says, which repeats names at any length
_TOO_MANY = f"more than {_MAX_VALUES:,} keys and values, aliases expanded; put long lists of prompts in a prompts_file"
_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    ("float", re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
    ("float", re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), list("-+.")),
)
_READERS: Mapping[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": lambda text: int(text, {"0x": 16, "0o": 8}.get(text[:2], 10)),
    "float": lambda text: float(re.sub(r"\.(?=[in])", "", text.lower())),
}


def parse_yaml(content: bytes, source: str) -> Tree:
    """The tree of a configuration file's content. Duplicate keys and foreign tags are among its ``problems``.

    Raises:
        ConfigError: with the line: not UTF-8, not YAML, too large, too deep, empty, or not a mapping.
    """
    text = _decode(content, source)
    tree = Tree(Place(source))
    node = _compose(text, source)
    if node is None:
        raise ConfigError(f"{escaped(source)}: the file is empty; the least that it can say is 'model: demo'")
    builder = _Builder(tree, text.splitlines())
    data = builder.build(node, ())
    if not isinstance(data, dict):
        got = "a list" if isinstance(data, list) else "a single value"
        place = builder.place_of(node)
        raise ConfigError(f"{place}: the file must be a mapping (key: value), got {got}; begin with 'model: demo'")
    tree.data = data
    return tree


def parse_value(text: str, source: str) -> Any:
    """A single YAML value, as on the right of ``--set key=value``.

    Raises:
        ConfigError: it is not YAML.
    """
    node = _compose(text, source)
    if node is None:
        return None
    tree = Tree(Place(source))
    value = _Builder(tree, []).build(node, ())
    if tree.problems:
        raise ConfigError(f"{escaped(source)}: {tree.problems[0].text}")
    return value


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema's scalars and bounds on depth and number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's name for it

    depth = 0
    num_values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.num_values += 1
        if self.depth > _MAX_DEPTH or self.num_values > _MAX_VALUES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            problem = f"nested deeper than {_MAX_DEPTH}" if self.depth > _MAX_DEPTH else _TOO_MANY
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)


@dataclass(slots=True)
class _Builder:
    """Walks the nodes, filling ``tree.places`` and ``tree.problems``. Aliases are followed, so all is counted."""

    tree: Tree
    lines: list[str]
    num_values: int = 0
    open_nodes: list[int] = field(default_factory=list)

    def place_of(self, node: yaml.Node) -> Place:
        line = node.start_mark.line
        text = self.lines[line] if line < len(self.lines) else ""
        return Place(self.tree.root.source, line + 1 if self.lines else 0, text)

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_values += 1
        if self.num_values > _MAX_VALUES:
            raise ConfigError(f"{self.place_of(node)}: {_TOO_MANY}")
        if id(node) in self.open_nodes:
            raise ConfigError(f"{self.place_of(node)}: the alias at {dotted(path)} holds itself")
        self.open_nodes.append(id(node))
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            self._check_tag(node, path, "seq")
            value = [self._item(inner, (*path, index)) for index, inner in enumerate(node.value)]
        else:
            assert isinstance(node, yaml.ScalarNode)
            value = self._scalar(node, path)
        self.open_nodes.pop()
        return value

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self.tree.places[path] = self.place_of(node)
        return self.build(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[Any, Any]:
        self._check_tag(node, path, "map")
        built: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            place = self.place_of(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                where = dotted(path) or "the file"
                self._problem(place, f"a key of {where} is a list or a mapping; keys are plain words")
                continue
            key = self._scalar(key_node, path)
            here = (*path, key)
            if key in built:
                first = self.tree.places[here].line
                self._problem(place, f"{dotted(here)} is given twice, first in line {first}; keep one")
                continue
            self.tree.places[here] = place
            built[key] = self.build(value_node, here)
        return built

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind not in _READERS:
            self._check_tag(node, path, "str")
            if has_lone_surrogate(text):
                self._problem(self.place_of(node), f"{dotted(path)} {LONE_SURROGATE}, got {shown(text)}")
                return text.encode("utf-8", "replace").decode()
            return text
        try:
            if kind in ("int", "float") and len(text) > _MAX_NUMBER_CHARACTERS:
                raise ValueError
            return _READERS[kind](text)
        except (ValueError, KeyError):
            got = f"{shown(text[:40])}{f' and {len(text) - 40:,} characters more' if len(text) > 40 else ''}"
            self._problem(self.place_of(node), f"{dotted(path)}: {got} cannot be read as {kind}")
            return text

    def _check_tag(self, node: yaml.Node, path: KeyPath, expected: str) -> None:
        if node.tag != _TAG + expected:
            self._problem(
                self.place_of(node),
                f"{dotted(path)}: the tag {shown_key(node.tag)} is not allowed; write the plain value",
            )

    def _problem(self, place: Place, message: str) -> None:
        self.tree.problems.append(Problem(place, message))


def _decode(content: bytes, source: str) -> str:
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{escaped(source)}: {len(content):,} bytes; a configuration has at most {MAX_BYTES:,}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{content[error.start]:02x}"
        raise ConfigError(f"{escaped(source)}:{line}: the file is not UTF-8 ({got}); save it as UTF-8") from error


def _compose(text: str, source: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        node: yaml.Node | None = loader.get_single_node()
        return node
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_error(error, text, source)) from error
    except (ValueError, OverflowError) as error:  # PyYAML converts what follows a backslash or %YAML without looking
        raise ConfigError(
            f"{escaped(source)}: an escape or version that YAML does not have: {_short(str(error))}"
        ) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        where = f"{escaped(source)}:{line}" if "\n" in text else escaped(source)
        raise ConfigError(f"{where}: the character U+{ord(text[error.position]):04X} is not allowed in YAML") from error
    finally:
        if loader is not None:
            loader.dispose()


def _syntax_error(error: yaml.MarkedYAMLError, text: str, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "not YAML"
    if mark is None:
        return f"{escaped(source)}: {_short(problem)}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "'\\t'" in problem or "\t" in line[: mark.column + 1]:
        problem = "a tab; YAML is indented with spaces"
    elif "single document" in (error.context or ""):
        problem = "a second document begins ('---'); a file holds one"
    elif problem == "mapping values are not allowed here":
        problem += "; is the line above indented as meant, and is text with ': ' in it quoted?"
    context = f" ({error.context})" if error.context and "single document" not in error.context else ""
    where = f"{escaped(source)}:{mark.line + 1}"
    quoted = f"\n  {mark.line + 1:>4} | {escaped(line[:100])}" if line.strip() else ""
    return f"{where}: {_short(problem)}{_short(context)}{quoted}"


def _short(text: str) -> str:
    return escaped(text if len(text) <= _MAX_SYNTAX_CHARACTERS else f"{text[:_MAX_SYNTAX_CHARACTERS]}...")
