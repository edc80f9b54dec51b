"""The border to plugins: what passes, what is said, and how much of it is shown."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tinyvllm.errors import KernelError, LoadError, PluginError, TinyvllmError
from tinyvllm.interfaces import Kind
from tinyvllm.plugin_call import PluginCall, PluginName, checked_reasons, shown

PLUGIN = PluginName(Kind.SAMPLER, "mine", "local plugin ./mine.py")


def raised_by(function: Callable[[], Any], **options: Any) -> BaseException:
    try:
        with PluginCall(PLUGIN, "sample", **options):
            function()
    except BaseException as error:
        return error
    pytest.fail("nothing was raised")


def raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PluginError("sampler 'mine': a rule")], ids=["signal", "named"])
def test_a_signal_and_an_error_that_names_a_plugin_pass(error: BaseException) -> None:
    assert raised_by(raiser(error)) is error


@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit(), PluginError("a rule")], ids=["exit", "close", "bare"]
)
def test_an_exit_of_a_plugin_and_an_error_that_names_nobody_get_its_name(error: BaseException) -> None:
    found = raised_by(raiser(error))
    assert isinstance(found, PluginError)
    assert str(found).startswith(f"sampler 'mine' of local plugin ./mine.py: sample raised {type(error).__name__}")


class Panic(BaseException):
    """As a library in another language raises it."""


@pytest.mark.parametrize("error", [ValueError("v"), MemoryError("v"), LoadError("v"), Panic("v"), StopIteration("v")])
def test_everything_else_is_a_plugin_error_with_the_cause(error: BaseException) -> None:
    found = raised_by(raiser(error))
    assert isinstance(found, PluginError)
    said = f"sampler 'mine' of local plugin ./mine.py: sample raised {type(error).__name__}: v"
    assert str(found).splitlines()[0] == said
    assert found.__cause__ is error


def test_what_the_socket_asks_a_method_to_raise_passes() -> None:
    error = LoadError("torn")
    assert raised_by(raiser(error), passes=TinyvllmError) is error
    assert isinstance(raised_by(raiser(ValueError()), passes=TinyvllmError), PluginError)


def test_the_failure_of_a_kernel_launched_before_the_call_passes() -> None:
    error = KernelError("trap")
    assert isinstance(raised_by(raiser(error)), PluginError)
    error.is_of_earlier_launch = True
    assert raised_by(raiser(error)) is error
    assert not KernelError("another").is_of_earlier_launch


def test_frames_of_the_plugins_folder_are_shown_and_no_others(tmp_path: Path) -> None:
    for name, text in [
        ("a/mine.py", "import json\ndef run():\n    json.loads('{')\n"),
        ("ab/other.py", "def call(f):\n    f()\n"),
    ]:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    run = runpy.run_path(str(tmp_path / "a/mine.py"))["run"]
    call = runpy.run_path(str(tmp_path / "ab/other.py"))["call"]
    with pytest.raises(PluginError) as caught, PluginCall(PLUGIN, "sample"):
        run()
    # The first frame outside the core is this test's, whose folder is the only one shown.
    assert "json/decoder.py" not in str(caught.value)
    assert "test_plugin_call.py" in str(caught.value)
    with pytest.raises(PluginError) as caught, PluginCall(PLUGIN, "sample"):
        call(run)
    assert "other.py" not in str(caught.value)


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_an_exception_without_a_text_and_one_with_too_much_are_told() -> None:
    assert str(raised_by(raiser(Mute()))).splitlines()[0].endswith("sample raised Mute")
    assert len(str(raised_by(raiser(ValueError("x" * 10**6))))) < 3000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (3, "the int 3"),
        (10**20, "the int 100000000000000000000"),
        pytest.param(10**6000, "the int of 19932 bits", id="long"),
        ("a\x1b[31m", "the str 'a\\x1b[31m'"),
        ("\ud800", "the str '\\ud800'"),
        ("x" * 10**6, "the str 'xxxx"),
        (b"ab", "the bytes b'ab'"),
        ([1, 2], "a list of 2"),
        ({}, "a dict of 0"),
        (np.zeros((2, 3), ml_dtypes.bfloat16), "bfloat16 of shape (2, 3)"),
        (object(), "an object of type object"),
        (np.float32, "an object of type type"),
    ],
)
def test_a_value_is_shown_in_a_few_plain_words(value: object, text: str) -> None:
    assert shown(value).startswith(text)
    assert len(shown(value)) < 120
    assert shown(value).isprintable()


def test_reasons_are_strings_in_a_list() -> None:
    assert checked_reasons(PLUGIN, "supports", []) == []
    assert checked_reasons(PLUGIN, "supports", ("a", "b")) == ["a", "b"]
    for wrong in ("no", None, False, {"a"}, [None]):
        with pytest.raises(PluginError, match=r"supports returned .*; expected a list of strings"):
            checked_reasons(PLUGIN, "supports", wrong)
