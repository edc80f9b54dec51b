"""What an attention may not answer, and what is said of it; what it may answer is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.sockets.plugins import ATTENTION, answer, complaint, write_plugin
from tinyvllm.cli.main import main
from tinyvllm.errors import PluginError
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams

REASONS = "expected a list of strings: the reasons why not, empty if it can"
RESULT = "expected an array of float32 and shape (3, 4, 16)"

WRONG = [
    ("Mine.supports = lambda self, spec: 'no way'", f"supports returned the str 'no way'; {REASONS}"),
    ("Mine.supports = lambda self, spec: ''", f"supports returned the str ''; {REASONS}"),
    ("Mine.supports = lambda self, spec: True", f"supports returned True; {REASONS}"),
    ("Mine.supports = lambda self, spec: None", f"supports returned None; {REASONS}"),
    ("Mine.supports = lambda self, spec: {}", f"supports returned a dict of 0; {REASONS}"),
    ("Mine.supports = lambda self, spec: ['a', 1]", f"supports returned a list that holds the int 1; {REASONS}"),
    ("Mine.supports = lambda self, spec: iter(())", f"supports returned an object of type tuple_iterator; {REASONS}"),
    ("Mine.supports = fail", "supports raised ValueError: spoilt"),
    ("Mine.supports = lambda self: []", "supports raised TypeError: <lambda>() takes 1 positional argument but 2"),
    ("Mine.plan = fail", "plan raised ValueError: spoilt"),
    ("Mine.plan = lambda self: None", "plan raised TypeError"),
    ("def plan(self, batch):\n    batch.block_tables[:] = 0\nMine.plan = plan", "plan raised ValueError: assign"),
    ("def plan(self, batch):\n    batch.positions += 1\nMine.plan = plan", "plan raised ValueError: output array is r"),
    ("Mine.forward = lambda self, call: None", f"forward returned None; {RESULT}"),
    ("Mine.forward = lambda self, call: call.query[:-1]", f"forward returned float32 of shape (2, 4, 16); {RESULT}"),
    (
        "Mine.forward = lambda self, call: inner(self, call).reshape(len(call.query), -1)",
        f"forward returned float32 of shape (3, 64); {RESULT}",
    ),
    (
        "Mine.forward = lambda self, call: inner(self, call).swapaxes(1, 2)",
        f"forward returned float32 of shape (3, 16, 4); {RESULT}",
    ),
    (
        "Mine.forward = lambda self, call: inner(self, call).astype(np.float64)",
        f"forward returned float64 of shape (3, 4, 16); {RESULT}",
    ),
    (
        "Mine.forward = lambda self, call: inner(self, call).astype(np.float16)",
        f"forward returned float16 of shape (3, 4, 16); {RESULT}",
    ),
    (
        "Mine.forward = lambda self, call: np.zeros(call.query.shape, np.int32)",
        f"forward returned int32 of shape (3, 4, 16); {RESULT}",
    ),
    ("Mine.forward = lambda self, call: inner(self, call).tolist()", f"forward returned a list of 3; {RESULT}"),
    ("Mine.forward = lambda self, call: (inner(self, call), None)", f"forward returned a tuple of 2; {RESULT}"),
    ("Mine.forward = lambda self, call: 1.0", f"forward returned the float 1.0; {RESULT}"),
    ("Mine.forward = fail", "forward raised ValueError: spoilt"),
    ("Mine.forward = lambda self: None", "forward raised TypeError"),
    (
        "def forward(self, call):\n    call.query[:] = 0\nMine.forward = forward",
        "forward raised ValueError: assign",
    ),
    ("def forward(self, call):\n    call.key[:] = 0\nMine.forward = forward", "forward raised ValueError: assign"),
    ("def forward(self, call):\n    call.value[0] = 0\nMine.forward = forward", "forward raised ValueError: assign"),
    (
        "def forward(self, call):\n    call.batch.token_ids[0] = 0\nMine.forward = forward",
        "forward raised ValueError: a",
    ),
    ("def forward(self, call):\n    call.scale = 1.0\nMine.forward = forward", "forward raised FrozenInstanceError"),
    ("def forward(self, call):\n    raise NotImplementedError\nMine.forward = forward", "raised NotImplementedError"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_answer_names_plugin_method_answer_and_rule(
    change: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    plugin = write_plugin(tmp_path, ATTENTION, change)
    text = complaint(tiny, plugins=[str(plugin)], attention={"name": "mine"})
    assert text.startswith(f"attention 'mine' of local plugin {plugin}: ")
    assert message in text


RIGHT = [
    "pass",
    "Mine.supports = lambda self, spec: ()",
    "Mine.forward = lambda self, call: np.asfortranarray(inner(self, call))",
    "def forward(self, call):\n    out = inner(self, call)\n    out.flags.writeable = False\n    return out\n"
    "Mine.forward = forward",
]


@pytest.mark.parametrize("change", RIGHT)
def test_right_answers_of_other_forms_give_the_same_tokens(change: str, tiny: Path, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, ATTENTION, change)
    assert answer(tiny, plugins=[str(plugin)], attention={"name": "mine"}) == answer(tiny)


def test_an_array_that_is_the_query_itself_is_taken(tiny: Path, tmp_path: Path) -> None:
    found = []
    for result in ("call.query", "call.query.copy()"):
        plugin = write_plugin(tmp_path, ATTENTION, f"Mine.forward = lambda self, call: {result}")
        found.append(answer(tiny, plugins=[str(plugin)], attention={"name": "mine"}))
    assert found[0] == found[1]


def test_reasons_why_not_are_shown_one_by_one(tiny: Path, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, ATTENTION, "Mine.supports = lambda self, spec: ['too small', 'too green']")
    text = complaint(tiny, plugins=[str(plugin)], attention={"name": "mine"})
    assert text == "attention 'mine' cannot serve this model here: too small; too green"


LATER = """
calls = 0
def forward(self, call):
    global calls
    calls += 1
    return inner(self, call) if calls <= 4 else {result}
