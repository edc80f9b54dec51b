"""What holds for all tests: one BLAS thread a process, and hypothesis without time limits."""

from __future__ import annotations

import os

# Before NumPy is imported: workers of pytest-xdist share the cores, and small products gain nothing from threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

from .tiny_checkpoint import tiny_model, write_config

__all__ = ["tiny_model", "write_config"]

# The machine may be busy, so no example has a deadline. CI draws the same examples each time: what fails there fails
# again, and new examples are found where somebody is looking.
settings.register_profile("tinyvllm", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tinyvllm")
