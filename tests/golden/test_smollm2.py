"""A trained model that people know, where its folder is there (``tests/golden/make_smollm2.py`` makes it)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.golden.make_smollm2 import NUM_TOKENS, QUESTION
from tinyvllm import LLM, SamplingParams

FOLDER = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER.exists(), reason=f"no {FOLDER.name} in models/")]


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_the_capital_of_france_is_paris(device: str) -> None:
    dtype = "float32" if device == "cpu" else "bfloat16"
    llm = LLM(str(FOLDER), device=device, dtype=dtype, max_model_len=96, scheduler={"max_num_seqs": 2})
    params = SamplingParams(temperature=0, max_tokens=7)
    (output,) = llm.chat([{"role": "user", "content": QUESTION}], params, use_tqdm=False)
    assert output.outputs[0].text.startswith("The capital of France is Paris")


def test_log_probabilities_are_those_of_transformers_over_400_tokens() -> None:
    expected = np.load(FOLDER / "expected.npz")
    tokens = expected["tokens"].tolist()
    assert len(tokens) >= NUM_TOKENS
    llm = LLM(str(FOLDER), device="cpu", dtype="float32", max_model_len=len(tokens) + 1)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate({"prompt_token_ids": tokens}, params, use_tqdm=False)
    assert output.prompt_logprobs is not None
    pairs = zip(output.prompt_logprobs[1:], tokens[1:], strict=True)
    ours = np.array([row[token].logprob for row, token in pairs if row is not None])
    worst = float(np.abs(ours - expected["logprobs"]).max())
    print(f"worst log-probability error: {worst:.2e}")
    assert worst < 1e-4
