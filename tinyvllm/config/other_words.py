"""Words that people know from elsewhere: keys of later versions, and vLLM's flat names of what is in a section here."""

from __future__ import annotations

from collections.abc import Mapping

# Refused by name until they are built. Anything listed here leaves the list when it enters the schema.
LATER = frozenset(
    {
        "api_key",
        "compilation_config",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "data_parallel_size",
        "disable_log_requests",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_lora",
        "enable_prefix_caching",
        "expert_parallel_size",
        "guided_decoding_backend",
        "hf_overrides",
        "host",
        "kv_cache_dtype",
        "kv_transfer_config",
        "limit_mm_per_prompt",
        "long_prefill_token_threshold",
        "lora_modules",
        "max_loras",
        "max_num_queued_reqs",
        "num_speculative_tokens",
        "pipeline_parallel_size",
        "port",
        "quantization",
        "rope_scaling",
        "scheduling_policy",
        "served_model_name",
        "server",
        "shutdown_timeout",
        "speculative_config",
        "speculative_model",
        "structured_outputs",
        "swap_space",
        "tensor_parallel_size",
        "world_size",
    }
)

# Values of later versions: key, then the values that are refused by name.
LATER_VALUES: Mapping[str, frozenset[str]] = {"run.task": frozenset({"serve", "bench"})}

# Elsewhere's word to the key that means it here.
RENAMED: Mapping[str, str] = {
    "attention_backend": "attention.name",
    "download_dir": "model (a folder: nothing is downloaded)",
    "gpu_memory_fraction": "cache.gpu_memory_utilization",
    "input": "run.prompts_file",
    "kernel": "kernels",
    "max_batch_size": "scheduler.max_num_seqs",
    "max_seq_len": "max_model_len",
    "mem_fraction_static": "cache.gpu_memory_utilization",
    "model_name_or_path": "model",
    "model_path": "model",
    "num_blocks": "cache.num_blocks_override",
    "num_gpu_blocks_override": "cache.num_blocks_override",
    "page_size": "cache.block_size",
    "policy": "scheduler.name",
    "prompt": "run.prompts (a list)",
    "revision": "model (a folder: nothing is downloaded)",
    "sampling_params": "run.sampling",
    "scheduler_cls": "scheduler.name",
    "tokenizer_path": "tokenizer",
}

NEVER: Mapping[str, str] = {
    "trust_remote_code": "tinyvllm never runs code that comes with a checkpoint; remove it",
    "<<": "merge keys are not part of YAML 1.2; write the keys out",
}
