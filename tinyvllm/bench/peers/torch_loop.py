"""The peer ``torch-loop``: what a knowledgeable person writes in torch by hand, after gpt-fast's recipe.

Static key-value cache, query, key and value projections in one matrix, gate and up in one, greedy choice inside the
step, the step compiled with ``max-autotune`` and captured in one CUDA graph that carries its own state, so that the
host does nothing but replay it. On a CPU the same code runs as written, neither compiled nor captured.

Knows the Llama family: grouped-query attention, every rotary type of ours, tied and untied heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 -- as everybody calls it

from tinyvllm.bench.peers import PeerTiming
from tinyvllm.bench.peers.source import WeightSource, as_torch
from tinyvllm.bench.workload import Job
from tinyvllm.errors import ConfigError
from tinyvllm.interfaces import Checkpoint
from tinyvllm.models.llama_family import LlamaFamily
from tinyvllm.models.model import Model, expected_tensors
from tinyvllm.models.rotary import rotary_table

Tensor: TypeAlias = Any

_PROMPT_TOKENS = 16384
"""Of prompts that are computed together."""
_LENGTH_MULTIPLE = 8
_WARM_UP_STEPS = 3
_CHECKED_STEPS = 4


class _Layer(NamedTuple):
    """Matrices ``[out, in]`` as torch has them, norms ``[E]``."""

    input_norm: Tensor
    qkv: Tensor
    output: Tensor
    post_attention_norm: Tensor
    gate_up: Tensor
    down: Tensor


class _Weights(NamedTuple):
    """All of them; ``cos`` and ``sin`` are ``[positions, D / 2]`` float32."""

    embedding: Tensor
    layers: tuple[_Layer, ...]
    final_norm: Tensor
    head: Tensor
    cos: Tensor
    sin: Tensor


class _Sizes(NamedTuple):
    """What the step is compiled for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float


class _State(NamedTuple):
    """What a step changes in place.

    ``tokens`` and ``positions`` are ``[B]`` int64; ``history`` is ``[B, S]``: the token of each position; a cache is
    ``[B, K, S, D]``.
    """

    tokens: Tensor
    positions: Tensor
    history: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """State for one batch and length, and the step over it."""

    state: _State
    step: Callable[[], object]


