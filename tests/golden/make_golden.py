"""Writes ``checkpoints/`` and ``expected/``: random checkpoints and what transformers answers on them.

Development only: ``python -m tests.golden.make_golden`` from the repository's root, with torch and transformers
installed. The committed files were written by torch 2.13.0 and transformers 5.23.0 (those of Ministral, Seed-OSS,
InternLM3, IQuest-Coder, YaRN, LongRoPE and dynamic RoPE, and the two JSON files, by 5.24.0); the weights depend on
NumPy's generator alone, the answers on the rounding of torch. Names given as arguments write these cases only;
``defaults`` and ``ropes`` are the files with the configuration classes' defaults and with frequencies.

Every case is checked before it is written to be worth having: mistakes that an engine could make (``MUTANTS``, and
config values misread) must move its log-probabilities by ``NOTICEABLE``, hundreds of tolerances.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .cases import CASES, Golden, save
from .config_oracle import write_defaults, write_ropes
from .oracle import (
    Model,
    Spec,
    adjacent_pair_rope,
    answer,
    hf,
    logprobs,
    old_spelling,
    oldest_spelling,
    read_checkpoint,
    unscaled_scores,
    write_checkpoint,
    wrong_head_groups,
)

NOTICEABLE = 0.2  # a mutant's largest change of a log-probability; 200 times the tolerance of the comparison
DECISIVE = 5e-3  # least margin between the top two at every greedy step, five times that tolerance
MIN_DISTINCT = 20  # different tokens among the greedy ones
MAX_PERIOD = 12  # a continuation that ends in a cycle this short is not taken

LENGTHS = (1, 19, 90)  # one token; more than one block of 16; more than one attention tile of 64
BEYOND = (5, 41, 150)  # for RoPE scaling with an original length of 32


def rope(theta: float, kind: str = "default", **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": kind, **scaling}}


def llama3(theta: float, factor: float) -> dict[str, Any]:
    scaling = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return rope(theta, "llama3", **scaling, original_max_position_embeddings=32)


def heads(num_heads: int, num_kv_heads: int, head_dim: int | None) -> dict[str, Any]:
    """``head_dim`` None for Qwen2, whose config has none."""
    sizes = {"num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads}
    return sizes if head_dim is None else {**sizes, "head_dim": head_dim}


def sizes(hidden: int, mlp: int, vocab: int, layers: int = 2) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "num_hidden_layers": layers,
        "max_position_embeddings": 256,
    }


TIED: dict[str, Any] = {"tie_word_embeddings": True}
UNPADDED: dict[str, Any] = {"pad_token_id": None}  # by default it lies beyond these vocabularies


def bare_config(config: dict[str, Any]) -> dict[str, Any]:
    """Only what has no default: an engine's own defaults must be those of transformers."""
    needed = {
        "architectures", "model_type", "hidden_size", "intermediate_size", "num_attention_heads",
        "num_hidden_layers", "vocab_size", "max_position_embeddings",
    }  # fmt: skip
    return {key: value for key, value in config.items() if key in needed}


