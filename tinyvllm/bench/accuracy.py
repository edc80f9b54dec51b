"""``bench accuracy``: logits of the whole engine against transformers in float32 on the same values.

Ours come through the Sampler socket of a running engine (see :mod:`.recorder`), so that prefill, decode, mixed steps
and the head are all in them. The reference is given the very tokens that ours chose. What is compared are raw logits,
no transform of them. With a sampler of its own a device launches one by one what is a graph otherwise, and the host
chooses; so the tokens of an engine left as it is are compared as well.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.bench.peers.recorder import take_recorded
from tinyvllm.bench.peers.source import WeightSource
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams
from tinyvllm.shapes import Float32

MAX_ERROR = 2e-2
"""Of our logits against the reference, and of a request's logits alone against those in company."""
MAX_RATIO = 1.5
"""Of our error to that of transformers in bfloat16."""


@dataclass(frozen=True, slots=True)
class AccuracyResult:
    """One comparison. An error is the l2 norm of a difference over that of what it is compared with.

    Attributes:
        case: what ran.
        num_positions: rows of logits that were compared.
        error: over all of them together; this is what has bounds.
        worst_error: of the worst row.
        peer_error: of transformers in bfloat16 against the same reference, over all rows; None: not compared.
        num_clear: rows whose two best tokens are further apart, in the reference, than rounding can bring them:
            twice ``MAX_RATIO`` times the largest difference of one logit that transformers in bfloat16 has anywhere.
        num_other_top: those of them where our best token is another.
        is_bit_equal: whether no bit differs; None: not asked.
        broken: which bounds do not hold; empty if all do.
    """

    case: str
    num_positions: int
    error: float
    worst_error: float
    peer_error: float | None = None
    num_clear: int | None = None
    num_other_top: int | None = None
    is_bit_equal: bool | None = None
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt, what was generated, and the logits of each generated token, ``[n, V]`` float32."""

    prompt: Sequence[int]
    token_ids: Sequence[int]
    logits: Float32


class Recorded:
    """An engine whose sampler is the recorder.

    Args:
        llm: the engine.
        folder: where its sampler writes.
    """

    def __init__(self, llm: LLM, folder: Path) -> None:
        self.llm = llm
        self._folder = folder
        self._num_requests = 0

    def answers(self, prompts: Sequence[Sequence[int]], num_output: int) -> list[Answer]:
        """All prompts at once, greedily."""
        seeds = [self._num_requests + i for i in range(len(prompts))]
        self._num_requests += len(prompts)
        # Not 0: an engine may choose greedy tokens without asking its sampler.
        params = [
            SamplingParams(temperature=1.0, max_tokens=num_output, ignore_eos=True, detokenize=False, seed=seed)
            for seed in seeds
        ]
        outputs = self.llm.generate([{"prompt_token_ids": list(each)} for each in prompts], params, use_tqdm=False)
        return [
            Answer(
                prompt,
                output.outputs[0].token_ids,
                take_recorded(self._folder, seed, range(len(prompt), len(prompt) + num_output)),
            )
            for prompt, seed, output in zip(prompts, seeds, outputs, strict=True)
        ]


class TransformersReference:
    """The same model in transformers, in float32 and in bfloat16.

    Args:
        source: the weights.
        torch_device: ``cpu`` or ``cuda``.
        weight_dtype: what the engine rounds weights to, ``bfloat16``, ``float16`` or ``float32``; the reference
            computes with the same values.
    Raises:
        ConfigError: torch or transformers is not installed.
    """

    def __init__(self, source: WeightSource, *, torch_device: str, weight_dtype: str) -> None:
        from tinyvllm.bench.peers.transformers import import_transformers, load_model

        torch, _ = import_transformers()
        self._torch, self._device = torch, torch_device
        torch.backends.cuda.matmul.allow_tf32 = False
        narrow = load_model(source, torch_device, torch.bfloat16)
        is_shared = weight_dtype == "bfloat16"
        wide = copy.deepcopy(narrow) if is_shared else load_model(source, torch_device, getattr(torch, weight_dtype))
        wide.float()
        wide.set_attn_implementation("eager")  # plain attention, every product in float32
        self._models = {False: narrow, True: wide}

    def logits(self, answer: Answer, *, is_wide: bool) -> Float32:
        """The logits of each generated token, ``[n, V]``, given all tokens before it."""
        torch, num_output = self._torch, len(answer.token_ids)
        ids = torch.tensor([[*answer.prompt, *answer.token_ids[:-1]]], device=self._device)
        with torch.inference_mode():
            found: Any = self._models[is_wide](ids, logits_to_keep=num_output, use_cache=False).logits
        logits: Float32 = found[0].float().cpu().numpy()
        assert len(logits) == num_output
        return logits


def prompts_of(vocab_size: int, lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Random tokens."""
    rng = random.Random(seed)  # noqa: S311 -- a workload, not a secret
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]


def measure_accuracy(
    recorded: Recorded,
    reference: TransformersReference,
    *,
    input_lens: Sequence[int],
    batch_sizes: Sequence[int],
    output_len: int,
) -> list[AccuracyResult]:
    """Every batch size with prompts of every length, and one batch of all lengths together."""
    vocab_size = recorded.llm.shape.vocab_size
    cases = [(f"{size} x {length} tokens", [length] * size) for size in batch_sizes for length in input_lens]
    cases.append(("all lengths together", [*input_lens, *input_lens]))
    results = []
    for i, (case, lengths) in enumerate(cases):
        answers = recorded.answers(prompts_of(vocab_size, lengths, seed=i), output_len)
        results.append(_against_reference(case, answers, reference))
    return results


