"""Prompts and their text on a screen."""

from __future__ import annotations

import re
import sys

from tinyvllm.run.console import Console
from tinyvllm.run.feed import Result
from tinyvllm.run.jobs import Job

# Everything that moves the cursor or changes the terminal, which text of a model must not.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """``text`` with control characters, tab and newline aside, made visible."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def print_result(result: Result) -> None:
    """The prompt, then its text, or each of its texts, or why there is none."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True)
    console.print(f"> {printable(prompt_of(result.job))}", style="bold")
    if result.output is None:
        console.print(f"error: {result.error}", style="red")
    else:
        texts = [printable(completion.text) for completion in result.output.outputs]
        for index, text in enumerate(texts):
            console.print(text if len(texts) == 1 else f"[{index}] {text}")
    console.print()


def prompt_of(job: Job) -> str:
    """What the job asks, as text."""
    prompt = job.prompt
    if isinstance(prompt, str):
        return prompt
    return str((prompt or {}).get("prompt") or (prompt or {}).get("prompt_token_ids") or f"line {job.index + 1}")
