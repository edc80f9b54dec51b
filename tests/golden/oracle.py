"""Random checkpoints by transformers, and transformers' answers to prompts on them (development only: needs torch).

Knows nothing of the engine. The answers come from the checkpoint as saved, read back in float32 with the plain
("eager") attention. Greedy tokens come from ``generate``, which runs a KV cache; the log-probabilities from one pass
over prompt and continuation without a cache: two paths that have to agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from .cases import NUM_STEPS, Golden

Config = dict[str, Any]  # config.json as a mapping
Model = Any  # transformers' PreTrainedModel: most of what is called on it has no types
hf: Any = transformers

SELF_AGREEMENT = 1e-4  # bound between two paths of transformers itself; a tenth of what the engine is given
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Spec:
    """What to draw: a model's configuration, and how its checkpoint is written."""

    name: str
    model_type: str
    config: Mapping[str, Any]
    seed: int
    prompt_lengths: tuple[int, ...]
    dtype: str = "float32"
    max_shard_size: str = "50GB"
    rewrite: Callable[[Config], Config] = field(default=lambda config: config)
    """Turns the ``config.json`` that transformers wrote into another spelling of the same model."""
    embedding_std: float = 1.0
    all_bits: bool = False
    """Draw float32 weights with a full mantissa; otherwise on a coarse grid, which git stores in a quarter."""


def write_checkpoint(spec: Spec, folder: Path) -> None:
    """Draw the weights of ``spec`` and save them to ``folder`` by ``save_pretrained``, ``config.json`` rewritten.

    Raises:
        AssertionError: the rewritten folder does not load to the very logits of the model that was drawn.
    """
    config = hf.AutoConfig.for_model(
        spec.model_type, attn_implementation="eager", **{"bos_token_id": 1, "eos_token_id": 2, **spec.config}
    )
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    draw_weights(model, spec)
    probe = np.random.default_rng(spec.seed).integers(0, config.vocab_size, 40)
    expected = logits(model, probe)

    model.to(DTYPES[spec.dtype]).save_pretrained(folder, max_shard_size=spec.max_shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)  # sampling defaults are not what is compared here
    path = folder / "config.json"
    rewritten = spec.rewrite(json.loads(path.read_text()))
    path.write_text(json.dumps(rewritten, indent=2, sort_keys=True) + "\n")
    assert torch.equal(logits(read_checkpoint(folder), probe), expected), f"{spec.name}: saved and drawn model differ"


def draw_weights(model: Model, spec: Spec) -> None:
    """Fill ``model`` with weights large enough that every part of it decides the answer.

    Attention scores have a standard deviation near 3, so that the softmax is peaked (over uniform noise it would prove
    nothing); logits too. Biases and norm weights are far from 0 and 1. Under a tied head the final norm's signs are
    random, or a token would mostly predict itself. Values are rounded to ``spec.dtype`` here, so the model in memory
    is the one that will be saved.
    """
    rng = np.random.default_rng(spec.seed)
    tied = bool(model.config.tie_word_embeddings)
    head_std = 3.0 / math.sqrt(model.config.hidden_size)
    for name, parameter in sorted(model.named_parameters()):
        shape = tuple(parameter.shape)
        fan_in = shape[-1]
        match name.split(".")[-2:]:
            case ["embed_tokens", _]:
                value = rng.normal(0.0, head_std if tied else spec.embedding_std, shape)
            case ["lm_head", _]:
                value = rng.normal(0.0, head_std, shape)
            case ["q_norm" | "k_norm", _]:
                value = rng.uniform(1.0, 2.5, shape)
            case ["norm", _]:
                value = rng.uniform(0.5, 1.5, shape) * (rng.choice([-1.0, 1.0], shape) if tied else 1.0)
            case [_, "bias"]:
                value = rng.normal(0.0, 0.4, shape)
            case ["q_proj" | "k_proj", _]:
                value = rng.normal(0.0, 1.7 / math.sqrt(fan_in), shape)
            case [_, _] if len(shape) == 2:
                value = rng.normal(0.0, 1.2 / math.sqrt(fan_in), shape)
            case _:
                value = rng.uniform(0.5, 1.5, shape)
        if len(shape) == 1 and not name.endswith("bias") and model.config.model_type == "gemma3_text":
            value = value - 1.0  # its norms add one
        if not spec.all_bits:
            step = 2.0 ** math.floor(math.log2(value.std() / 4))
            value = np.round(value / step) * step
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(value).to(DTYPES[spec.dtype]))