Mine.forward = forward
"""


@pytest.mark.parametrize("result", ["fail()", "None", "call.query[:, :1]"])
def test_what_goes_wrong_in_a_later_step_reaches_the_step_with_the_plugins_name(
    result: str, tiny: Path, tmp_path: Path
) -> None:
    plugin = write_plugin(tmp_path, ATTENTION, LATER.format(result=result))
    llm = LLM(
        str(tiny), device="cpu", skip_tokenizer_init=True, plugins=[str(plugin)], attention={"name": "mine"},
        max_model_len=64,
    )  # fmt: skip
    llm.engine.add_request("a", {"prompt_token_ids": [3, 4]}, SamplingParams(max_tokens=8))
    llm.engine.step()
    llm.engine.step()
    with pytest.raises(PluginError, match=r"attention 'mine' of local plugin .*: forward r"):
        llm.engine.step()


def test_a_check_says_of_a_plugin_what_an_engine_would(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_plugin(tmp_path, ATTENTION, "Mine.supports = lambda self, spec: 'no'")
    arguments = ["plugins", "check", "--model", str(tiny), "--device", "cpu", "--plugin", str(plugin)]
    assert main([*arguments, "--kind", "attention"]) == 2
    out = capsys.readouterr().out
    assert f"broken   attention 'mine' of local plugin {plugin}: supports returned the str 'no'" in out
    assert "paged  ok" in out


def test_the_arrays_of_the_engine_stay_writable_to_the_engine(tiny: Path) -> None:
    llm = LLM(str(tiny), device="cpu", skip_tokenizer_init=True, max_model_len=64)
    prompts = [{"prompt_token_ids": list(range(n))} for n in (3, 9, 1)]
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=6), use_tqdm=False)
    assert [len(out.outputs[0].token_ids) for out in outputs] == [6, 6, 6]
    assert np.unique([len(out.prompt_token_ids or ()) for out in outputs]).tolist() == [1, 3, 9]
