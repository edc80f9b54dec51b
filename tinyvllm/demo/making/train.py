"""Trains the checkpoint and writes its folder: ``python -m tinyvllm.demo.making.train --seed 0 --out DIR``.

Development only: needs torch, and nothing of the engine imports it. On a GPU a step is one CUDA graph, because
so small a model is bound by launches.
"""

import argparse
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional

from tinyvllm.demo import chat
from tinyvllm.demo.making import card, make_tokenizer
from tinyvllm.demo.making.evaluate import evaluate
from tinyvllm.demo.making.llama import Shape, Weights, forward, init_weights
from tinyvllm.demo.making.shards import LEARN, make_rows

_IGNORED = -100
_WEIGHT_DECAY = 0.1
_BETAS = (0.9, 0.98)
_WARM_UP_STEPS = 300
_LOG_EVERY = 250
_QUICK_ITEMS = 100


def train(weights: Weights, shape: Shape, rows: torch.Tensor, options: argparse.Namespace) -> None:
    """Trains ``weights`` in place on ``rows`` ``[R, T]``, ids with ``LEARN`` added where they are to be learnt."""
    for weight in weights.values():
        weight.requires_grad_()
    rate = torch.zeros((), device=options.device)
    batch = torch.zeros(options.batch, rows.shape[1], dtype=torch.long, device=options.device)
    step_once = _make_step(weights, shape, batch, rate, options)
    order = torch.Generator().manual_seed(options.seed)
    chosen = itertools.chain.from_iterable(_batches(len(rows), options.batch, order) for _ in itertools.count())
    started = time.monotonic()
    for step, indices in zip(range(1, options.steps + 1), chosen, strict=False):
        batch.copy_(rows[indices.to(options.device)])
        rate.fill_(_learning_rate(step, options.steps, options.learning_rate))
        loss = step_once()
        if step % _LOG_EVERY == 0:
            tokens_per_s = step * batch.numel() / (time.monotonic() - started)
            print(f"step {step} loss {loss.item():.4f} tokens/s {tokens_per_s:.0f}", flush=True)
        if step % options.save_every == 0 and step < options.steps:
            _report(weights, shape, options, _QUICK_ITEMS)


def rounded(weights: Weights) -> Weights:
    """``weights`` as the checkpoint will hold them: rounded to bfloat16, and float32 again."""
    return {name: weight.detach().bfloat16().float() for name, weight in weights.items()}


def loss_of(weights: Weights, shape: Shape, batch: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy, in nats, of the tokens of ``batch`` ``[B, T]`` that are to be learnt."""
    ids = batch & (LEARN - 1)
    targets = torch.where(batch >= LEARN, ids, _IGNORED)[:, 1:]
    on_gpu = batch.device.type == "cuda"
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
        logits = forward(weights, shape, ids)[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED)


def _make_step(
    weights: Weights, shape: Shape, batch: torch.Tensor, rate: torch.Tensor, options: argparse.Namespace
) -> Callable[[], torch.Tensor]:
    """A function that takes one step on what ``batch`` and ``rate`` hold and returns the loss."""
    on_gpu = batch.device.type == "cuda"
    # Decaying the embeddings made words that are told apart late (things, colours) collapse into one vector
    # (cosine 0.997) before anything needed the difference; "who has" then stayed at 73 % and stories at 15 %.
    decayed = [name for name in weights if name.endswith("proj.weight")]
    matrices = [weights[name] for name in decayed]
    others = [weight for name, weight in weights.items() if name not in decayed]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=_BETAS, fused=True if on_gpu else None, capturable=on_gpu)
    measure = torch.compile(loss_of) if options.compile else loss_of

    def step_once() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss: Any = measure(weights, shape, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        optimizer.step()
        detached: torch.Tensor = loss.detach()
        return detached

    return _as_graph(step_once, optimizer) if on_gpu else step_once


def _as_graph(step_once: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
    """``step_once`` captured as a CUDA graph. The warm-up steps it needs run at a learning rate of 0."""
    cuda: Any = torch.cuda
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(3):
            step_once()
    cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        loss = step_once()

    def replay() -> torch.Tensor:
        graph.replay()
        return loss

    return replay


def _batches(count: int, size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """All of ``count`` rows in random order, in batches of ``size``; what is left over is dropped."""
    order: Any = torch.randperm(count, generator=generator)
    return [part for part in order.split(size) if len(part) == size]


def _learning_rate(step: int, steps: int, peak: float) -> float:
    return peak * min(step / _WARM_UP_STEPS, (steps - step) / max(1, steps - _WARM_UP_STEPS))


def _report(weights: Weights, shape: Shape, options: argparse.Namespace, items: int) -> list[str]:
    """Saves the weights and prints what they score."""
    stored = {name: weight.detach().bfloat16().cpu().contiguous() for name, weight in weights.items()}
    save_file(stored, options.out / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    lines = evaluate(rounded(weights), shape, tokenizer, _end_ids(tokenizer), options.seed, items)
    print("\n".join(lines), flush=True)
    return lines


def _end_ids(tokenizer: Tokenizer) -> list[int]:
    return [make_tokenizer.id_of(tokenizer, chat.END), make_tokenizer.id_of(tokenizer, chat.TURN_END)]


def _write_configs(tokenizer: Tokenizer, shape: Shape, out: Path) -> None:
    token_ids = {
        "bos_token_id": make_tokenizer.id_of(tokenizer, chat.BEGIN),
        "eos_token_id": _end_ids(tokenizer),
        "pad_token_id": make_tokenizer.id_of(tokenizer, chat.PAD),
    }
    contents = {
        "config.json": shape.to_config(token_ids),
        "generation_config.json": token_ids,
        "tokenizer_config.json": make_tokenizer.tokenizer_config(shape.max_position_embeddings),
    }
    for name, content in contents.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=9500)
    parser.add_argument("--batch", type=int, default=64, help="rows in a step")
    parser.add_argument("--shards", type=int, default=64, help="of 1024 rows; they are used again and again")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--save-every", type=int, default=5000)
    parser.add_argument("--items", type=int, default=500, help="held-out items of each task in the evaluation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def main() -> None:
    """The command."""
    options = _parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer.train_tokenizer(options.seed)
    tokenizer.save(str(options.out / "tokenizer.json"), pretty=False)
    shape = Shape(vocab_size=tokenizer.get_vocab_size())
    _write_configs(tokenizer, shape, options.out)
    started = time.monotonic()
    tokenizer_path = options.out / "tokenizer.json"
    flat = make_rows(tokenizer_path, options.seed, options.shards, shape.max_position_embeddings, options.processes)
    rows = torch.frombuffer(flat, dtype=torch.int16).view(-1, shape.max_position_embeddings).to(options.device)
    print(f"{rows.numel()} tokens made in {time.monotonic() - started:.0f} s", flush=True)
    weights = init_weights(shape, torch.Generator().manual_seed(options.seed))
    print(f"{sum(weight.numel() for weight in weights.values())} parameters", flush=True)
    weights = {name: weight.to(options.device) for name, weight in weights.items()}
    train(weights, shape, rows, options)
    lines = _report(weights, shape, options, options.items)
    command = f"python -m tinyvllm.demo.making.train {shlex.join(sys.argv[1:])}"
    card.write_card(options.out, command, options.seed, options.items, lines)


if __name__ == "__main__":
    main()
