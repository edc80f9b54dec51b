"""Every key, hook, exception and command is documented, and nothing is documented that there is not."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from tinyvllm import errors
from tinyvllm.cli.commands import COMMANDS
from tinyvllm.cli.main import parser
from tinyvllm.config.check_core import walk
from tinyvllm.config.schema import Config
from tinyvllm.config.yaml_source import parse_value
from tinyvllm.interfaces import API_VERSION, SOCKETS, Kind
from tinyvllm.registry import HOOKS, State

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / name).read_text()


def first_cells(text: str) -> list[str]:
    """What is in backticks in the first cell of each row of the tables."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def keys() -> set[str]:
    """Every key with a value of its own; a section is documented by its keys."""
    paths = {".".join(path) for path, _ in walk(Config)}
    return {path for path in paths if not any(other.startswith(f"{path}.") for other in paths)}


def commands() -> Iterator[str]:
    """Every command and verb."""

    def below(one: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[str]:
        groups = [action for action in one._actions if isinstance(action, argparse._SubParsersAction)]
        if not groups:
            yield " ".join(words)
        for group in groups:
            for name, inner in group.choices.items():
                yield from below(inner, (*words, name))

    yield from below(parser(), ())


def test_every_key_of_the_configuration_is_documented_and_no_other() -> None:
    documented = set(first_cells(page("config.md")))
    assert documented == keys()


def test_the_documented_defaults_are_the_schemas() -> None:
    fields = {".".join(path): field for path, field in walk(Config)}
    for key, default in re.findall(r"^\| `([\w.]+)` \| `?([^|`]+?)`? \|", page("config.md"), re.MULTILINE):
        field = fields[key]
        if field.is_required():
            assert default == "required", key
        else:
            assert parse_value(default, key) == field.get_default(call_default_factory=True), key


def test_every_hook_group_and_method_is_documented() -> None:
    text = page("plugins.md")
    for kind in Kind:
        assert f"`{HOOKS[kind]}`" in text
        assert f"`{kind.entry_point_group}`" in text
        for method in (name for name in vars(SOCKETS[kind]) if not name.startswith("_")):
            assert f"{method}(" in text, f"{kind.value}.{method}"
    assert f".v{API_VERSION}`" in text


def test_every_state_of_a_plugin_is_documented() -> None:
    for state in State:
        assert f"`{state}`" in page("plugins.md")


def test_every_exception_is_documented_with_its_exit_code() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d?) *\|", page("errors.md"), re.MULTILINE))
    raised = {
        name: "" if error is errors.TinyvllmError else str(error.exit_code)
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, errors.TinyvllmError)
    }
    assert documented == raised


def test_every_command_is_documented_and_no_other() -> None:
    documented = {cell.split(" --")[0] for cell in first_cells(page("cli.md")) if not cell.startswith("--")}
    known = {command if not command.startswith("bench ") else "bench" for command in commands()}
    assert documented == known
    for benchmark in (command.split()[1] for command in commands() if command.startswith("bench ")):
        assert f"`{benchmark}`" in page("cli.md")


def test_every_shared_flag_is_documented() -> None:
    documented = {cell.split()[0] for cell in first_cells(page("cli.md")) if cell.startswith("--")}
    for name in ("run", "generate", "chat"):
        one = argparse.ArgumentParser(add_help=False)
        COMMANDS[name].module.add_arguments(one)
        flags = {flag for action in one._actions for flag in action.option_strings if flag.startswith("--")}
        assert flags - {"--system", "--prompt"} <= documented, name
