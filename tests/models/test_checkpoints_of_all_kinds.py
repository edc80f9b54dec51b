"""Whole engines on checkpoints whose files say unusual things."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.engine.tiny import write_checkpoint
from tests.golden.cases import CASES
from tests.golden.cases import load as load_golden
from tinyvllm import LLM, SamplingParams
from tinyvllm.errors import CapacityError, ConfigError, LoadError

PROMPT = {"prompt_token_ids": [5, 6, 7]}
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def tokens(llm: LLM) -> list[int]:
    return llm.generate(PROMPT, GREEDY)[0].outputs[0].token_ids


def load(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), skip_tokenizer_init=True, device="cpu", **options)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.5}, 160),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 4.0}, 256),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}, 64),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 64),
        (None, 64),
    ],
)
def test_a_rope_that_stretches_positions_extends_the_longest_sequence(
    tmp_path: Path, rope: dict[str, Any] | None, limit: int
) -> None:
    folder = write_checkpoint(tmp_path, rope_scaling=rope, max_position_embeddings=64)
    llm = load(folder)
    output = llm.generate({"prompt_token_ids": [1] * (limit - 2)}, SamplingParams(max_tokens=2, ignore_eos=True))[0]
    assert len(output.outputs[0].token_ids) == 2
    assert len(tokens(load(folder, max_model_len=limit))) == 8
    included = "" if rope is None else ", its .* RoPE included"
    with pytest.raises(
        ConfigError, match=rf"max_model_len is {limit + 1}.*max_position_embeddings = {limit}{included}"
    ):
        load(folder, max_model_len=limit + 1)


@pytest.mark.parametrize("word", ["half", "float", "auto", "float64", "torch.bfloat16", "double", None])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_every_word_for_a_dtype_is_understood(tmp_path: Path, word: str | None, dtype: Any) -> None:
    assert len(tokens(load(write_checkpoint(tmp_path, torch_dtype=word), dtype=dtype))) == 8


def test_weights_in_float64_give_the_tokens_of_float32(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    expected = tokens(load(folder))
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.astype(np.float64) for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert tokens(load(folder)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-yarn", "llama-longrope-long", "internlm3-dynamic-short"])
def test_a_device_rotates_as_transformers_does(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    golden = load_golden(case.expected)[1]
    limits: Any = {"max_num_seqs": 2, "max_num_batched_tokens": 64}
    llm = LLM(str(case.checkpoint), skip_tokenizer_init=True, device="emulator", dtype="bfloat16",
              max_model_len=case.max_model_len, scheduler=limits)  # fmt: skip
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=1)
    completion = llm.generate({"prompt_token_ids": golden.prompt.tolist()}, params)[0].outputs[0]
    assert completion.token_ids == golden.greedy[:4].tolist()
    assert completion.cumulative_logprob == pytest.approx(golden.top_two[:4, 0].sum(), abs=0.1)  # bfloat16


def test_names_of_tensors_that_are_not_used_are_escaped_in_the_report(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "evil\x1b[31m\x00": np.ones(2, np.float32)}, folder / "model.safetensors")
    llm = load(folder)
    assert r"checkpoint: 1 tensors not used: 'evil\x1b[31m\x00'" in llm.report
    assert all(line.isprintable() for line in llm.report)


def test_sizes_that_no_memory_holds_are_a_capacity_error_with_the_numbers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for changes in (
        {"hidden_size": 2**31},
        {"intermediate_size": 2**31},
        {"vocab_size": 2**31},
        {"hidden_size": 2**40},
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CapacityError, match=r"no room for the weights: \d+ numbers in \d+ tensors take \d+ bytes"):
            load(folder, load_format="dummy")


def test_a_context_of_any_length_costs_what_the_cache_can_hold(tmp_path: Path) -> None:
    import tracemalloc

    folder = write_checkpoint(tmp_path, max_position_embeddings=1_024_000)
    tracemalloc.start()
    llm = load(folder, cache={"num_blocks_override": 8})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20  # of which the block tables of 64 sequences are 16 MB
    assert len(tokens(llm)) == 8
    write_checkpoint(tmp_path, max_position_embeddings=2**31 - 1)
    with pytest.raises(CapacityError, match=r"would be 2147483647 tokens .* at most 16777216 are served"):
        load(folder)
    assert len(tokens(load(folder, max_model_len=100))) == 8


def test_sampling_defaults_that_cannot_be_used_do_not_forbid_the_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, eos_token_id=3000)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "top_p": 0, "max_new_tokens": 5}))
    llm = load(folder)
    assert llm.get_default_sampling_params().max_tokens == 5
    assert load(folder, generation_config="vllm").get_default_sampling_params() == SamplingParams()


def test_a_checkpoint_file_that_is_no_file_is_a_load_error(tmp_path: Path) -> None:
    import os

    for name in ("config.json", "generation_config.json"):
        folder = write_checkpoint(tmp_path / name)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)  # opening one would wait for ever
        with pytest.raises(LoadError, match="is no regular file"):
            load(folder)
        (folder / name).unlink()
        with (folder / name).open("wb") as file:
            file.truncate(3 * 2**30)  # sparse: no memory for it
        with pytest.raises(LoadError, match="has 3221225472 bytes, at most 8388608 are read"):
            load(folder)