class TorchLoopPeer:
    """Measures the loop.

    Args:
        source: the weights.
        torch_device: ``cpu`` (float32) or ``cuda`` (bfloat16).

    Raises:
        ConfigError: the model has what this loop does not know.
    """

    name = "torch-loop"

    def __init__(self, source: WeightSource, *, torch_device: str = "cpu") -> None:
        config = source.config
        _check(config)
        self._device = torch_device
        self._dtype = torch.bfloat16 if torch_device == "cuda" else torch.float32
        self._num_layers = config.shape.num_layers
        shape = config.shape
        self._sizes = _Sizes(shape.num_heads, shape.num_kv_heads, shape.head_dim, config.rms_norm_eps)
        with source.open() as checkpoint, torch.no_grad():
            self._weights = self._load(config, checkpoint)
        self._key: tuple[int, int] | None = None
        self._made: _Run | None = None

    def run(self, jobs: Sequence[Job]) -> PeerTiming:
        """All jobs at once; steps until the longest output is there."""
        if self._is_new(jobs):
            self._generate(jobs, num_steps=0)  # compiles, outside of the clock
            self._check_step(self._run_for(jobs))
        began = time.perf_counter()
        _, step_s = self._generate(jobs, num_steps=_num_steps(jobs))
        return PeerTiming(step_s, time.perf_counter() - began)

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The tokens, as many as each job asks for."""
        history, _ = self._generate(jobs, num_steps=_num_steps(jobs))
        rows = history.cpu().tolist()
        return [row[len(job.prompt) :][: job.num_output] for row, job in zip(rows, jobs, strict=True)]

    def _generate(self, jobs: Sequence[Job], num_steps: int) -> tuple[Tensor, float]:
        """The token of every position, ``[B, S]``, and seconds a step."""
        with torch.no_grad():
            run = self._run_for(jobs)
            for first, count in _groups(jobs):
                self._prefill(run.state, jobs, first, count)
            run.state.positions.copy_(torch.tensor([len(job.prompt) for job in jobs]))
            self._synchronize()
            began = time.perf_counter()
            for _ in range(num_steps):
                run.step()
            self._synchronize()
        return run.state.history, (time.perf_counter() - began) / max(1, num_steps)

    def _check_step(self, run: _Run) -> None:
        """Compare what is timed with the step as written, from the state that prompts left behind.

        Raises:
            RuntimeError: it does not advance, or mostly chooses other tokens than rounding explains.
        """
        state, num_equal = run.state, 0
        with torch.no_grad():
            for _ in range(_CHECKED_STEPS):
                tokens, positions = state.tokens.clone(), state.positions.clone()
                decode_step(self._weights, self._sizes, state)
                expected = state.tokens.clone()
                state.tokens.copy_(tokens)
                state.positions.copy_(positions)
                run.step()
                num_equal += int((state.tokens == expected).sum())
                if not torch.equal(state.positions, positions + 1):
                    raise RuntimeError("the compiled step does not advance")
        if 2 * num_equal < _CHECKED_STEPS * len(state.tokens):
            raise RuntimeError(
                f"the compiled step chose {num_equal} tokens of {_CHECKED_STEPS * len(state.tokens)} alike"
            )

    def _prefill(self, state: _State, jobs: Sequence[Job], first: int, count: int) -> None:
        """Prompts of one length: caches and first tokens of rows ``first`` to ``first + count``."""
        rows = slice(first, first + count)
        ids = torch.tensor([job.prompt for job in jobs[rows]], device=self._device)
        length = ids.shape[1]

        def attend(i: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            state.keys[i][rows, :, :length] = key
            state.values[i][rows, :, :length] = value
            group = self._sizes.num_heads // self._sizes.num_kv_heads
            key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

        places = torch.arange(length, device=self._device)[None]
        hidden = _layers(self._weights, self._sizes, ids, places, attend)[:, -1]
        tokens = _greedy(self._weights, self._sizes, hidden)
        state.tokens[rows] = tokens
        state.history[rows, length] = tokens

    def _is_new(self, jobs: Sequence[Job]) -> bool:
        return self._key != self._key_of(jobs)

    def _key_of(self, jobs: Sequence[Job]) -> tuple[int, int]:
        """Batch, and length of the cache: prompt, and as many steps as are timed or checked."""
        needed = max(len(job.prompt) for job in jobs) + max(_num_steps(jobs), _CHECKED_STEPS) + 1
        return len(jobs), -(-needed // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE

    def _run_for(self, jobs: Sequence[Job]) -> _Run:
        if self._made is None or self._is_new(jobs):
            self._made = None  # the caches of the shape before are freed first
            self._key = self._key_of(jobs)
            self._made = self._make(*self._key)
        return self._made

    def _make(self, batch: int, length: int) -> _Run:
        s, device = self._sizes, self._device
        cache = (batch, s.num_kv_heads, length, s.head_dim)

        def caches() -> tuple[Tensor, ...]:
            return tuple(torch.zeros(cache, dtype=self._dtype, device=device) for _ in range(self._num_layers))

        state = _State(
            tokens=torch.zeros(batch, dtype=torch.int64, device=device),
            positions=torch.zeros(batch, dtype=torch.int64, device=device),
            history=torch.zeros((batch, length), dtype=torch.int64, device=device),
            keys=caches(),
            values=caches(),
        )
        if device != "cuda":
            return _Run(state, lambda: decode_step(self._weights, s, state))
        compiled = torch.compile(decode_step, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
        return _Run(state, _captured(lambda: compiled(self._weights, s, state)))

    def _load(self, config: Model, checkpoint: Checkpoint) -> _Weights:
        def read(*names: str) -> Tensor:
            parts = [as_torch(torch, checkpoint.read(name)).to(self._device, self._dtype) for name in names]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        def layer(i: int) -> _Layer:
            prefix = f"model.layers.{i}"
            return _Layer(
                input_norm=read(f"{prefix}.input_layernorm.weight"),
                qkv=read(*(f"{prefix}.self_attn.{each}_proj.weight" for each in "qkv")),
                output=read(f"{prefix}.self_attn.o_proj.weight"),
                post_attention_norm=read(f"{prefix}.post_attention_layernorm.weight"),
                gate_up=read(f"{prefix}.mlp.gate_proj.weight", f"{prefix}.mlp.up_proj.weight"),
                down=read(f"{prefix}.mlp.down_proj.weight"),
            )

        embedding = read("model.embed_tokens.weight")
        num_positions = config.shape.max_position_embeddings + _LENGTH_MULTIPLE
        cos, sin = rotary_table(
            config.rotary, config.shape.head_dim, config.shape.max_position_embeddings, num_positions
        )
        return _Weights(
            embedding=embedding,
            layers=tuple(layer(i) for i in range(config.shape.num_layers)),
            final_norm=read("model.norm.weight"),
            head=embedding if config.has_tied_embeddings else read("lm_head.weight"),
            cos=torch.from_numpy(cos).to(self._device),
            sin=torch.from_numpy(sin).to(self._device),
        )

    def _synchronize(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def decode_step(weights: _Weights, sizes: _Sizes, state: _State) -> None:
    """One token of every sequence; caches, tokens, positions and history are changed in place."""
    length = state.keys[0].shape[2]
    rows = torch.arange(state.tokens.shape[0], device=state.tokens.device)
    places = torch.arange(length, device=state.tokens.device)
    is_visible = (places[None] <= state.positions[:, None])[:, None, None]  # [B, 1, 1, S]
    group = sizes.num_heads // sizes.num_kv_heads

    def attend(i: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        state.keys[i][rows, :, state.positions] = key[:, :, 0]
        state.values[i][rows, :, state.positions] = value[:, :, 0]
        # As gpt-fast does: compiled for one row, repeat and product become one kernel that reads the cache once.
        keys, values = state.keys[i].repeat_interleave(group, 1), state.values[i].repeat_interleave(group, 1)
        scores = (query * sizes.head_dim**-0.5) @ keys.transpose(-1, -2)  # [B, H, 1, S]
        shares = torch.softmax(scores.float().masked_fill(~is_visible, -torch.inf), -1)
        return shares.to(values.dtype) @ values

    hidden = _layers(weights, sizes, state.tokens[:, None], state.positions[:, None], attend)[:, 0]
    tokens = _greedy(weights, sizes, hidden)
    state.positions.add_(1)
    state.tokens.copy_(tokens)
    state.history[rows, state.positions] = tokens


def _layers(
    weights: _Weights,
    sizes: _Sizes,
    ids: Tensor,
    positions: Tensor,
    attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """The residual stream after the last layer, ``[B, T, E]``; ``attend(i, q, k, v)`` also writes the cache."""
    batch, num_tokens = ids.shape
    x = F.embedding(ids, weights.embedding)
    cos, sin = weights.cos[positions][:, None], weights.sin[positions][:, None]  # [B, 1, T, D / 2]
    query_size, kv_size = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    for i, layer in enumerate(weights.layers):
        qkv = F.linear(_rms_norm(x, layer.input_norm, sizes.eps), layer.qkv)
        parts = torch.split(qkv, [query_size, kv_size, kv_size], -1)
        query, key, value = (part.view(batch, num_tokens, -1, sizes.head_dim).transpose(1, 2) for part in parts)
        mixed = attend(i, _rotated(query, cos, sin), _rotated(key, cos, sin), value)  # [B, H, T, D]
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, num_tokens, query_size), layer.output)
        gate, up = F.linear(_rms_norm(x, layer.post_attention_norm, sizes.eps), layer.gate_up).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, layer.down)
    return x


def _greedy(weights: _Weights, sizes: _Sizes, hidden: Tensor) -> Tensor:
    """The most likely token of each row of ``[B, E]``."""
    return F.linear(_rms_norm(hidden, weights.final_norm, sizes.eps), weights.head).argmax(-1)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def _captured(step: Callable[[], object]) -> Callable[[], object]:
    """The step as a CUDA graph; compiles it, and runs it a few times, which the caller's next prefill undoes."""
    cuda: Any = torch.cuda
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(_WARM_UP_STEPS):
            step()
    cuda.current_stream().wait_stream(side)
    cuda.synchronize()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        step()
    replay: Callable[[], object] = graph.replay
    return replay


