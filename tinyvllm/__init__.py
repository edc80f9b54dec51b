"""tinyvllm: a plugin-based LLM inference engine. The one import for users; authors of plugins: ``tinyvllm.plugin``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyvllm.outputs import CompletionOutput, Logprob, OutputDelta, RequestMetrics, RequestOutput
from tinyvllm.request import SamplingParams

if TYPE_CHECKING:
    from tinyvllm.llm import LLM as LLM

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "OutputDelta",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # LLM pulls in the engine; `import tinyvllm` for SamplingParams or a plugin's interfaces should not.
    if name == "LLM":
        from tinyvllm.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
