"""``docs/reference/python.md`` has every public name of ``LLM`` and of the engine that callers may use, as they are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.docs.field_tables import PAGES
from tinyvllm import LLM
from tinyvllm.engine.engine import Engine

TEXT = PAGES["python.md"].read_text()
ENGINE_INSIDE = {"advance", "has_live_requests", "take"}  # for the thread of LLM, which gives each caller its outputs


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "owner")]


def documented_parameters(name: str) -> list[str]:
    (listed,) = re.findall(rf"^(?:\| )?`{re.escape(name)}\((.*?)\)`", TEXT, re.MULTILINE | re.DOTALL)
    named = [each.strip() for each in re.split(r",\s*", listed) if each.strip() != "*"]
    return [each.partition("=")[0].lstrip("*") for each in named if each]


@pytest.mark.parametrize("name", ["LLM", "generate", "chat", "stream"])
def test_the_parameters_of_a_call_are_on_the_page(name: str) -> None:
    function = LLM.__init__ if name == "LLM" else getattr(LLM, name)
    assert documented_parameters(name) == parameters_of(function)


def test_every_public_name_of_llm_is_on_the_page() -> None:
    names = [name for name in vars(LLM) if not name.startswith("_")]
    missing = [name for name in [*names, "config"] if not re.search(rf"`(\w+\.)?{name}[`(]", TEXT)]
    assert names
    assert not missing


def test_the_methods_of_the_engine_and_their_parameters_are_on_the_page() -> None:
    section = TEXT.partition("## Drive the engine yourself")[2].partition("## ")[0]
    listed = re.findall(r"^\| `(\w+)\(", section, re.MULTILINE)
    assert set(listed) == {name for name in vars(Engine) if not name.startswith("_")} - ENGINE_INSIDE
    for name in listed:
        assert documented_parameters(name) == parameters_of(getattr(Engine, name))
