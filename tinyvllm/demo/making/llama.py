"""A Llama decoder in plain torch, for training and evaluating the demo checkpoint only; no engine imports it.

Weights are a mapping from Hugging Face names to tensors, so that saving a checkpoint needs no renaming.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model, by their names in ``config.json``."""

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 384
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "Shape":
        """The sizes in the content of a ``config.json``."""
        return cls(**{name: config[name] for name in cls.__slots__})  # type: ignore[arg-type]

    def to_config(self, token_ids: Mapping[str, object]) -> dict[str, object]:
        """The content of ``config.json``; ``token_ids`` holds ``bos_token_id`` and its like."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "rope_scaling": None,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "use_cache": True,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
            **token_ids,
        }


def init_weights(shape: Shape, generator: torch.Generator) -> Weights:
    """Random weights, float32: normal with deviation 0.02, norms 1; embeddings wider, so that words differ."""
    hidden, mlp = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    residual = 0.02 / math.sqrt(2 * shape.num_hidden_layers)

    def normal(rows: int, columns: int, deviation: float = 0.02) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * deviation

    weights = {"model.embed_tokens.weight": normal(shape.vocab_size, hidden, 0.06)}
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": torch.ones(hidden),
            f"{prefix}.self_attn.q_proj.weight": normal(queries, hidden),
            f"{prefix}.self_attn.k_proj.weight": normal(keys, hidden),
            f"{prefix}.self_attn.v_proj.weight": normal(keys, hidden),
            f"{prefix}.self_attn.o_proj.weight": normal(hidden, queries, residual),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(hidden),
            f"{prefix}.mlp.gate_proj.weight": normal(mlp, hidden),
            f"{prefix}.mlp.up_proj.weight": normal(mlp, hidden),
            f"{prefix}.mlp.down_proj.weight": normal(hidden, mlp, residual),
        }
    weights["model.norm.weight"] = torch.ones(hidden)
    return weights


def forward(weights: Weights, shape: Shape, token_ids: torch.Tensor) -> torch.Tensor:
    """The logits ``[B, T, V]`` after each token of ``token_ids`` ``[B, T]``, positions counted from 0."""
    rope = _rope_table(shape, token_ids.shape[1], token_ids.device)
    hidden = functional.embedding(token_ids, weights["model.embed_tokens.weight"])  # [B, T, E]
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        normed = _rms_norm(hidden, weights[f"{prefix}.input_layernorm.weight"], shape.rms_norm_eps)
        hidden = hidden + _attention(weights, shape, f"{prefix}.self_attn", normed, rope)
        normed = _rms_norm(hidden, weights[f"{prefix}.post_attention_layernorm.weight"], shape.rms_norm_eps)
        gate = functional.linear(normed, weights[f"{prefix}.mlp.gate_proj.weight"])
        up = functional.linear(normed, weights[f"{prefix}.mlp.up_proj.weight"])
        hidden = hidden + functional.linear(functional.silu(gate) * up, weights[f"{prefix}.mlp.down_proj.weight"])
    normed = _rms_norm(hidden, weights["model.norm.weight"], shape.rms_norm_eps)
    return functional.linear(normed, weights["model.embed_tokens.weight"])


def _attention(
    weights: Weights, shape: Shape, prefix: str, hidden: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Causal grouped-query attention over ``hidden`` ``[B, T, E]``."""
    batch, length, _ = hidden.shape

    def heads(name: str) -> torch.Tensor:
        projected = functional.linear(hidden, weights[f"{prefix}.{name}.weight"])
        return projected.view(batch, length, -1, shape.head_dim).transpose(1, 2)  # [B, H or K, T, D]

    group = shape.num_attention_heads // shape.num_key_value_heads
    query = _rotate(heads("q_proj"), rope)
    key = _rotate(heads("k_proj"), rope).repeat_interleave(group, dim=1)
    value = heads("v_proj").repeat_interleave(group, dim=1)
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
    return functional.linear(mixed, weights[f"{prefix}.o_proj.weight"])


def _rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = hidden.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight


def _rope_table(shape: Shape, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines ``[T, D]``, each half of a head the same."""
    exponents = torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim
    angles = torch.outer(torch.arange(length, device=device).float(), shape.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(heads: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cosines, sines = rope
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (heads * cosines + turned * sines).to(heads.dtype)
