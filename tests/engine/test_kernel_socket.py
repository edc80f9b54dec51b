"""One op of a device replaced by a file of the user's: what contains it is un-fused, and the tokens stay right."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tiny import write_checkpoint
from tests.testing.own_kernel import write_own_kernel
from tinyvllm.cli.main import main
from tinyvllm.devices.emulator.device import EmulatorDevice
from tinyvllm.errors import ConfigError, KernelError, PluginError
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams
from tinyvllm.start import build

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, logprobs=2)
CLEAR_MARGIN = 0.12
"""Log-probabilities further apart than this are told apart by bfloat16 here: what two ways to round may differ by."""
TINY: dict[str, Any] = {
    "dtype": "bfloat16",
    "skip_tokenizer_init": True,
    "max_model_len": 64,
    "cache": {"num_blocks_override": 32},
}
# Steps of one row, of few, and of more than the fused kernels take.
PROMPTS = [[3, 14, 15, 9, 26], [5, 35], list(range(40)), [7], [1, 1, 2, 3, 5], list(range(50, 20, -1))]


@pytest.fixture
def own_kernel(tmp_path: Path) -> Path:
    """The plugin of the documentation, beside its source."""
    return write_own_kernel(tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "llama")


def tokens(llm: LLM) -> list[tuple[list[int], int]]:
    """Of each prompt, and how many of them come before the first close decision: rounding may decide those."""
    found = []
    for out in llm.generate([{"prompt_token_ids": each} for each in PROMPTS], GREEDY, use_tqdm=False):
        best = [sorted(each.logprob for each in step.values()) for step in out.outputs[0].logprobs or ()]
        close = [i for i, logprobs in enumerate(best) if logprobs[-1] - logprobs[-2] < CLEAR_MARGIN]
        found.append((list(out.outputs[0].token_ids), close[0] if close else len(best)))
    return found


@functools.cache
def tokens_once(llm: LLM) -> list[tuple[list[int], int]]:
    """The same, of an engine that many are compared with."""
    return tokens(llm)


def assert_agree(one: LLM, other: LLM) -> None:
    """The same tokens wherever the decision is clear."""
    num_clear = 0
    for (ours, clear_here), (theirs, clear_there) in zip(tokens(one), tokens_once(other), strict=True):
        clear = min(clear_here, clear_there)
        assert ours[:clear] == theirs[:clear]
        num_clear += clear
    assert num_clear >= 8


def served(llm: LLM) -> dict[str, tuple[str, str]]:
    """Who serves each op, and why."""
    found = [re.fullmatch(r"op (\w+): (.*) \((.*)\)", line) for line in llm.report]
    return {each[1]: (each[2], each[3]) for each in found if each is not None}


@pytest.fixture(scope="module")
def fused(tiny: Path) -> LLM:
    return LLM(str(tiny), device="emulator", **TINY)


def test_the_kernel_of_the_documentation_answers_the_demos_questions(own_kernel: Path) -> None:
    llm = LLM(
        "demo", device="emulator", max_model_len=64, plugins=[str(own_kernel)], kernels={"rms_norm": "my_rms_norm"}
    )
    outputs = llm.generate(["12+7=", "sort 31425="], SamplingParams(temperature=0.0, max_tokens=8), use_tqdm=False)
    assert [out.outputs[0].text for out in outputs] == ["19", "12345"]


def test_replacing_a_part_un_fuses_what_contains_it_and_the_report_says_so(
    own_kernel: Path, tiny: Path, fused: LLM
) -> None:
    llm = LLM(str(tiny), device="emulator", plugins=[str(own_kernel)], kernels={"rms_norm": "my_rms_norm"}, **TINY)
    report = served(llm)
    assert report["rms_norm"] == ("my_rms_norm", "named in the configuration")
    assert report["rms_norm_gate_up_silu"] == ("rms_norm + linear + silu_mul", "rms_norm is replaced")
    assert report["rms_norm_qkv_rope_append"] == ("rms_norm + linear + rope_append", "rms_norm is replaced")
    assert report["lm_head_argmax"] == ("rms_norm_lm_head + argmax", "rms_norm is replaced")
    assert report["linear_residual"] == ("hopper", "the first that serves it")
    assert served(fused)["rms_norm_gate_up_silu"] == ("hopper", "the first that serves it")
    assert_agree(llm, fused)


def test_the_command_line_says_who_serves_what_where_kernels_were_chosen(
    own_kernel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_kernel.with_name("run.yaml")
    path.write_text(
        "model: demo\ndevice: emulator\nmax_model_len: 64\nplugins: [./my_rms_norm.py]\n"
        "kernels: {rms_norm: my_rms_norm}\nrun: {prompts: ['12+7='], sampling: {temperature: 0, max_tokens: 8}}\n"
    )
    assert main(["--config", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "\n19\n" in out
    assert "op rms_norm: my_rms_norm (named in the configuration)" in err
    assert "op rms_norm_gate_up_silu: rms_norm + linear + silu_mul (rms_norm is replaced)" in err


COUNTING = """
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin
from tinyvllm_kernels.nvrtc import NvrtcKernels

