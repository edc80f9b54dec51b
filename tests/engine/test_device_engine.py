"""The whole engine on the emulator against the CPU: launch code, grids, strides, graphs and buffers, with no GPU."""

from __future__ import annotations

from tinyvllm import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8)


def test_the_first_request_alone_is_answered_right() -> None:
    """Its block table is block 0, as a table that was never uploaded would be."""
    llm = LLM("demo", device="emulator", max_model_len=64)
    assert llm.generate(["12+7="], GREEDY)[0].outputs[0].text == "19"
