"""What an engine has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the engine began, and what holds now.

    Attributes:
        num_running: sequences that run now.
        num_waiting: sequences that wait now.
        num_blocks_used: KV blocks that are held now.
        num_blocks: KV blocks in all.
        peak_blocks_used: maximum number of KV blocks that were held at once.
        num_prompt_tokens: prompt tokens of all requests that were taken.
        num_generation_tokens: tokens that were generated and kept.
        num_steps: steps that were carried out.
        num_preemptions: sequences that lost their blocks and were computed again.
        launch_s: seconds inside the runner, beginning steps: on the CPU the model and the sampler.
        wait_s: seconds of waiting for steps to end.
        schedule_s: seconds of the loop outside both: scheduling, batching, bookkeeping, text and outputs.
    """

    num_running: int
    num_waiting: int
    num_blocks_used: int
    num_blocks: int
    peak_blocks_used: int
    num_prompt_tokens: int
    num_generation_tokens: int
    num_steps: int
    num_preemptions: int
    launch_s: float
    wait_s: float
    schedule_s: float


@dataclass(slots=True)
class Counts:
    """The engine's own running counts; only the engine writes them."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    peak_blocks: int = 0
    launch_s: float = 0.0
    wait_s: float = 0.0
    schedule_s: float = 0.0
