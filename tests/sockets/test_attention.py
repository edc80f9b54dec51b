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
BOUND = "expected an object with host_plan, plan and forward"
HOST_PLAN = "expected None, or a one-dimensional array of int32"
WRITES = "expected None: forward writes to call.out"

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
    ("Mine.bind = fail", "bind raised ValueError: spoilt"),
    ("Mine.bind = lambda self: Bound", "bind raised TypeError: <lambda>() takes 1 positional argument but 2"),
    ("Mine.bind = lambda self, context: None", f"bind returned None; {BOUND}"),
    ("Mine.bind = lambda self, context: self", f"bind returned an object of type Mine; {BOUND}"),
    ("Mine.bind = lambda self, context: Bound(context).forward", f"bind returned an object of type method; {BOUND}"),
    ("Mine.bind = lambda self, context: context.specs[0].headdim", "bind raised AttributeError: 'AttentionSpec'"),
    ("Bound.host_plan = fail", "host_plan raised ValueError: spoilt"),
    ("Bound.host_plan = lambda self: None", "host_plan raised TypeError: <lambda>() takes 1 positional argument"),
    ("Bound.host_plan = lambda self, batch: 3", f"host_plan returned the int 3; {HOST_PLAN}"),
    ("Bound.host_plan = lambda self, batch: [1, 2]", f"host_plan returned a list of 2; {HOST_PLAN}"),
    ("Bound.host_plan = lambda self, batch: np.arange(2)", f"host_plan returned int64 of shape (2,); {HOST_PLAN}"),
    (
        "Bound.host_plan = lambda self, batch: np.zeros((2, 2), np.int32)",
        f"host_plan returned int32 of shape (2, 2); {HOST_PLAN}",
    ),
    (
        "Bound.host_plan = lambda self, batch: batch.positions",
        "host_plan returned an array of 1 numbers; expected an array of 3 numbers, as at first",
    ),
    (
        "Bound.host_plan = lambda self, batch: batch.positions if len(batch.positions) > 1 else None",
        "host_plan returned None; expected an array of 3 numbers, as at first",
    ),
    (
        "def host_plan(self, batch):\n    batch.positions[0] = 1\nBound.host_plan = host_plan",
        "host_plan raised ValueError: assign",
    ),
    ("Bound.plan = fail", "plan raised ValueError: spoilt"),
    ("Bound.plan = lambda self, batch: None", "plan raised TypeError"),
    (
        "def plan(self, batch, host_plan):\n    batch.block_tables[:] = 0\nBound.plan = plan",
        "plan raised ValueError: assign",
    ),
    (
        "def plan(self, batch, host_plan):\n    batch.positions.sort()\nBound.plan = plan",
        "plan raised ValueError: ",
    ),
    ("after = lambda call: call.out", f"forward returned float32 of shape (3, 4, 16); {WRITES}"),
    ("after = lambda call: 1.0", f"forward returned the float 1.0; {WRITES}"),
    ("after = lambda call: (None,)", f"forward returned a tuple of 1; {WRITES}"),
    ("after = lambda call: call.plan.shape", "forward raised AttributeError: 'dict' object has no attribute 'shape'"),
    ("def after(call):\n    call.out[:] = call.query[:, 0]", "forward raised ValueError: could not broadcast"),
    ("Bound.forward = fail", "forward raised ValueError: spoilt"),
    ("Bound.forward = lambda self: None", "forward raised TypeError"),
    ("def after(call):\n    call.query[:] = 0", "forward raised ValueError: assign"),
    ("def after(call):\n    call.batch.token_ids[0] = 0", "forward raised ValueError: assign"),
    ("def after(call):\n    call.is_first = True", "forward raised FrozenInstanceError"),
    ("def after(call):\n    raise NotImplementedError", "forward raised NotImplementedError"),
    ("def after(call):\n    raise SystemExit(0)", "forward raised SystemExit"),
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
    "def forward(self, call):\n    out = call.out.copy()\n    self.inner.forward(replace(call, out=out))\n"
    "    call.out[...] = out.astype(float)\nBound.forward = forward",
    "Bound.host_plan = lambda self, batch: np.zeros(0, np.int32)",
    "def plan(self, batch, host_plan):\n    assert host_plan.tolist() == [len(batch.token_ids), 7]\n"
    "    return self.inner.plan(batch, None)\nBound.plan = plan\n"
    "Bound.host_plan = lambda self, batch: np.array([batch.num_tokens, 7], np.int32)",
]


@pytest.mark.parametrize("change", RIGHT)
def test_right_answers_of_other_forms_give_the_same_tokens(change: str, tiny: Path, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, ATTENTION, change)
    assert answer(tiny, plugins=[str(plugin)], attention={"name": "mine"}) == answer(tiny)


def test_reasons_why_not_are_shown_one_by_one(tiny: Path, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, ATTENTION, "Mine.supports = lambda self, spec: ['too small', 'too green']")
    text = complaint(tiny, plugins=[str(plugin)], attention={"name": "mine"})
    assert text == "attention 'mine' cannot serve this model here: too small; too green"


LATER = """
calls = 0
def after(call):
    global calls
    calls += 1
    return None if calls <= 4 else {result}
"""


@pytest.mark.parametrize("result", ["fail()", "0", "call.query[:, :1]"])
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