def _groups(jobs: Sequence[Job]) -> Iterator[tuple[int, int]]:
    """Neighbours with prompts of one length, as many as are computed together: first and count."""
    first = 0
    while first < len(jobs):
        length = len(jobs[first].prompt)
        most = first + max(1, _PROMPT_TOKENS // length)
        end = first + 1
        while end < min(most, len(jobs)) and len(jobs[end].prompt) == length:
            end += 1
        yield first, end - first
        first = end


def _num_steps(jobs: Sequence[Job]) -> int:
    """The prompt's logits give the first token."""
    return max(job.num_output for job in jobs) - 1


def _check(config: Model) -> None:
    tensors = expected_tensors(config)
    unknown = [
        what
        for what, is_there in (
            ("layers of another kind", not isinstance(config, LlamaFamily)),
            ("biases", any(name.endswith(".bias") for name in tensors)),
            ("norms of queries and keys", any(name.endswith("q_norm.weight") for name in tensors)),
            ("a sliding window", any(window is not None for window in config.sliding_windows)),
            ("layers without RoPE", any(layer.rotary != config.rotary for layer in config.attention_layers)),
        )
        if is_there
    ]
    if unknown:
        raise ConfigError(f"--peer torch-loop knows plain Llama models; this one has {' and '.join(unknown)}")
