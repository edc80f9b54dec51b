"""Keys of ``config.json`` that change no result, whatever model it is: nobody has to read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HARMLESS_KEYS = frozenset(
    {
        # Who wrote the file, with what, and what code or kernels to run it with.
        "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_flash_attn_2_enabled",
        "_from_model_config", "_model_name_or_path", "_name_or_path", "architectures", "attn_implementation",
        "auto_map", "model_name", "model_type", "name_or_path", "tokenizer_class", "transformers_version",
        "unsloth_fixed", "unsloth_version", "use_flash_attn", "use_fused_mlp", "use_fused_rmsnorm",
        # Ids of tokens: end tokens are read by who reads generation_config.json.
        "bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id",
        "pad_token_id", "sep_token_id", "suppress_tokens", "unk_token_id",
        # Training.
        "attention_dropout", "attn_pdrop", "embd_pdrop", "embedding_dropout", "ffn_dropout", "gradient_checkpointing",
        "hidden_dropout", "hidden_dropout_prob", "init_method_std", "initializer_range", "label_smoothing",
        "output_router_logits", "problem_type", "resid_pdrop", "residual_dropout", "rope_ratio",
        "router_aux_loss_coef", "router_jitter_noise", "scale_attn_by_inverse_layer_idx", "use_cache", "z_loss_weight",
        # Which layers have a window, where use_sliding_window is set: families without that switch have none.
        "max_window_layers",
        # Of training with several cards; the weights are those of one matrix.
        "num_key_value_groups", "pretraining_tp",
        # What every configuration of transformers 4 could say, of outputs, of generation and of other tasks.
        "bad_words_ids", "chunk_size_feed_forward", "cache_implementation", "cross_attention_hidden_size",
        "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "finetuning_task",
        "id2label", "is_decoder", "label2id", "length_penalty", "max_length", "max_new_tokens", "min_length",
        "model_max_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels",
        "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "prefix",
        "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
        "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "top_k", "top_p",
        "torchscript", "typical_p", "use_bfloat16",
    }
)  # fmt: skip
"""Any value of these."""

NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "hidden_act": ("silu", "swish"),
}
"""Values of other keys that change nothing, beside null and false, which never do."""

_QUANTIZED = "quantized weights are not served; use the checkpoint that they were made from"
REMEDIES: Mapping[str, str] = {
    "quantization_config": _QUANTIZED,
    "compression_config": _QUANTIZED,
    "quantization": _QUANTIZED,
}
"""What to do about keys that come up often; never "leave it out" where the weights were trained with it."""


def changes_nothing(key: str, value: object) -> bool:
    """Whether a key that no model has read may be left unread."""
    return key in HARMLESS_KEYS or value is None or value is False or _is_in(value, NEUTRAL_VALUES.get(key, ()))


def _is_in(value: object, values: tuple[Any, ...]) -> bool:
    """Whether the value is one of these; true is not the number one."""
    return not isinstance(value, bool) and value in values
