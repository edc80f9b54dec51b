"""Kernels that want weights stored in another way are asked for each layer, and given what all of its ops can read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tiny import write_checkpoint
from tests.sockets.plugins import answer
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams

DOUBLED = """
from dataclasses import replace

from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin

ASKED, CALLED = [], set()

class Doubled:
    '''Products by weights twice as large as the checkpoint's: exact, and wrong if anybody else reads them.'''
    def __init__(self, context):
        ASKED.clear()
        CALLED.clear()
    def ops(self):
        return ["linear", "lm_head"]
    def supports(self, op, spec):
        return [] if spec.linear is None or spec.linear.scheme in {schemes} else ["cannot read " + spec.linear.scheme]
    def prepare(self, op, layer):
        ASKED.append((op, layer.in_features, layer.out_features))
        return replace(layer, weight=2 * layer.weight, scheme="doubled")
    def bind(self, op, context):
        def product(out, x, layer):
            assert layer.scheme == context.linear.scheme
            CALLED.add((op, layer.scheme))
            out[...] = x @ layer.weight.T / (2 if layer.scheme == "doubled" else 1)
        return product

@hookimpl
def register_kernels():
    return [Plugin("doubled", Doubled)]
"""

TWIN = """
from dataclasses import replace

from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin
from tinyvllm_kernels.nvrtc import NvrtcKernels

ASKED, CALLED = [], set()

class Twin(NvrtcKernels):
    '''The built-in kernels on layers of a scheme of their own, which is the checkpoint's by another name.'''
    def __init__(self, context):
        super().__init__(context)
        ASKED.clear()
        CALLED.clear()
    def supports(self, op, spec):
        if spec.linear is not None and spec.linear.scheme == "twin":
            spec = replace(spec, linear=replace(spec.linear, scheme="rows"))
        return super().supports(op, spec)
    def prepare(self, op, layer):
        ASKED.append((op, layer.in_features, layer.out_features))
        return replace(layer, scheme="twin")
    def bind(self, op, context):
        inner, scheme = super().bind(op, context), context.linear.scheme
        def called(*arguments):
            CALLED.add((op, scheme))
            inner(*arguments)
        return called

@hookimpl
def register_kernels():
    return [Plugin("twin", Twin)]
"""

QKV, OUTPUT, GATE_UP, DOWN, HEAD = (48, 128), (64, 48), (48, 160), (80, 48), (48, 61)


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    forget()
    yield tmp_path / "mine.py"
    forget()


def forget() -> None:
    """Drop the plugin's module, so that there is one at a time."""
    for name in [name for name in sys.modules if name.startswith("tinyvllm_local_mine_")]:
        del sys.modules[name]


def noted(name: str) -> Any:
    """What the plugin noted since it was created last."""
    (module,) = (each for key, each in sys.modules.items() if key.startswith("tinyvllm_local_mine_"))
    return getattr(module, name)


def reported(llm: LLM) -> set[str]:
    """What the start-up report says of ops that were named in the configuration and have weights prepared."""
    return {line for line in llm.report if ", weights as " in line and not line.endswith("(the first that serves it)")}


def on_cpu(model: Path, plugin: Path, op: str, schemes: str = "('rows', 'doubled')") -> tuple[LLM, list[int]]:
    plugin.write_text(DOUBLED.format(schemes=schemes))
    llm = LLM(
        str(model), device="cpu", skip_tokenizer_init=True, max_model_len=64, plugins=[str(plugin)],
        kernels={op: "doubled"},
    )  # fmt: skip
    params = SamplingParams(temperature=0.0, max_tokens=4)
    (out,) = llm.generate([{"prompt_token_ids": [3, 14, 15]}], params, use_tqdm=False)
    return llm, list(out.outputs[0].token_ids)


