"""The tables of fields in ``docs/reference``: of what plugins and callers are given or return, made from docstrings.

python -m tests.docs.field_tables    writes the pages anew
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from tinyvllm import batch, interfaces, layers, outputs, request, sequence, shapes, slots, step, workspace
from tinyvllm.engine import stats

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {page: REFERENCE / page for page in ("plugins.md", "python.md")}
MODULES = (interfaces, batch, shapes, sequence, layers, workspace, slots, step, outputs, request, stats)
_MARKED = re.compile(r"(<!-- fields of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SECTION = re.compile(r"^(Attributes|Args|Returns|Raises):$", re.MULTILINE)
_ATTRIBUTE = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)


def class_named(name: str) -> type:
    """The class of the interfaces with this name."""
    (found,) = {id(each): each for module in MODULES if (each := vars(module).get(name)) is not None}.values()
    assert isinstance(found, type)
    return found


def with_tables(page: str) -> str:
    """The page with each table between its markers made anew."""
    return _MARKED.sub(lambda match: f"{match[1]}{table_of(class_named(match[2]))}\n{match[3]}", page)


def tables_on(page: str) -> list[str]:
    """Names of the classes that the page has a table of."""
    return [match[2] for match in _MARKED.finditer(page)]


def table_of(cls: type) -> str:
    """What the docstring of a class says first, and a row for each of its fields, properties and protocol methods."""
    head = ["| name | type | meaning |", "|---|---|---|"]
    rows = [f"| `{name}` | {code(kind)} | {meaning} |" for name, kind, meaning in members_of(cls)]
    return "\n".join([f"`{cls.__name__}`: {prose_of(cls)}", "", *head, *rows])


def members_of(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, type and meaning of every public member."""
    public = [(name, kind) for name, kind in fields_of(cls) if not name.startswith("_")]
    if public:
        meanings = attributes_of(cls)
        missing = {name for name, _ in public} ^ set(meanings)
        assert not missing, f"{cls.__name__}: {missing} are fields without a docstring, or the reverse"
        for name, kind in public:
            yield name, kind, capitalised(meanings[name])
    is_protocol = bool(getattr(cls, "_is_protocol", False))
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            assert member.fget is not None
            yield name, returned_by(member.fget), capitalised(prose_of(member))
        elif is_protocol and inspect.isfunction(member):
            names = list(inspect.signature(member).parameters)[1:]
            yield f"{name}({', '.join(names)})", returned_by(member), capitalised(prose_of(member))


def fields_of(cls: type) -> list[tuple[str, str]]:
    """Name and type of each field of a dataclass, or of a class with slots whose types are declared."""
    if is_dataclass(cls):
        return [(field.name, f"{field.type}{default_of(field)}") for field in fields(cls)]
    declared = getattr(cls, "__annotations__", {}) if "__slots__" in vars(cls) else {}
    return [(name, str(kind)) for name, kind in declared.items()]


def attributes_of(cls: type) -> dict[str, str]:
    """The entries under ``Attributes:``; names that share an entry share its meaning."""
    text = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    entries = _ATTRIBUTE.findall(re.split(r"\n\n", text)[0])
    return {name: as_markdown(meaning) for names, meaning in entries for name in names.split(", ")}


def prose_of(documented: Any) -> str:
    """A docstring up to its first section, on one line."""
    text = _SECTION.split(inspect.getdoc(documented) or "")[0].strip()
    assert text, f"{documented} has no docstring"
    return as_markdown(text)


def returned_by(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function).return_annotation)


def default_of(field: Field[Any]) -> str:
    if field.default is not MISSING:
        value = field.default.__name__ if isinstance(field.default, type) else repr(field.default)
        return f" = {value}"
    return " = none" if field.default_factory is not MISSING else ""


def as_markdown(text: str) -> str:
    """reStructuredText of one or more lines as one line of a table."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", re.sub(r"\s+", " ", text))
    return text.replace("``", "`").replace("|", "\\|")


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


if __name__ == "__main__":
    for path in PAGES.values():
        path.write_text(with_tables(path.read_text()))
