"""The peer ``transformers``: Hugging Face ``generate``, greedy.

On the CPU in float32, with the key-value cache that it takes by default. On a GPU in bfloat16, with a static cache,
for which ``generate`` compiles its decode step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from tinyvllm.bench.peers import PeerTiming
from tinyvllm.bench.peers.source import WeightSource, as_torch
from tinyvllm.bench.workload import Job
from tinyvllm.errors import ConfigError

_PAD = 0


class TransformersPeer:
    """Measures ``generate``; prompts of different lengths are padded on the left.

    Args:
        source: the weights.
        torch_device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: torch or transformers is not installed.
    """

    name = "transformers"

    def __init__(self, source: WeightSource, *, torch_device: str = "cpu") -> None:
        torch, _ = import_transformers()
        self._torch, self._device = torch, torch_device
        torch.set_num_threads(os.cpu_count() or 1)
        self._is_static = torch_device == "cuda"
        self._model = load_model(source, torch_device, torch.bfloat16 if self._is_static else torch.float32)
        # Nothing ends early: both sides generate the same number of tokens.
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = _PAD

    def run(self, jobs: Sequence[Job]) -> PeerTiming:
        """The longest output for everybody.

        A step is what the later tokens take: after the first one on the CPU; after half of them where the cache is
        static, since then steps cost the same, and what a call of ``generate`` costs once is in both and cancels.
        """
        longest = max(job.num_output for job in jobs)
        fewer = max(1, longest // 2) if self._is_static else 1
        total_s = self._generate(jobs, longest)
        step_s = (total_s - self._generate(jobs, fewer)) / (longest - fewer)
        return PeerTiming(step_s, total_s)

    def _generate(self, jobs: Sequence[Job], num_output: int) -> float:
        torch = self._torch
        width = max(len(job.prompt) for job in jobs)
        ids = torch.tensor([[_PAD] * (width - len(job.prompt)) + job.prompt for job in jobs], device=self._device)
        lengths = torch.tensor([len(job.prompt) for job in jobs], device=self._device)
        mask = (torch.arange(width, device=self._device) >= width - lengths[:, None]).long()
        more = {"cache_implementation": "static"} if self._is_static else {}
        began = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=num_output,
                min_new_tokens=num_output,
                **more,
            )
        if self._is_static:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        assert out.shape[1] == width + num_output
        return seconds


def import_transformers() -> tuple[Any, Any]:
    """The packages torch and transformers, with nothing but errors on standard error.

    Raises:
        ConfigError: one is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"--peer transformers needs torch and transformers: {error}; pip install torch transformers"
        ) from error
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return torch, transformers


def load_model(source: WeightSource, torch_device: str, dtype: Any, **more: Any) -> Any:
    """The model in transformers, weights rounded to ``dtype``: from its folder, or as the loader ``dummy`` makes them.

    Args:
        source: the weights.
        torch_device: ``cpu`` or ``cuda``.
        dtype: of torch.
        more: further arguments of the model, such as ``attn_implementation``.
    """
    torch, transformers = import_transformers()
    models: Any = transformers.AutoModelForCausalLM
    if not source.is_dummy:
        return models.from_pretrained(source.folder, dtype=dtype, **more).to(torch_device).eval()
    config = transformers.AutoConfig.from_pretrained(source.folder)
    from transformers.initialization import no_init_weights

    with torch.device(torch_device), no_init_weights():
        model = models.from_config(config, dtype=dtype, **more)
    model.tie_weights()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with source.open() as checkpoint, torch.no_grad():
        names = list(checkpoint.names())
        for name in names:
            parameters.pop(name).copy_(as_torch(torch, checkpoint.read(name)))
    left = [name for name in parameters if not (name == "lm_head.weight" and source.config.has_tied_embeddings)]
    if left:
        raise ConfigError(f"transformers has parameters that the checkpoint does not: {', '.join(left[:5])}")
    return model.eval()
