"""Plugins that obey their socket's rules, as files, with one thing changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinyvllm.errors import PluginError
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams

LOADER = """
import ml_dtypes
import numpy as np

from tinyvllm.errors import LoadError
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin, TensorMeta

class Tensors:
    def __init__(self, call):
        self.call = call
    def names(self):
        return list(self.call.expected)
    def meta(self, name):
        return TensorMeta(self.call.expected[name], "F32")
    def read(self, name):
        return np.full(self.call.expected[name], 0.01, np.float32)
    def close(self):
        pass

class Mine:
    def __init__(self, context):
        pass
    def open(self, call):
        return Tensors(call)

def fail(*arguments):
    raise ValueError("spoilt")

{change}

@hookimpl
def register_loaders():
    return [Plugin("mine", Mine)]
"""

ATTENTION = """
from dataclasses import replace

import numpy as np

from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin
from tinyvllm_attention.paged import PagedAttention

class Bound:
    def __init__(self, inner):
        self.inner = inner
    def host_plan(self, batch):
        return None
    def plan(self, batch, host_plan):
        return self.inner.plan(batch, None)
    def forward(self, call):
        self.inner.forward(call)
        return after(call)

class Mine(PagedAttention):
    def bind(self, context):
        return Bound(super().bind(context))

after = lambda call: None

def fail(*arguments):
    raise ValueError("spoilt")

{change}

@hookimpl
def register_attention():
    return [Plugin("mine", Mine)]
"""

KERNEL = """
from dataclasses import replace

import numpy as np

from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin
from tinyvllm.ops.catalogue import OPS

OP = "{op}"

class Mine:
    def __init__(self, context):
        pass
    def ops(self):
        return [OP]
    def supports(self, op, spec):
        return []
    def bind(self, op, context):
        inner = OPS[op].compose(context) if OPS[op].compose else OPS[op].definition
        def mine(*arguments):
            inner(*arguments)
            return after(*arguments)
        return mine

after = lambda *arguments: None

def fail(*arguments):
    raise ValueError("spoilt")

{change}

@hookimpl
def register_kernels():
    return [Plugin("mine", Mine)]
"""


def write_plugin(folder: Path, template: str, change: str, **words: str) -> Path:
    """``mine.py`` in ``folder``: the plugin ``mine`` of a template, with ``change`` made to its classes."""
    path = folder / "mine.py"
    path.write_text(template.format(change=change, **words))
    return path


def answer(model: Path, **sections: Any) -> list[int]:
    """Tokens that an engine on the CPU gives for a prompt of three."""
    llm = LLM(str(model), device="cpu", skip_tokenizer_init=True, max_model_len=64, **sections)
    params = SamplingParams(temperature=0.0, max_tokens=4)
    (out,) = llm.generate([{"prompt_token_ids": [3, 14, 15]}], params, use_tqdm=False)
    return list(out.outputs[0].token_ids)


def complaint(model: Path, **sections: Any) -> str:
    """What such an engine says of the plugin, when it starts or when it answers."""
    with pytest.raises(PluginError) as caught:
        answer(model, **sections)
    return str(caught.value)
