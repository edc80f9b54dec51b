"""Others that do the same work, to be measured in the same run: transformers' ``generate``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyvllm.bench.workload import Job
from tinyvllm.errors import ConfigError


class TransformersPeer:
    """Hugging Face ``generate`` in float32 on the CPU: greedy, key-value cache, prompts of one length.

    Args:
        folder: the checkpoint.
        is_dummy: random weights from the configuration alone.

    Raises:
        ConfigError: torch or transformers is not installed.
    """

    name = "transformers"

    def __init__(self, folder: Path, *, is_dummy: bool) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ConfigError(
                f"--peer transformers needs torch and transformers: {error}; pip install torch transformers"
            ) from error
        self._torch = torch
        torch.set_num_threads(os.cpu_count() or 1)
        logging: Any = transformers.utils.logging
        logging.set_verbosity_error()
        models: Any = transformers.AutoModelForCausalLM
        if is_dummy:
            config = transformers.AutoConfig.from_pretrained(folder)
            torch.manual_seed(0)
            self._model = models.from_config(config, dtype=torch.float32)
        else:
            self._model = models.from_pretrained(folder, dtype=torch.float32)
        self._model.eval()
        # Nothing ends early: both sides generate the same number of tokens.
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def run(self, jobs: Sequence[Job]) -> tuple[float, float]:
        """Seconds for the first token alone, and for all tokens."""
        return self._generate(jobs, 1), self._generate(jobs, jobs[0].num_output)

    def _generate(self, jobs: Sequence[Job], num_output: int) -> float:
        torch = self._torch
        ids = torch.tensor([job.prompt for job in jobs])
        began = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=num_output,
                min_new_tokens=num_output,
            )
        assert out.shape[1] == ids.shape[1] + num_output
        return time.perf_counter() - began
