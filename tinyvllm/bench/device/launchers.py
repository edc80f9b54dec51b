"""The launchers of built-in kernels that the commands of this folder time: the one place that says where they lie."""

from tinyvllm_attention.gpu.attention_decode import AttentionDecode, decode_bytes
from tinyvllm_attention.gpu.attention_prefill import AttentionPrefill
from tinyvllm_attention.gpu.attention_sizes import AttentionSizes
from tinyvllm_kernels.projection.gate_up_silu import GateUpSilu
from tinyvllm_kernels.projection.linear import LinearRows
from tinyvllm_kernels.projection.linear_residual import LinearResidual
from tinyvllm_kernels.projection.lm_head import LmHeadArgmax
from tinyvllm_kernels.projection.qkv_rope_append import QkvRopeAppend
from tinyvllm_kernels.projection.tiling import Tiling, choose_tiling, rows_tier
from tinyvllm_kernels.rows.embedding import Embedding
from tinyvllm_samplers.gpu.logprobs import Logprobs
from tinyvllm_samplers.gpu.sample import Sample

__all__ = [
    "AttentionDecode", "AttentionPrefill", "AttentionSizes", "Embedding", "GateUpSilu", "LinearResidual", "LinearRows",
    "LmHeadArgmax", "Logprobs", "QkvRopeAppend", "Sample", "Tiling", "choose_tiling", "decode_bytes", "rows_tier",
]  # fmt: skip