def _against_reference(case: str, answers: Sequence[Answer], reference: TransformersReference) -> AccuracyResult:
    ours = np.concatenate([answer.logits for answer in answers])
    wide = np.concatenate([reference.logits(answer, is_wide=True) for answer in answers])
    peer = np.concatenate([reference.logits(answer, is_wide=False) for answer in answers])
    error, peer_error = _error(ours, wide), _error(peer, wide)
    is_clear = _is_clear(wide, peer)
    num_other = int((ours.argmax(-1) != wide.argmax(-1))[is_clear].sum())
    return AccuracyResult(
        case=case,
        num_positions=len(ours),
        error=error,
        worst_error=float(_row_errors(ours, wide).max()),
        peer_error=peer_error,
        num_clear=int(is_clear.sum()),
        num_other_top=num_other,
        broken=_broken(
            {
                f"error over {MAX_ERROR}": not error <= MAX_ERROR,
                f"error over {MAX_RATIO} times transformers'": not error <= MAX_RATIO * peer_error,
                "another top token": num_other > 0,
            }
        ),
    )


def measure_company(recorded: Recorded, *, input_lens: Sequence[int], output_len: int) -> AccuracyResult:
    """Each request alone, then all at once beside others; as long as they chose the same tokens.

    With ``batch_invariant`` every bit must be equal, without it the difference is bounded by ``MAX_ERROR``.
    """
    is_invariant = recorded.llm.config.batch_invariant
    vocab_size = recorded.llm.shape.vocab_size
    prompts = prompts_of(vocab_size, input_lens, seed=100)
    alone = [recorded.answers([prompt], output_len)[0] for prompt in prompts]
    others = prompts_of(vocab_size, [length + 3 for length in input_lens], seed=101)
    together = recorded.answers([*others, *prompts], output_len)[len(others) :]
    pairs = [_while_equal(a, b) for a, b in zip(alone, together, strict=True)]
    lonely, accompanied = (np.concatenate(each) for each in zip(*pairs, strict=True))
    error = _error(accompanied, lonely)
    num_expected = len(prompts) * output_len
    is_equal = len(lonely) == num_expected and np.array_equal(lonely.view(np.uint32), accompanied.view(np.uint32))
    return AccuracyResult(
        case=f"alone and in company, batch_invariant: {str(is_invariant).lower()}",
        num_positions=len(lonely),
        error=error,
        worst_error=float(_row_errors(accompanied, lonely).max()),
        is_bit_equal=is_equal,
        broken=_broken(
            {"bits differ": is_invariant and not is_equal, f"difference over {MAX_ERROR}": not error <= MAX_ERROR}
        ),
    )


def measure_greedy(answers: Sequence[Answer], plain: LLM, reference: TransformersReference) -> AccuracyResult:
    """Greedy tokens of ``plain``, which samples as it usually does, where those of ``answers`` are clear.

    Errors are of the answers' logits. Tokens after the first that differs are not looked at.
    """
    params = [
        SamplingParams(temperature=0.0, max_tokens=len(answer.token_ids), ignore_eos=True, detokenize=False)
        for answer in answers
    ]
    prompts = [{"prompt_token_ids": list(answer.prompt)} for answer in answers]
    outputs = plain.generate(prompts, params, use_tqdm=False)
    result = _against_reference("greedy tokens, sampler default", answers, reference)
    num_clear = num_other = 0
    for answer, output in zip(answers, outputs, strict=True):
        wide, peer = (reference.logits(answer, is_wide=is_wide) for is_wide in (True, False))
        pairs = zip(answer.token_ids, output.outputs[0].token_ids, _is_clear(wide, peer).tolist(), strict=True)
        for expected, token_id, is_clear in pairs:
            num_clear += is_clear
            num_other += is_clear and token_id != expected
            if token_id != expected:
                break
    broken = ", ".join(filter(None, [result.broken, "another token" if num_other else ""]))
    return replace(result, num_clear=num_clear, num_other_top=num_other, broken=broken)


def _is_clear(wide: Float32, peer: Float32) -> NDArray[np.bool_]:
    """``[n]``: whether rounding as coarse as the peer's cannot change the best token of a row."""
    second, best = np.partition(wide, -2, axis=-1)[:, -2:].T
    clear: NDArray[np.bool_] = best - second > 2 * MAX_RATIO * np.abs(peer - wide).max()
    return clear


def _while_equal(first: Answer, second: Answer) -> tuple[Float32, Float32]:
    """Their logits up to and with the first token that differs: those after it answer other questions."""
    differing = [i for i, (a, b) in enumerate(zip(first.token_ids, second.token_ids, strict=True)) if a != b]
    end = differing[0] + 1 if differing else len(first.token_ids)
    return first.logits[:end], second.logits[:end]


def _broken(bounds: dict[str, bool]) -> str:
    return ", ".join(what for what, is_broken in bounds.items() if is_broken)


def _error(values: Float32, reference: Float32) -> float:
    wide = reference.astype(np.float64)
    return float(np.linalg.norm(values - wide) / np.linalg.norm(wide))


def _row_errors(values: Float32, reference: Float32) -> Any:
    wide = reference.astype(np.float64)
    return np.linalg.norm(values - wide, axis=-1) / np.linalg.norm(wide, axis=-1)
