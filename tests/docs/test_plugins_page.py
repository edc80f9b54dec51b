"""``docs/reference/plugins.md`` says of the sockets what the code says, and quotes messages that are printed."""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from tests.docs.field_tables import MODULES, PAGES, class_named, members_of, table_of, tables_on, with_tables
from tests.sockets.plugins import ATTENTION, KERNEL, LOADER
from tinyvllm.cli.main import main
from tinyvllm.interfaces import SOCKETS, Kind, Plugin, PreparingKernel
from tinyvllm.registry import HOOKS

TEXT = PAGES["plugins.md"].read_text()
PACKAGE = Path(__file__).parents[1] / "third_party" / "shortest_first"
NAMES = {name: value for module in reversed(MODULES) for name, value in vars(module).items()}

SCHEDULER = """
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin, Schedule

class Mine:
    def __init__(self, context):
        pass
    def schedule(self, view):
        {change}

@hookimpl
def register_schedulers():
    return [Plugin("mine", Mine)]
"""

SAMPLER = """
from tinyvllm.batch import Sampled
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin

class Mine:
    def __init__(self, context):
        pass
    def sample(self, call):
        {change}

@hookimpl
def register_samplers():
    return [Plugin("mine", Mine)]
"""

# By what the quoted message begins with: the plugin that causes it, and how it is chosen.
QUOTED = {
    "loader": (LOADER, "Tensors.read = lambda self, name: np.zeros(self.call.expected[name])", "loader.name"),
    "attention": (ATTENTION, "after = lambda call: call.out", "attention.name"),
    "scheduler 'mine' of local plugin /home/me/mine.py: schedule gives": (
        SCHEDULER, "return Schedule(view.waiting, view.num_tokens[view.waiting] + 1)", "scheduler.name"
    ),
    "sampler": (SAMPLER, "return Sampled(call.logits.argmax(axis=-1, keepdims=True))", "sampler.name"),
    "kernel": (KERNEL, "after = lambda out, x, norm: out", "kernels.rms_norm"),
    "scheduler 'mine' of local plugin /home/me/mine.py: schedule raised": (
        SCHEDULER, "return Schedule(view.wating, view.num_tokens)", "scheduler.name"
    ),
}  # fmt: skip


def used_by(kind: Any) -> Iterator[type]:
    """The classes of the interfaces in a type, with those of their members."""
    for part in get_args(kind):
        yield from used_by(part)
    if isinstance(kind, type) and kind.__module__ in [module.__name__ for module in MODULES]:
        yield kind


def given_or_returned() -> set[str]:
    """Names of all that a plugin is given, or returns."""
    found, left = dict[str, type](), [Plugin, *SOCKETS.values()]
    while left:
        cls = left.pop()
        if cls.__name__ in found:
            continue
        found[cls.__name__] = cls
        members = [getattr(each, "fget", each) for name, each in vars(cls).items() if not name.startswith("_")]
        hints = [get_type_hints(each, NAMES, NAMES) for each in members if inspect.isfunction(each)]
        if is_dataclass(cls):
            hints.append(get_type_hints(cls, NAMES, NAMES))
        left += [each for hint in hints for kind in hint.values() for each in used_by(kind)]
    return set(found) - {socket.__name__ for socket in SOCKETS.values()}


@pytest.mark.parametrize("page", PAGES)
def test_every_table_is_that_of_the_docstring(page: str) -> None:
    text = PAGES[page].read_text()
    assert with_tables(text) == text, "run python -m tests.docs.field_tables"


def test_everything_that_a_plugin_is_given_or_returns_has_a_table() -> None:
    described_elsewhere = {"Workspace", "SlotParameters", "SamplingRules", "SamplingParams"}  # in words, or for Python
    assert given_or_returned() - described_elsewhere <= set(tables_on(TEXT))


def test_a_field_without_a_docstring_is_noticed() -> None:
    class_ = class_named("Batch")
    documented = class_.__doc__
    assert documented is not None
    try:
        class_.__doc__ = documented.replace("        positions:", "        position:")
        with pytest.raises(AssertionError, match="positions"):
            table_of(class_)
    finally:
        class_.__doc__ = documented


def test_a_meaning_over_several_lines_and_names_that_share_one_are_read() -> None:
    rows = {name: meaning for name, _, meaning in members_of(class_named("SamplingRows"))}
    assert rows["has_rules"].endswith("`bad_words` or `min_tokens` applies.")
    assert rows["top_p"] == rows["min_p"]


@pytest.mark.parametrize("kind", Kind)
def test_every_method_of_a_socket_is_in_its_section(kind: Kind) -> None:
    (section,) = re.findall(rf"^### {kind.value.capitalize()}\n(.*?)(?=^### )", TEXT, re.MULTILINE | re.DOTALL)
    listed = set(re.findall(r"^\| `(\w+)\(", section.split("<!-- ")[0], re.MULTILINE))
    known = {*vars(SOCKETS[kind]), *(vars(PreparingKernel) if kind is Kind.KERNEL else ())}
    assert listed == {name for name in known if not name.startswith("_")}
    assert f"error: {kind.value} 'mine' of local plugin " in section


@pytest.mark.parametrize("beginning", QUOTED)
def test_every_quoted_message_is_printed(
    beginning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = re.findall(r"```text\nerror: (.*?)```", TEXT, re.DOTALL)
    (quoted,) = [message for message in messages if message.startswith(beginning)]
    template, change, key = QUOTED[beginning]
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(template.format(change=change, op="rms_norm"))
    arguments = ["--device", "cpu", "--plugin", "./mine.py", "--set", f"{key}=mine"]
    assert main(["generate", "12+7=", "--quiet", *arguments]) == 2
    printed = capsys.readouterr().err.replace(str(tmp_path), "/home/me")
    without_marks = re.sub(r"^ *[~^]+\n", "", printed, flags=re.MULTILINE)  # which differ between versions of Python
    assert without_marks == f"error: {quoted}"


def test_the_package_on_the_page_is_the_one_that_is_installed_by_a_test() -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert toml == (PACKAGE / "pyproject.toml").read_text()
    (layout,) = re.findall(r"```text\nshortest_first/\n(.*?)```", TEXT, re.DOTALL)
    assert re.findall(r"[\w.]+\.\w+", layout) == sorted(path.name for path in PACKAGE.iterdir() if path.is_file())


def test_the_entry_point_of_the_package_leads_to_the_plugin_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(groups) == {Kind.SCHEDULER.entry_point_group}
    ((name, value),) = groups[Kind.SCHEDULER.entry_point_group].items()
    monkeypatch.syspath_prepend(PACKAGE)
    module = EntryPoint(name, value, Kind.SCHEDULER.entry_point_group).load()
    assert [plugin.name for plugin in getattr(module, HOOKS[Kind.SCHEDULER])()] == [name]
    sys.modules.pop(value)
