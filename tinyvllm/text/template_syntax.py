"""What a chat template's syntax tree says about the messages that it expects. Parses only, never runs anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import TemplateSyntaxError, nodes

from tinyvllm.text.template_environment import template_environment

# The largest that are published have some 30,000; parsing takes up to 15 microseconds a character.
_MAX_CHARACTERS = 200_000
# How often content may change its name on the way to a loop; a bound on the work for a template made to be slow.
_MAX_RENAMINGS = 8
# Filters that take a list apart, as a loop does.
_LIST_FILTERS = frozenset({"map", "selectattr", "rejectattr", "select", "reject"})


class MalformedTemplateError(Exception):
    """A template is outside the language; ``line`` is where, if known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class TemplateSyntax:
    """What a template reads.

    Attributes:
        variables: names of variables that it reads.
        keys: names of keys and attributes that it reads of anything.
        takes_parts: it loops over the content of a message, or picks a part of it.
        takes_text: it takes content that is a string: always, unless it takes parts and never tests for a string.
        takes_null: it tests whether content is none.
    """

    variables: frozenset[str]
    keys: frozenset[str]
    takes_parts: bool
    takes_text: bool
    takes_null: bool


def analysed(source: str) -> TemplateSyntax:
    """Parse a template.

    Raises:
        MalformedTemplateError: it is too long, nested too deeply or malformed.
    """
    if len(source) > _MAX_CHARACTERS:
        raise MalformedTemplateError(f"it has {len(source)} characters, at most {_MAX_CHARACTERS} are read")
    try:
        # Parsing only: compiling already computes constant expressions, however large.
        tree = template_environment().parse(source)
        return _Analysis(tree).syntax()
    except TemplateSyntaxError as error:
        raise MalformedTemplateError(error.message or "malformed", error.lineno) from error
    except RecursionError:
        raise MalformedTemplateError("it is nested too deeply") from None
    except (ValueError, OverflowError, AssertionError) as error:  # a number of thousands of digits, for one
        raise MalformedTemplateError(str(error) or type(error).__name__) from error


class _Analysis:
    """One pass over all nodes of a tree, and what follows from them."""

    def __init__(self, tree: nodes.Template) -> None:
        self._nodes = list(_all_nodes(tree))
        self._content_names: set[str] = set()
        self._find_names_of_content()

    def syntax(self) -> TemplateSyntax:
        takes_parts = any(self._takes_apart(node) for node in self._nodes)
        tests = {node.name for node in self._nodes if isinstance(node, nodes.Test) and self._is_content(node.node)}
        return TemplateSyntax(
            variables=frozenset(node.name for node in self._nodes if isinstance(node, nodes.Name)),
            keys=frozenset(key for node in self._nodes for key in _keys_read(node)),
            takes_parts=takes_parts,
            takes_text=not takes_parts or bool(tests & {"string", "iterable", "sequence", "mapping"}),
            takes_null="none" in tests or any(self._compares_with_none(node) for node in self._nodes),
        )

    def _find_names_of_content(self) -> None:
        """Find the variables and macro parameters that hold the content of a message."""
        macros = {node.name: node for node in self._nodes if isinstance(node, nodes.Macro)}
        for _ in range(_MAX_RENAMINGS):  # a name may hold what another name holds
            found = set(self._content_names)
            for node in self._nodes:
                if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
                    if self._is_content(node.node):
                        found.add(node.target.name)
                elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in macros:
                    found |= self._content_parameters(macros[node.node.name], node)
            if found == self._content_names:
                return
            self._content_names = found

    def _content_parameters(self, macro: nodes.Macro, call: nodes.Call) -> set[str]:
        given = {argument.name: value for argument, value in zip(macro.args, call.args, strict=False)}
        given |= {keyword.key: keyword.value for keyword in call.kwargs}
        return {name for name, value in given.items() if self._is_content(value)}

    def _is_content(self, node: nodes.Node | None) -> bool:
        """Whether an expression is the content of a message, perhaps filtered or sliced."""
        if isinstance(node, nodes.Filter):
            return self._is_content(node.node)
        if isinstance(node, nodes.CondExpr):
            return self._is_content(node.expr1) or self._is_content(node.expr2)
        if isinstance(node, nodes.Or):
            return self._is_content(node.left)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._is_content(node.node)
        if isinstance(node, nodes.Name):
            return node.name in self._content_names
        return "content" in _keys_read(node) and not isinstance(node, nodes.Compare)

    def _takes_apart(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.For):
            return self._is_content(node.iter)
        if isinstance(node, nodes.Filter) and node.name in _LIST_FILTERS:
            return self._is_content(node.node)
        # content[0]['text'] or content[0].text
        if isinstance(node, (nodes.Getattr, nodes.Getitem)) and isinstance(node.node, nodes.Getitem):
            is_indexed = isinstance(node.node.arg, nodes.Const) and isinstance(node.node.arg.value, int)
            return is_indexed and bool(_keys_read(node)) and self._is_content(node.node.node)
        return False

    def _compares_with_none(self, node: nodes.Node) -> bool:
        if not isinstance(node, nodes.Compare) or not self._is_content(node.expr):
            return False
        return any(isinstance(each.expr, nodes.Const) and each.expr.value is None for each in node.ops)


def _all_nodes(tree: nodes.Node) -> Iterator[nodes.Node]:
    """Every node below ``tree``, without recursion."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.iter_child_nodes())


def _keys_read(node: nodes.Node | None) -> tuple[str, ...]:
    """The key that a node reads: ``x.key``, ``x['key']``, ``x.get('key')`` or ``'key' in x``; usually none."""
    key: object = None
    if isinstance(node, nodes.Getattr):
        key = node.attr
    elif isinstance(node, nodes.Getitem):
        key = _constant(node.arg)
    elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "get":
        key = _constant(node.args[0]) if node.args else None
    elif isinstance(node, nodes.Compare) and any(each.op in ("in", "notin") for each in node.ops):
        key = _constant(node.expr)
    return (key,) if isinstance(key, str) else ()


def _constant(node: nodes.Node) -> object:
    return node.value if isinstance(node, nodes.Const) else None
