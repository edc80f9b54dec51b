"""What the checkpoint can do, measured with torch: ``python -m tinyvllm.demo.making.evaluate [--model DIR]``.

Prints the lines of ``verify`` and, below, what needs sampling or another beginning. Development only.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tinyvllm.demo import stories, verify
from tinyvllm.demo.making.llama import Shape, Weights, forward

_BATCH = 128


@dataclass(frozen=True, slots=True)
class Reference:
    """A model that completes texts the slow and plain way: all tokens again for each new one, in float32."""

    weights: Weights
    shape: Shape
    tokenizer: Tokenizer
    eos_ids: Sequence[int]
    temperature: float = 0.0
    generator: torch.Generator | None = None

    def complete(self, prompts: list[str], max_tokens: int, stop: list[str]) -> list[str]:
        """The completions of ``prompts``, each up to the first end of sequence or text of ``stop``."""
        prompt_ids = [encoding.ids for encoding in self.tokenizer.encode_batch(prompts)]
        order = sorted(range(len(prompts)), key=lambda index: len(prompt_ids[index]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), _BATCH):
            group = order[start : start + _BATCH]
            completions = self._continue([prompt_ids[index] for index in group], max_tokens)
            for index, new in zip(group, completions, strict=True):
                texts[index] = _cut(self.tokenizer.decode(new), stop)
        return texts

    def _continue(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        device = self.weights["model.norm.weight"].device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        # Padding on the right is invisible: attention is causal.
        ids = torch.zeros(len(prompts), int(lengths.max()) + max_tokens, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        rows = torch.arange(len(prompts), device=device)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        eos = torch.tensor(self.eos_ids, device=device)
        ends = lengths.clone()
        for _ in range(max_tokens):
            with torch.no_grad():
                logits = forward(self.weights, self.shape, ids[:, : int(ends.max())])[rows, ends - 1]
            chosen = self._choose(logits)
            done |= torch.isin(chosen, eos)
            if bool(done.all()):
                break
            ids[rows, ends] = torch.where(done, 0, chosen)
            ends += (~done).long()
        pairs = zip(ids.tolist(), lengths.tolist(), ends.tolist(), strict=True)
        return [row[start:end] for row, start, end in pairs]

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = (logits / self.temperature).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=self.generator)[:, 0]


def evaluate(
    weights: Weights, shape: Shape, tokenizer: Tokenizer, eos_ids: Sequence[int], seed: int, items: int
) -> list[str]:
    """The lines that ``main`` prints; ``weights`` are float32."""
    greedy = Reference(weights, shape, tokenizer, eos_ids)
    lines = verify.verify(greedy.complete, seed, items).lines
    device = weights["model.norm.weight"].device
    warm = Reference(weights, shape, tokenizer, eos_ids, 0.7, torch.Generator(device).manual_seed(seed))
    beginnings = [stories.opening(text) for text in islice(stories.held_out_beginnings(seed), items)]
    for name, prompts in (("opening", beginnings), ("nothing", [""] * items)):
        texts = warm.complete(prompts, verify.STORY_TOKENS, ["\n"])
        right = sum(stories.is_story(prompt + text) for prompt, text in zip(prompts, texts, strict=True))
        percent = 100 * right / items
        lines.append(f"story from {name} at temperature 0.7: {right}/{items} {percent:.1f} %")
    return lines


def load(folder: Path, device: str) -> tuple[Weights, Shape, Tokenizer, list[int]]:
    """The checkpoint in ``folder``, its weights as float32 on ``device``, and the ids that end a sequence."""
    weights = {name: tensor.float().to(device) for name, tensor in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return weights, Shape.from_config(config), tokenizer, config["eos_token_id"]


def _cut(text: str, stop: list[str]) -> str:
    return min((text.split(mark)[0] for mark in stop), key=len, default=text)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    lines = evaluate(*load(arguments.model, arguments.device), arguments.seed, arguments.items)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
