"""Ops that a configuration names a kernel for: each is called, or refused."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_kernel_socket import SAMPLER
from tests.testing.own_kernel import write_own_kernel
from tinyvllm.errors import ConfigError
from tinyvllm.llm import LLM
from tinyvllm.ops.catalogue import OPS
from tinyvllm.request import SamplingParams

COUNTING = """
from collections import Counter

from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin
from tinyvllm.ops.catalogue import OPS

CALLS = Counter()

class Counting:
    '''Every op of the CPU, by its definition; of a fused one what its parts are here.'''
    def __init__(self, context):
        CALLS.clear()
    def ops(self):
        return list(OPS)
    def supports(self, op, spec):
        return []
    def bind(self, op, context):
        compose = OPS[op].compose
        inner = compose(context) if compose else OPS[op].definition
        def counted(*arguments):
            CALLS[op] += 1
            return inner(*arguments)
        return counted

@hookimpl
def register_kernels():
    return [Plugin("counting", Counting)]
"""
OF_OTHER_FAMILIES = ("gelu_mul", "scale", "norm_columns")
"""Ops that a Llama never asks for."""
ON_CPU = [name for name in OPS if name not in ("argmax", "lm_head_argmax", *OF_OTHER_FAMILIES)]
"""What the tiny Llama calls. A sampler of the CPU is given logits: nothing calls `argmax` nor `lm_head_argmax`."""
WHOLES = [op.name for op in OPS.values() if op.is_fused and op.name in ON_CPU]
PROMPT = [{"prompt_token_ids": [3, 14, 15]}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=3)


def engine(model: Path, plugin: Path, device: str, kernels: dict[str, str], **sections: Any) -> LLM:
    dtype = "float32" if device == "cpu" else "bfloat16"
    return LLM(
        str(model), device=device, dtype=dtype, skip_tokenizer_init=True, max_model_len=64,
        cache={"num_blocks_override": 8}, plugins=[str(plugin)], kernels=kernels, **sections,
    )  # fmt: skip


def served_by(llm: LLM, name: str) -> set[str]:
    """The ops that the report says a plugin serves."""
    return {found[1] for line in llm.report if (found := re.match(rf"op (\w+): {name} ", line))}


def calls() -> Counter[str]:
    """How often each op of the counting plugin was called since it was created last."""
    (module,) = (each for name, each in sys.modules.items() if name.startswith("tinyvllm_local_counting_"))
    return module.CALLS  # type: ignore[no-any-return]


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "counting.py"
    path.write_text(COUNTING)
    yield path
    for name in [name for name in sys.modules if name.startswith("tinyvllm_local_counting_")]:
        del sys.modules[name]


@pytest.mark.parametrize("named", [*([op] for op in ON_CPU), ["rms_norm", "rms_norm_gate_up_silu"], WHOLES])
def test_what_the_report_says_that_a_plugin_serves_is_called(named: list[str], counting: Path, tiny: Path) -> None:
    llm = engine(tiny, counting, "cpu", dict.fromkeys(named, "counting"))
    llm.generate(PROMPT, GREEDY, use_tqdm=False)
    assert served_by(llm, "counting") == set(named) == {op for op, number in calls().items() if number}


@pytest.mark.parametrize("part", ["rms_norm", "linear", "silu_mul", "add", "rope_append", "lm_head"])
def test_a_part_of_wholes_that_are_all_replaced_is_refused(part: str, counting: Path, tiny: Path) -> None:
    """The wholes ask for it while they are bound, which is no reason to say that it serves."""
    with pytest.raises(ConfigError) as caught:
        engine(tiny, counting, "cpu", dict.fromkeys([part, *WHOLES], "counting"))
    text = str(caught.value)
    assert re.search(rf"kernels\.{part}: nothing calls it, because rms_norm\S*.* replaced as a whole; leave", text) or (
        f"kernels.{part}: nothing calls it, because linear_residual is replaced as a whole; leave {part} out" in text
    )


def test_a_part_is_refused_whoever_serves_the_wholes(tiny: Path, tmp_path: Path) -> None:
    wholes = ["rms_norm_gate_up_silu", "rms_norm_qkv_rope_append", "rms_norm_lm_head", "lm_head_argmax"]
    kernels = {"rms_norm": "my_rms_norm", **dict.fromkeys(wholes, "nvrtc")}
    with pytest.raises(
        ConfigError, match=r"kernels\.rms_norm: nothing calls it, because .*lm_head_argmax are replaced"
    ):
        engine(tiny, write_own_kernel(tmp_path), "emulator", kernels)
    del kernels["rms_norm_lm_head"]
    llm = engine(tiny, write_own_kernel(tmp_path), "emulator", kernels)
    assert served_by(llm, "my_rms_norm") == {"rms_norm"}
    assert served_by(llm, "nvrtc") >= {"rms_norm_gate_up_silu", "rms_norm_qkv_rope_append", "lm_head_argmax"}


@pytest.mark.parametrize("op", ["argmax", "lm_head_argmax"])
def test_an_op_that_a_sampler_on_the_host_leaves_without_work_is_refused(op: str, tiny: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "seven.py"
    plugin.write_text(SAMPLER)
    message = rf"kernels\.{op}: nothing calls it, nor anything that contains it, with this model, device and sampler; "
    with pytest.raises(ConfigError, match=message):
        engine(tiny, plugin, "emulator", {op: "nvrtc"}, sampler={"name": "seven"})


def test_ops_that_no_step_of_this_engine_calls_are_not_in_the_report(tiny: Path, tmp_path: Path) -> None:
    """With batch_invariant the fused kernels take any number of rows: their parts have no work."""
    llm = engine(
        tiny, write_own_kernel(tmp_path), "emulator", {}, batch_invariant=True,
        scheduler={"max_num_seqs": 8, "max_num_batched_tokens": 64},
    )  # fmt: skip
    assert served_by(llm, "nvrtc") == {
        "embedding", "rms_norm_qkv_rope_append", "linear_residual",
        "rms_norm_gate_up_silu", "rms_norm_lm_head", "lm_head_argmax",
    }  # fmt: skip