def read_checkpoint(folder: Path, **overrides: Any) -> Model:
    """The model in ``folder`` in float32, whatever its dtype there; ``overrides`` replace config values."""
    model = hf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **overrides
    )
    model.generation_config = hf.GenerationConfig()
    return model.eval()


def logits(model: Model, tokens: NDArray[np.integer[Any]]) -> torch.Tensor:
    """``[S, V]`` of one pass over ``tokens`` ``[S]`` without a cache."""
    with torch.no_grad():
        output = model(torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None], use_cache=False)
    rows: torch.Tensor = output.logits[0]
    return rows


def logprobs(model: Model, tokens: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """``[S, V]``: row ``t`` is the log-distribution of token ``t + 1``. The log-softmax is taken in float64."""
    values: NDArray[np.float64] = torch.log_softmax(logits(model, tokens).double(), dim=-1).numpy()
    return values.astype(np.float32)


def answer(model: Model, prompt: NDArray[np.int32], num_steps: int = NUM_STEPS) -> Golden:
    """What ``model`` says to ``prompt``, every row kept whole.

    Raises:
        AssertionError: the cached and the uncached path of transformers disagree.
    """
    with torch.no_grad():
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        generated = model.generate(  # no EOS: the generation config is empty
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_steps,
            return_dict_in_generate=True,
            output_logits=True,
        )
    sequence = generated.sequences[0].numpy().astype(np.int32)
    rows = logprobs(model, sequence[:-1])  # [S - 1, V]
    steps = rows[len(prompt) - 1 :]
    cached = torch.log_softmax(torch.stack(generated.logits)[:, 0].double(), dim=-1).numpy()
    assert np.abs(cached - steps).max() < SELF_AGREEMENT, f"cached and uncached differ: {np.abs(cached - steps).max()}"
    return Golden(
        prompt=prompt,
        greedy=sequence[len(prompt) :],
        top_two=-np.sort(-steps, axis=1)[:, :2],
        following=rows[np.arange(len(rows)), sequence[1:]],
        rows=np.arange(len(rows), dtype=np.int32),
        logprobs=rows,
    )


# Other spellings of config.json ---------------------------------------------------------------------------------------


def old_spelling(config: Config) -> Config:
    """As transformers 4 wrote it: ``rope_theta`` beside ``rope_scaling``, ``torch_dtype``."""
    rope = dict(config["rope_parameters"])
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    dropped = {"rope_parameters", "dtype", "transformers_version"}
    if config["model_type"] != "ministral":  # the only family whose layer types follow from nothing else
        dropped.add("layer_types")
    return {
        **{key: value for key, value in config.items() if key not in dropped},
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **rope},
        "torch_dtype": config["dtype"],
    }


def oldest_spelling(config: Config) -> Config:
    """As in 2023: the scaling's kind is ``type``; head size and KV heads are left to be derived."""
    old = old_spelling(config)
    scaling = dict(old["rope_scaling"])
    old["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
    return {key: value for key, value in old.items() if key not in ("head_dim", "num_key_value_heads")}


# Mutants: mistakes that the answers must notice -----------------------------------------------------------------------


@contextmanager
def adjacent_pair_rope(model: Model) -> Iterator[None]:
    """RoPE rotating dimensions (0, 1), (2, 3), ... instead of (0, D/2), (1, D/2 + 1), ..."""

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        cos, sin = cos[..., :half].unsqueeze(1), sin[..., :half].unsqueeze(1)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)

    def apply(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return rotate(q, cos, sin), rotate(k, cos, sin)

    with mock.patch.object(import_module(type(model).__module__), "apply_rotary_pos_emb", apply):
        yield


@contextmanager
def wrong_head_groups(model: Model) -> Iterator[None]:
    """Query head ``h`` reading KV head ``h % K`` instead of ``h // (H / K)``."""

    def repeat(x: torch.Tensor, times: int) -> torch.Tensor:
        return x.repeat(1, times, 1, 1)

    with mock.patch.object(import_module(type(model).__module__), "repeat_kv", repeat):
        yield


@contextmanager
def unscaled_scores(model: Model) -> Iterator[None]:
    """No ``1 / sqrt(D)``."""
    layers = [module for module in model.modules() if hasattr(module, "scaling")]
    assert layers
    scalings = [layer.scaling for layer in layers]
    for layer in layers:
        layer.scaling = 1.0
    yield
    for layer, scaling in zip(layers, scalings, strict=True):
        layer.scaling = scaling