def test_a_kernel_is_asked_for_every_layer_and_its_scheme_is_reported(tiny: Path, plugin: Path) -> None:
    llm, tokens = on_cpu(tiny, plugin, "linear")
    assert sorted(noted("ASKED")) == sorted([("linear", *sizes) for sizes in (QKV, OUTPUT, GATE_UP, DOWN)] * 2)
    assert noted("CALLED") == {("linear", "doubled")}
    assert reported(llm) == {"op linear: doubled, weights as doubled (named in the configuration)"}
    assert tokens == answer(tiny)


def test_a_head_of_its_own_is_prepared_and_a_tied_one_is_not(tiny: Path, plugin: Path, tmp_path: Path) -> None:
    """A tied head is the embedding table, of which rows are looked up too."""
    llm, tokens = on_cpu(tiny, plugin, "lm_head")
    assert noted("ASKED") == [("lm_head", *HEAD)]
    assert noted("CALLED") == {("lm_head", "doubled")}
    assert tokens == answer(tiny)
    tied = write_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    llm, tokens = on_cpu(tied, plugin, "lm_head")
    assert noted("ASKED") == []
    assert noted("CALLED") == {("lm_head", "rows")}
    assert "op lm_head: doubled (named in the configuration)" in llm.report
    assert tokens == answer(tied)


def test_a_kernel_that_cannot_read_what_it_prepared_gets_the_plain_layer(tiny: Path, plugin: Path) -> None:
    llm, tokens = on_cpu(tiny, plugin, "linear", schemes="('rows',)")
    assert len(noted("ASKED")) == 8
    assert noted("CALLED") == {("linear", "rows")}
    assert reported(llm) == set()
    assert tokens == answer(tiny)


def on_emulator(model: Path, plugin: Path, *ops: str) -> tuple[LLM, list[int]]:
    """An engine whose fused kernels serve any step: they call no other op, which could not read their layers."""
    plugin.write_text(TWIN)
    llm = LLM(
        str(model), device="emulator", dtype="bfloat16", skip_tokenizer_init=True, max_model_len=64,
        cache={"num_blocks_override": 8}, plugins=[str(plugin)], kernels=dict.fromkeys(ops, "twin"),
        batch_invariant=True, scheduler={"max_num_seqs": 8, "max_num_batched_tokens": 64},
    )  # fmt: skip
    params = SamplingParams(temperature=0.0, max_tokens=3)
    (out,) = llm.generate([{"prompt_token_ids": [3, 14, 15]}], params, use_tqdm=False)
    return llm, list(out.outputs[0].token_ids)


def test_a_fused_kernel_on_a_gpu_is_asked_for_the_layers_of_its_op(tiny: Path, plugin: Path) -> None:
    llm, tokens = on_emulator(tiny, plugin, "linear_residual")
    assert sorted(noted("ASKED")) == sorted([("linear_residual", *sizes) for sizes in (OUTPUT, DOWN)] * 2)
    assert noted("CALLED") == {("linear_residual", "twin")}
    assert reported(llm) == {"op linear_residual: twin, weights as twin (named in the configuration)"}
    assert tokens == on_emulator(tiny, plugin)[1]


def test_a_layer_that_another_of_its_ops_could_not_read_stays_plain(tiny: Path, plugin: Path) -> None:
    """The head is read by two ops: the fused one for a single greedy row, and the logits of all other steps."""
    llm, tokens = on_emulator(tiny, plugin, "lm_head_argmax")
    assert noted("ASKED") == [("lm_head_argmax", *HEAD)]
    assert noted("CALLED") == {("lm_head_argmax", "rows")}
    assert reported(llm) == set()
    both, as_twins = on_emulator(tiny, plugin, "lm_head_argmax", "rms_norm_lm_head")
    assert reported(both) == {
        f"op {op}: twin, weights as twin (named in the configuration)" for op in ("lm_head_argmax", "rms_norm_lm_head")
    }
    assert noted("CALLED") == {("lm_head_argmax", "twin")}
    assert tokens == as_twins
