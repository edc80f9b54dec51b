"""The launchers of kernels that the commands of this folder time: the one place that says where they lie."""

from tinyvllm.kernels.attention_decode import AttentionDecode, decode_bytes
from tinyvllm.kernels.attention_prefill import AttentionPrefill
from tinyvllm.kernels.attention_sizes import AttentionSizes
from tinyvllm.kernels.embedding import Embedding
from tinyvllm.kernels.gate_up_silu import GateUpSilu
from tinyvllm.kernels.linear import LinearRows
from tinyvllm.kernels.linear_residual import LinearResidual
from tinyvllm.kernels.lm_head import LmHeadArgmax
from tinyvllm.kernels.logprobs import LogprobBuffers, Logprobs
from tinyvllm.kernels.qkv_rope_append import QkvRopeAppend
from tinyvllm.kernels.sample import Sample
from tinyvllm.kernels.sample_columns import DeviceSamplingColumns, SampledBuffers
from tinyvllm.kernels.tiling import Tiling, choose_tiling, rows_tier

__all__ = [
    "AttentionDecode", "AttentionPrefill", "AttentionSizes", "DeviceSamplingColumns", "Embedding", "GateUpSilu",
    "LinearResidual", "LinearRows", "LmHeadArgmax", "LogprobBuffers", "Logprobs", "QkvRopeAppend", "Sample",
    "SampledBuffers", "Tiling", "choose_tiling", "decode_bytes", "rows_tier",
]  # fmt: skip