def unused_window(config: dict[str, Any]) -> dict[str, Any]:
    """As Qwen2 checkpoints really come: a window is named and switched off."""
    return {**old_spelling(config), "use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1}


def longrope(theta: float, head_dim: int, **scaling: float) -> dict[str, Any]:
    """Factors that grow with the wavelength, the long ones faster."""
    grown = np.linspace(0, 1, head_dim // 2)
    factors = {"short_factor": (1 + 0.5 * grown).round(3).tolist(), "long_factor": (1 + 20 * grown).round(3).tolist()}
    return rope(theta, "longrope", **factors, **{"original_max_position_embeddings": 256, **scaling})


def typed_scaling(config: dict[str, Any]) -> dict[str, Any]:
    """As in 2023: the scaling's kind is ``type``, and no original length is named beside it."""
    old = old_spelling(config)
    scaling = {k: v for k, v in old["rope_scaling"].items() if k != "original_max_position_embeddings"}
    return {**old, "rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}


def original_outside(config: dict[str, Any]) -> dict[str, Any]:
    """As Phi-3 files have it: the original length stands beside the scaling."""
    old = old_spelling(config)
    scaling = dict(old["rope_scaling"])
    outside = {"original_max_position_embeddings": scaling.pop("original_max_position_embeddings")}
    return {**old, **outside, "rope_scaling": scaling}


GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.6, "logits_scaling": 0.75,
}  # fmt: skip


def gemma_ropes() -> dict[str, Any]:
    """Layers with a window have a RoPE of their own."""
    full = {"rope_theta": 40000.0, "rope_type": "linear", "factor": 4.0}
    return {
        "rope_parameters": {"full_attention": full, "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"}}
    }


def gemma_old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 4 wrote it: the theta of layers with a window has a name of its own, every second has none."""
    full, sliding = (dict(config["rope_parameters"][f"{kind}_attention"]) for kind in ("full", "sliding"))
    dropped = {"rope_parameters", "dtype", "transformers_version", "layer_types"}
    return {
        **{key: value for key, value in config.items() if key not in dropped},
        "rope_theta": full.pop("rope_theta"),
        "rope_local_base_freq": sliding["rope_theta"],
        "rope_scaling": full,
        "sliding_window_pattern": 2,
        "torch_dtype": config["dtype"],
    }


# fmt: off
SPECS = (
    Spec("llama-default", "llama", {**sizes(64, 96, 128), **heads(4, 4, 16), **rope(10000.0)},
         seed=1, prompt_lengths=LENGTHS, all_bits=True),
    Spec("llama-bare-config", "llama", {**sizes(64, 72, 96), **heads(4, 4, 16), **rope(10000.0)},
         seed=2, prompt_lengths=LENGTHS, rewrite=bare_config, embedding_std=0.002),
    Spec("llama-tied-theta-old", "llama",
         {**sizes(80, 72, 101, layers=3), **heads(4, 2, 32), **rope(500.0), **TIED, "rms_norm_eps": 0.02},
         seed=23, prompt_lengths=LENGTHS, rewrite=old_spelling),
    Spec("llama-llama3", "llama", {**sizes(64, 64, 112), **heads(4, 1, 64), **llama3(500000.0, 8.0)},
         seed=4, prompt_lengths=BEYOND),
    Spec("llama-llama3-old", "llama", {**sizes(64, 96, 160), **heads(8, 1, 16), **llama3(10000.0, 32.0), **TIED},
         seed=5, prompt_lengths=BEYOND, rewrite=old_spelling, dtype="bfloat16"),
    Spec("llama-linear", "llama", {**sizes(80, 64, 120), **heads(2, 1, 80), **rope(10000.0, "linear", factor=4.0)},
         seed=6, prompt_lengths=BEYOND),
    Spec("llama-linear-old", "llama", {**sizes(64, 64, 96), **heads(2, 2, 32), **rope(3000.0, "linear", factor=2.5)},
         seed=7, prompt_lengths=BEYOND, rewrite=oldest_spelling),
    Spec("llama-biases", "llama",
         {**sizes(64, 96, 112), **heads(4, 2, 32), **rope(10000.0), "attention_bias": True, "mlp_bias": True},
         seed=8, prompt_lengths=LENGTHS),
    Spec("llama-head-128-f16", "llama", {**sizes(96, 64, 128), **heads(2, 1, 128), **rope(10000.0)},
         seed=9, prompt_lengths=LENGTHS, dtype="float16"),
    Spec("llama-sharded", "llama", {**sizes(64, 96, 131), **heads(8, 2, 16), **rope(20000.0)},
         seed=10, prompt_lengths=LENGTHS, max_shard_size="90KB"),
    Spec("llama-eight-to-one", "llama", {**sizes(64, 64, 128), **heads(8, 1, 32), **rope(10000.0)},
         seed=11, prompt_lengths=LENGTHS),
    Spec("qwen2-tied-old", "qwen2", {**sizes(64, 96, 128), **heads(4, 2, None), **rope(1000000.0), **TIED},
         seed=12, prompt_lengths=LENGTHS, rewrite=unused_window, all_bits=True),
    Spec("qwen2-sharded-bf16", "qwen2", {**sizes(128, 96, 120), **heads(4, 1, None), **rope(10000.0)},
         seed=13, prompt_lengths=LENGTHS, dtype="bfloat16", max_shard_size="100KB"),
    Spec("qwen3", "qwen3", {**sizes(64, 96, 128), **heads(4, 2, 32), **rope(1000000.0), "rms_norm_eps": 0.05},
         seed=14, prompt_lengths=LENGTHS),
    Spec("qwen3-biases-tied", "qwen3",
         {**sizes(64, 64, 128), **heads(2, 1, 128), **rope(10000.0), **TIED, "attention_bias": True},
         seed=15, prompt_lengths=LENGTHS, rewrite=old_spelling),
    Spec("mistral-window", "mistral",
         {**sizes(64, 64, 112, layers=3), **heads(4, 2, 16), **rope(10000.0), "sliding_window": 12},
         seed=16, prompt_lengths=(1, 12, 13, 90)),
    Spec("mistral-window-bf16", "mistral",
         {**sizes(64, 64, 128), **heads(8, 1, 16), **rope(10000.0), "sliding_window": 33},
         seed=17, prompt_lengths=(33, 100), rewrite=old_spelling, dtype="bfloat16"),
    Spec("mistral-no-window-old", "mistral",
         {**sizes(64, 64, 128), **heads(2, 1, 64), **rope(1000000.0), "sliding_window": None},
         seed=18, prompt_lengths=LENGTHS, rewrite=old_spelling, dtype="float16"),
    Spec("qwen2-window", "qwen2",
         {**sizes(64, 64, 96, layers=3), **heads(4, 2, None), **rope(10000.0),
          "use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1},
         seed=19, prompt_lengths=LENGTHS, rewrite=old_spelling, dtype="bfloat16"),
    Spec("qwen3-window", "qwen3",
         {**sizes(64, 64, 96, layers=3), **heads(4, 2, 16), **rope(10000.0), "use_sliding_window": True,
          "sliding_window": 10, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
         seed=20, prompt_lengths=LENGTHS, dtype="bfloat16"),
    Spec("llama-linear-extended", "llama",
         {**sizes(64, 64, 96), **heads(2, 1, 32), **rope(10000.0, "linear", factor=4.0), "max_position_embeddings": 64},
         seed=24, prompt_lengths=BEYOND, rewrite=old_spelling, dtype="bfloat16"),
    Spec("llama-yarn", "llama",
         {**sizes(64, 64, 112), **heads(2, 1, 32),
          **rope(10000.0, "yarn", factor=8.0, original_max_position_embeddings=32)},
         seed=25, prompt_lengths=BEYOND, dtype="bfloat16"),
    Spec("qwen2-yarn-old", "qwen2",
         {**sizes(64, 64, 96), **heads(2, 1, None), **rope(1000000.0, "yarn", factor=4.0),
          "max_position_embeddings": 64},
         seed=26, prompt_lengths=BEYOND, rewrite=typed_scaling, dtype="bfloat16"),
    Spec("qwen3-yarn-mscale", "qwen3",
         {**sizes(64, 64, 96), **heads(2, 1, 64),
          **rope(50000.0, "yarn", factor=16.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=0.2,
                 beta_fast=4.0, beta_slow=0.5, truncate=False)},
         seed=27, prompt_lengths=BEYOND, dtype="bfloat16"),
    Spec("llama-longrope-short", "llama",
         {**sizes(64, 64, 96), **heads(2, 1, 32), **longrope(10000.0, 32, factor=8.0)},
         seed=28, prompt_lengths=BEYOND, dtype="bfloat16"),
    Spec("llama-longrope-long", "llama",
         {**sizes(64, 64, 96), **heads(2, 1, 32),
          **longrope(10000.0, 32, factor=2.0, original_max_position_embeddings=4)},
         seed=29, prompt_lengths=BEYOND, rewrite=original_outside, dtype="bfloat16"),
    Spec("internlm3-dynamic-short", "internlm3",
         {**sizes(64, 64, 96), **heads(4, 2, 32), **rope(10000.0, "dynamic", factor=6.0), "rms_norm_eps": 0.02},
         seed=30, prompt_lengths=LENGTHS, rewrite=typed_scaling, dtype="bfloat16"),
    Spec("ministral", "ministral",
         {**sizes(64, 64, 96, layers=3), **heads(4, 2, 16), **rope(10000.0), "sliding_window": 10,
          "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
         seed=31, prompt_lengths=LENGTHS, dtype="bfloat16"),
    Spec("seed-oss-biases", "seed_oss",
         {**sizes(64, 64, 96), **heads(4, 2, 32), **rope(500.0), "attention_out_bias": True},
         seed=32, prompt_lengths=LENGTHS, rewrite=old_spelling, dtype="bfloat16"),
    Spec("iquestcoder", "iquestcoder",
         {**sizes(64, 64, 96), **heads(4, 2, 16), **rope(500.0), **TIED, "rms_norm_eps": 0.02},
         seed=33, prompt_lengths=LENGTHS, dtype="bfloat16"),
    Spec("phi3-window", "phi3",
         {**sizes(64, 64, 96), **heads(4, 2, None), **rope(10000.0), "sliding_window": 24, "rms_norm_eps": 0.02,
          **UNPADDED},
         seed=34, prompt_lengths=LENGTHS, dtype="bfloat16"),
    Spec("phi3-partial-longrope", "phi3",
         {**sizes(128, 64, 96), **heads(4, 2, None),
          **longrope(10000.0, 24, partial_rotary_factor=0.75, original_max_position_embeddings=4),
          "original_max_position_embeddings": 4, "rms_norm_eps": 0.02, **TIED, **UNPADDED},
         seed=35, prompt_lengths=BEYOND, dtype="bfloat16"),
    Spec("granite", "granite",
         {**sizes(64, 64, 96), **heads(4, 2, None), **rope(10000.0), **GRANITE},
         seed=36, prompt_lengths=LENGTHS, dtype="bfloat16"),
    Spec("granite-biases-tied-old", "granite",
         {**sizes(64, 64, 96), **heads(2, 1, None), **rope(10000.0), **GRANITE, **TIED, "attention_bias": True,
          "mlp_bias": True},
         seed=37, prompt_lengths=LENGTHS, rewrite=old_spelling, dtype="bfloat16"),
    Spec("olmo2", "olmo2",
         {**sizes(64, 64, 96), **heads(4, 2, None), **rope(500000.0), "rms_norm_eps": 0.02},
         seed=38, prompt_lengths=LENGTHS, dtype="bfloat16"),
    Spec("smollm3", "smollm3",
         {**sizes(64, 64, 96, layers=3), **heads(4, 2, None), **rope(5000.0), "no_rope_layer_interval": 2,
          **UNPADDED},
         seed=39, prompt_lengths=LENGTHS, dtype="bfloat16"),
    Spec("smollm3-window-old", "smollm3",
         {**sizes(64, 64, 96, layers=3), **heads(4, 2, None), **rope(5000.0), "tie_word_embeddings": False,
          "no_rope_layers": [1, 0, 0], "use_sliding_window": True, "sliding_window": 10, **UNPADDED},
         seed=40, prompt_lengths=LENGTHS, rewrite=old_spelling, dtype="bfloat16"),
    Spec("gemma3", "gemma3_text",
         {**sizes(64, 64, 96, layers=3), **heads(4, 2, 16), **gemma_ropes(), "sliding_window": 12,
          "query_pre_attn_scalar": 24, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
         seed=41, prompt_lengths=LENGTHS, dtype="bfloat16"),
    Spec("gemma3-old", "gemma3_text",
         {**sizes(64, 64, 96, layers=3), **heads(4, 1, 16), **gemma_ropes(), "sliding_window": 20,
          "query_pre_attn_scalar": 20, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
         seed=50, prompt_lengths=LENGTHS, rewrite=gemma_old_spelling, dtype="bfloat16"),
)
# fmt: on

Mutant = Callable[[Model], AbstractContextManager[None]]
MUTANTS: dict[str, Mutant] = {"adjacent-pair RoPE": adjacent_pair_rope, "missing 1/sqrt(D)": unscaled_scores}


def main(names: list[str]) -> None:
    assert [spec.name for spec in SPECS] == [case.name for case in CASES], "cases.py lists other cases"
    torch.set_num_threads(1)  # the order of sums, and so the last bits, would follow the number of threads
    hf.utils.logging.disable_progress_bar()
    for name, write in (("defaults", write_defaults), ("ropes", write_ropes)):
        if not names or name in names:
            write()
    for spec, case in zip(SPECS, CASES, strict=True):
        if names and spec.name not in names:
            continue
        shutil.rmtree(case.checkpoint, ignore_errors=True)
        write_checkpoint(spec, case.checkpoint)
        case.expected.parent.mkdir(exist_ok=True)
        model = read_checkpoint(case.checkpoint)
        goldens = tuple(worthwhile_answer(model, spec, length) for length in spec.prompt_lengths)
        least = check_mutants(model, spec, goldens[-1])
        save(case.expected, tuple(thinned(golden) for golden in goldens))
        print(f"{spec.name}: least visible mistake moves a log-probability by {least:.2f}", flush=True)


def worthwhile_answer(model: Model, spec: Spec, length: int) -> Golden:
    """The answer to the first random prompt that is continued decisively and without falling into a cycle."""
    rng = np.random.default_rng([spec.seed, length])
    for _ in range(500):
        golden = answer(model, rng.integers(0, model.config.vocab_size, length, dtype=np.int32))
        decisive = np.subtract(*golden.top_two.T).min() > DECISIVE
        if decisive and len(set(golden.greedy.tolist())) >= MIN_DISTINCT and not is_cyclic(golden.greedy):
            return golden
    raise AssertionError(f"{spec.name}: no prompt of {length} tokens has a varied, decisive continuation; try a seed")


def is_cyclic(tokens: NDArray[np.int32]) -> bool:
    """Whether the last ``2 * MAX_PERIOD`` tokens repeat with a period of at most ``MAX_PERIOD``."""
    tail = tokens[-2 * MAX_PERIOD :]
    return any((tail[period:] == tail[:-period]).all() for period in range(1, MAX_PERIOD + 1))


def check_mutants(model: Model, spec: Spec, golden: Golden) -> float:
    """The smallest change that any mistake makes to ``golden``.

    Raises:
        AssertionError: a mistake would go unnoticed, being below ``NOTICEABLE``.
    """
    sequence = np.concatenate([golden.prompt, golden.greedy])[:-1]
    changes = {}
    mutants = dict(MUTANTS)
    if 1 < model.config.num_key_value_heads < model.config.num_attention_heads:
        mutants["wrong head groups"] = wrong_head_groups
    for name, mutant in mutants.items():
        with mutant(model):
            changes[name] = np.abs(logprobs(model, sequence) - golden.logprobs).max()
    for override in config_mistakes(spec, model.config):
        mistaken = read_checkpoint(next(c.checkpoint for c in CASES if c.name == spec.name), **override)
        changes[str(override)] = np.abs(logprobs(mistaken, sequence) - golden.logprobs).max()
    unnoticed = {name: change for name, change in changes.items() if not change > NOTICEABLE}
    assert not unnoticed, f"{spec.name}: mistakes that do not show: {unnoticed}"
    return float(min(changes.values()))


def config_mistakes(spec: Spec, config: Any) -> Iterator[dict[str, Any]]:
    """Config values misread in ways that the case is there to catch."""
    for multiplier in GRANITE.keys() & spec.config.keys():
        yield {multiplier: 1.0}
    if config.model_type == "smollm3":
        yield {"no_rope_layers": [1] * config.num_hidden_layers}
        yield {"no_rope_layers": [1 - has_rope for has_rope in config.no_rope_layers]}
    if config.model_type == "gemma3_text":
        full, sliding = (config.rope_parameters[f"{kind}_attention"] for kind in ("full", "sliding"))
        yield {"rope_parameters": {"full_attention": full, "sliding_attention": full}}
        yield {"rope_parameters": {"full_attention": sliding, "sliding_attention": sliding}}
        yield {"query_pre_attn_scalar": config.head_dim + 16}
        yield from window_mistakes(config)
        return
    theta, kind = config.rope_parameters["rope_theta"], config.rope_parameters["rope_type"]
    if theta != 10000.0:
        yield {"rope_parameters": {**config.rope_parameters, "rope_theta": 10000.0}}
    if kind == "dynamic":  # short: as if there were no scaling; and it must not be scaled all the same
        yield {"rope_parameters": {"rope_theta": theta, "rope_type": "linear", "factor": 2.0}}
    elif kind != "default":
        yield {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    if kind in ("yarn", "longrope"):
        yield {"rope_parameters": {**config.rope_parameters, "attention_factor": 1.0}}
    if kind == "longrope":
        short, long = config.rope_parameters["short_factor"], config.rope_parameters["long_factor"]
        yield {"rope_parameters": {**config.rope_parameters, "short_factor": long, "long_factor": short}}
    if kind == "llama3":
        linear = {"rope_theta": theta, "rope_type": "linear", "factor": config.rope_parameters["factor"]}
        nearly_low = config.rope_parameters["low_freq_factor"] + 1e-6
        no_middle_band = {**config.rope_parameters, "high_freq_factor": nearly_low}
        yield from ({"rope_parameters": mistaken} for mistaken in (linear, no_middle_band))
    if config.rms_norm_eps != 1e-6 or spec.embedding_std < 0.01:  # an eps shows where the mean square is as small
        yield {"rms_norm_eps": 1e-5}
    if getattr(config, "sliding_window", None) is not None:
        yield from window_mistakes(config)


def window_mistakes(config: Any) -> Iterator[dict[str, Any]]:
    """A window of another size, or in other layers."""
    yield from ({"sliding_window": wrong} for wrong in (config.sliding_window - 1, config.sliding_window + 1))
    if config.model_type in ("mistral", "phi3"):
        yield {"sliding_window": None}
    else:
        yield {"layer_types": ["full_attention"] * config.num_hidden_layers}
        yield {"layer_types": ["sliding_attention"] * config.num_hidden_layers}


def thinned(golden: Golden) -> Golden:
    """``golden`` with fewer whole rows, to keep the files small: the first 16, those around the prompt's end, and
    every seventh. ``following`` and ``top_two`` still speak of every row."""
    last_prompt_row = len(golden.prompt) - 1
    rows = golden.rows
    kept = rows[(rows < 16) | (np.abs(rows - last_prompt_row) < 3) | (rows % 7 == 0)]
    return Golden(golden.prompt, golden.greedy, golden.top_two, golden.following, kept, golden.logprobs[kept])


if __name__ == "__main__":
    main(sys.argv[1:])
