"""The attention of the documentation, a ``.cu`` file and its launcher, inside an engine on the emulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_kernel_socket import TINY, assert_agree, tokens
from tests.engine.tiny import write_checkpoint
from tests.testing.own_kernel import write_own_attention
from tinyvllm.errors import KernelError, PluginError
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams
from tinyvllm.start import model
from tinyvllm.testing import check_op

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
OWN: dict[str, Any] = {"attention": {"name": "my_attention"}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def built_in(tiny: Path) -> LLM:
    return LLM(str(tiny), device="emulator", **TINY)


def engine(folder: Path, plugin: Path, **sections: Any) -> LLM:
    return LLM(str(folder), device="emulator", plugins=[str(plugin)], **OWN, **{**TINY, **sections})


def test_it_answers_the_demos_questions(tmp_path: Path) -> None:
    llm = LLM("demo", device="emulator", max_model_len=64, plugins=[str(write_own_attention(tmp_path))], **OWN)
    outputs = llm.generate(["12+7=", "sort 31425="], GREEDY, use_tqdm=False)
    assert [out.outputs[0].text for out in outputs] == ["19", "12345"]


@pytest.mark.parametrize("sections", [{}, {"enforce_eager": True}, {"scheduler": {"max_num_batched_tokens": 16}}])
def test_it_gives_the_tokens_of_the_built_in_one(
    sections: dict[str, Any], tiny: Path, built_in: LLM, tmp_path: Path
) -> None:
    """Prompts of many lengths in one step, some in chunks; steps of prompts and of decodes in graphs, twice each."""
    llm = engine(tiny, write_own_attention(tmp_path), **sections)
    assert_agree(llm, built_in)
    assert_agree(llm, built_in)


def test_a_sliding_window_reaches_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", model_type="mistral", sliding_window=8)
    assert_agree(engine(folder, write_own_attention(tmp_path)), LLM(str(folder), device="emulator", **TINY))


def test_steps_of_padding_before_the_first_request_do_no_harm(
    tiny: Path, built_in: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU starts: the host plan of padding names no sequence, whose blocks would lie nowhere."""
    monkeypatch.setattr(model, "prepares_early", lambda _: True)
    llm = engine(tiny, write_own_attention(tmp_path), scheduler={"max_num_seqs": 8, "max_num_batched_tokens": 40})
    assert any(line.startswith("graphs: ") for line in llm.report)
    assert_agree(llm, built_in)


WRONG = {
    "the host plan of another step": ("return sequence_of\n", "return np.roll(sequence_of, 1)\n"),
    "a host plan that is not read": ("blocks = block_tables + size_t(sequence_of[token])", "blocks = block_tables + 0"),
    "no scale": (", scratch) * scale", ", scratch)"),
    "its own position unseen": ("position <= last", "position < last"),
    "another head's keys": ("* num_kv_heads + kv_head;", "* num_kv_heads;"),
}


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_one_is_wrong(change: str, tiny: Path, built_in: LLM, tmp_path: Path) -> None:
    llm = engine(tiny, write_own_attention(tmp_path, WRONG[change]))
    with pytest.raises((AssertionError, PluginError)):
        assert_agree(llm, built_in)


def test_a_host_plan_that_grows_is_refused_and_the_engine_goes_on(tiny: Path, built_in: LLM, tmp_path: Path) -> None:
    change = ("return sequence_of\n", "return sequence_of[:-1] if batch.num_tokens == 40 else sequence_of\n")
    llm = engine(tiny, write_own_attention(tmp_path, change), scheduler={"max_num_batched_tokens": 64})
    prompt = {"prompt_token_ids": list(range(40))}
    with pytest.raises(
        PluginError, match=r"host_plan returned an array of 63 numbers; expected an array of 64 numbers"
    ):
        llm.generate(prompt, GREEDY, use_tqdm=False)
    short = {"prompt_token_ids": [3, 14, 15]}
    (ours,), (theirs,) = (each.generate(short, GREEDY, use_tqdm=False) for each in (llm, built_in))
    assert ours.outputs[0].token_ids[0] == theirs.outputs[0].token_ids[0]


def test_a_kernel_that_fails_when_it_runs_names_the_plugin_that_launched_it(tiny: Path, tmp_path: Path) -> None:
    plugin = write_own_attention(tmp_path, ("if (is_inside) out[row]", "device_assert(last < 20); out[row]"))
    llm = engine(tiny, plugin)
    with pytest.raises(PluginError, match=rf"^attention 'my_attention' of local plugin {plugin}: .*device_assert"):
        tokens(llm)


def test_a_source_that_does_not_compile_is_refused_at_the_start_with_file_and_line(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"my_attention\.cu.*lowest"):
        engine(tiny, write_own_attention(tmp_path, ("const float weight = expf(score - next)", "lowest = 0")))


def test_it_is_refused_where_it_cannot_run(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="attention 'my_attention' cannot serve this model here: is a CUDA source"):
        LLM(str(tiny), device="cpu", plugins=[str(write_own_attention(tmp_path))], **OWN, **TINY)


def test_it_is_its_definition_whatever_the_step(tmp_path: Path) -> None:
    (outcome,) = check_op("attention", device="emulator", plugins=[write_own_attention(tmp_path)], num_cases=12)
    assert outcome.implementation == "my_attention"
    assert outcome.is_right, outcome.failure
