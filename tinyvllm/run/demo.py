"""An engine as the demo checkpoint's verification wants it: prompts in, greedy text out."""

from __future__ import annotations

from tinyvllm.config import Resolved
from tinyvllm.demo.verify import Complete
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams


def completer(resolved: Resolved) -> Complete:
    """A function that completes prompts greedily with the model of ``resolved``, loaded once."""
    llm = LLM.from_config(resolved)

    def complete(prompts: list[str], max_tokens: int, stop: list[str]) -> list[str]:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, stop=stop)
        return [output.outputs[0].text for output in llm.generate(prompts, params)]

    return complete