class Doubled(NvrtcKernels):
    '''The built-in kernels, each launched twice where that changes nothing.'''
    def bind(self, op, context):
        inner = super().bind(op, context)
        def twice(*arguments):
            inner(*arguments)
            if op not in ("add", "linear_residual"):
                inner(*arguments)
        return twice

@hookimpl
def register_kernels():
    return [Plugin("doubled", Doubled)]
"""


@pytest.mark.parametrize("op", [
    "embedding", "linear", "add", "rope_append", "silu_mul", "lm_head", "argmax", "rms_norm_qkv_rope_append",
    "linear_residual", "rms_norm_gate_up_silu", "rms_norm_lm_head",
    "lm_head_argmax",
])  # fmt: skip
def test_every_op_of_a_device_can_be_replaced(op: str, tiny: Path, fused: LLM, tmp_path: Path) -> None:
    plugin = tmp_path / "doubled.py"
    plugin.write_text(COUNTING)
    llm = LLM(str(tiny), device="emulator", plugins=[str(plugin)], kernels={op: "doubled"}, **TINY)
    assert served(llm)[op][0] == "doubled"
    assert_agree(llm, fused)


def test_the_parts_of_every_fused_op_together_give_the_same_tokens(tiny: Path, fused: LLM, tmp_path: Path) -> None:
    plugin = tmp_path / "doubled.py"
    plugin.write_text(COUNTING)
    everything = dict.fromkeys(("rms_norm", "linear", "add", "silu_mul", "lm_head", "argmax", "rope_append"), "doubled")
    llm = LLM(str(tiny), device="emulator", plugins=[str(plugin)], kernels=everything, **TINY)
    assert all(who != "nvrtc" for op, (who, _) in served(llm).items() if op in everything)
    assert_agree(llm, fused)


@pytest.mark.parametrize("changes", [
    {"model_type": "qwen2"},
    {"model_type": "qwen3"},
    {"model_type": "mistral", "sliding_window": 8},
])  # fmt: skip
def test_other_models_are_served_by_the_same_ops(changes: dict[str, Any], own_kernel: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", **changes)
    plain = LLM(str(folder), device="emulator", **TINY)
    own = LLM(str(folder), device="emulator", plugins=[str(own_kernel)], kernels={"rms_norm": "my_rms_norm"}, **TINY)
    assert_agree(own, plain)
    who, why = served(plain)["rms_norm_qkv_rope_append"]
    if changes["model_type"] == "qwen3":
        assert who == "rms_norm + linear + rope_append"
        assert "norms of their own" in why
    else:
        assert who == "nvrtc"


def refusal(folder: Path, kind: type[Exception], **sections: Any) -> str:
    with pytest.raises(kind) as caught:
        LLM(str(folder), device="emulator", **{**TINY, **sections})
    return str(caught.value)


def test_what_cannot_be_is_refused_by_name(tiny: Path, own_kernel: Path) -> None:
    message = refusal(tiny, PluginError, kernels={"rms_norm": "reference"})
    assert message.startswith("kernels.rms_norm: 'reference' cannot serve it: runs on the CPU, not on emulator")
    message = refusal(tiny, ConfigError, kernels={"rope": "reference"})
    assert "there is no op 'rope'; the ops are embedding, rms_norm" in message
    message = refusal(tiny, ConfigError, kernels={"rms_nrom": "reference"})
    assert "no op 'rms_nrom'; did you mean 'rms_norm'? the ops are" in message
    both = {"linear_residual": "nvrtc", "add": "nvrtc"}
    message = refusal(tiny, ConfigError, kernels=both)
    assert "kernels.add: nothing calls it, because linear_residual is replaced as a whole" in message
    with pytest.raises(PluginError, match="runs on cuda and the emulator, not on the CPU"):
        LLM(str(tiny), device="cpu", plugins=[str(own_kernel)], kernels={"rms_norm": "my_rms_norm"}, **TINY)


def test_a_source_that_does_not_compile_is_refused_at_the_start_with_file_and_line(
    tiny: Path, own_kernel: Path
) -> None:
    source = own_kernel.with_suffix(".cu")
    source.write_text(source.read_text().replace("block_sum(squares", "block_sum(squared"))
    message = refusal(tiny, KernelError, plugins=[str(own_kernel)], kernels={"rms_norm": "my_rms_norm"})
    assert "my_rms_norm.cu" in message
    assert "squared" in message


def test_a_wrong_kernel_is_wrong(tiny: Path, own_kernel: Path, fused: LLM) -> None:
    """The replacement is what runs: without the weight the tokens differ."""
    source = own_kernel.with_suffix(".cu")
    source.write_text(source.read_text().replace("* to_float(weight[i])", "* -to_float(weight[i])"))
    llm = LLM(str(tiny), device="emulator", plugins=[str(own_kernel)], kernels={"rms_norm": "my_rms_norm"}, **TINY)
    with pytest.raises(AssertionError):
        assert_agree(llm, fused)


SAMPLER = """
import numpy as np
from tinyvllm.batch import Sampled
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin

class Seven:
    def __init__(self, context):
        pass
    def sample(self, call):
        assert call.logits.dtype == np.float32
        return Sampled(np.full(len(call.logits), 7, np.int32))

@hookimpl
def register_samplers():
    return [Plugin("seven", Seven)]
"""


def test_a_foreign_sampler_chooses_on_a_device_as_well(tiny: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "seven.py"
    plugin.write_text(SAMPLER)
    llm = LLM(str(tiny), device="emulator", plugins=[str(plugin)], sampler={"name": "seven"}, **TINY)
    (out,) = llm.generate({"prompt_token_ids": [3, 4]}, SamplingParams(max_tokens=4), use_tqdm=False)
    assert list(out.outputs[0].token_ids) == [7] * 4


WITH_OPTIONS = """
from pathlib import Path

from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Options
from tinyvllm.ops.cuda_kernel import cuda_kernel

class RmsNormOptions(Options):
    threads: int = 256
    factor: int = 1

def rms_norm(kernel, out, x, norm):
    kernel.launch("my_rms_norm", (x.shape[0], 1, 1), kernel.options.threads,
                  (out, x, norm.weight, x.shape[1], norm.eps))

def supports(spec):
    return [] if spec.model.hidden_size < 1000 else ["rows are too long for it"]

@hookimpl
def register_kernels():
    return [cuda_kernel("tuned", "rms_norm", Path(__file__).with_name("my_rms_norm.cu"), rms_norm,
                        options=RmsNormOptions, supports=supports,
                        defines=lambda spec, options: {"FACTOR": options.factor, "SIZE": spec.model.hidden_size})]
"""


def test_options_reach_the_launch_and_the_source(tiny: Path, fused: LLM, own_kernel: Path, tmp_path: Path) -> None:
    source = own_kernel.with_suffix(".cu")
    source.write_text(source.read_text().replace("* to_float(weight[i])", "* to_float(weight[i]) * FACTOR"))
    plugin = tmp_path / "tuned.py"
    plugin.write_text(WITH_OPTIONS)

    def engine(**options: int) -> LLM:
        section = {"rms_norm": {"name": "tuned", **options}}
        return LLM(str(tiny), device="emulator", plugins=[str(plugin)], kernels=section, **TINY)

    assert_agree(engine(threads=64), fused)
    with pytest.raises(AssertionError):
        assert_agree(engine(factor=-1), fused)
    with pytest.raises(PluginError, match=r"kernel 'tuned' of .*: rms_norm raised KernelError: .* block.x is 1025"):
        tokens(engine(threads=1025))
    assert "thread" in refusal(
        tiny, ConfigError, plugins=[str(plugin)], kernels={"rms_norm": {"name": "tuned", "thread": 64}}
    )


HOPPER_OPS = ("rms_norm_gate_up_silu", "linear_residual")


def test_products_made_for_hopper_give_the_tokens_of_the_librarys(tiny: Path, fused: LLM) -> None:
    """Prompts of more than 16 and of more than 32 tokens in a step reach them."""
    library = LLM(str(tiny), device="emulator", kernels=dict.fromkeys(HOPPER_OPS, "nvrtc"), **TINY)
    assert_agree(library, fused)
    assert {served(library)[op] for op in HOPPER_OPS} == {("nvrtc", "named in the configuration")}
    assert {served(fused)[op] for op in HOPPER_OPS} == {("hopper", "the first that serves it")}


def test_products_made_for_hopper_are_refused_where_they_cannot_keep_a_promise(tiny: Path) -> None:
    kernels = dict.fromkeys(HOPPER_OPS, "hopper")
    assert "another order" in refusal(tiny, PluginError, kernels=kernels, batch_invariant=True)
    invariant = LLM(str(tiny), device="emulator", batch_invariant=True, **TINY)
    assert {served(invariant)[op][0] for op in HOPPER_OPS} == {"nvrtc"}


def test_products_made_for_hopper_serve_no_other_card(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "open_device", lambda *_, **__: EmulatorDevice(arch=80))
    ampere = LLM(str(tiny), device="emulator", **TINY)
    assert {served(ampere)[op][0] for op in HOPPER_OPS} == {"nvrtc"}
    message = refusal(tiny, PluginError, kernels={"linear_residual": "hopper"})
    assert "'hopper' cannot serve it: made of instructions of sm_90, not sm_80" in message
