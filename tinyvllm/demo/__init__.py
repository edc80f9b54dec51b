"""The checkpoint that ships: weights, tokenizer and chat template, how they were made, and how they are checked."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent
"""The folder of the checkpoint, in Hugging Face layout: ``model: demo`` means this one."""
