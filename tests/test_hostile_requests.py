"""Whatever a request holds, it is answered or refused alone, and the engine goes on.

The long run: ``python -m pytest tests/test_hostile_requests.py --num-mutants 10000``.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

from tests.mutate import tree_mutants, without_doubled_keys
from tinyvllm import LLM, SamplingParams
from tinyvllm.errors import RequestError

MAX_SECONDS = 2
MAX_CHARACTERS = 1_500
REQUEST: dict[str, Any] = {
    "prompt": {"prompt": "ab", "prompt_token_ids": [65, 66]},
    "priority": 0,
    "deadline": 1e9,
    "params": {
        "n": 2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "repetition_penalty": 1.1,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.01,
        "seed": 3,
        "stop": ["x", "yz"],
        "stop_token_ids": [7],
        "ignore_eos": False,
        "max_tokens": 4,
        "min_tokens": 1,
        "logprobs": 2,
        "prompt_logprobs": 1,
        "detokenize": True,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "include_stop_str_in_output": False,
        "logit_bias": {"9": 1.5},
        "allowed_token_ids": [1, 2, 7, 9],
        "bad_words": ["ab"],
        "structured_outputs": None,
        "extra_args": {"mine": 1},
        "best_of": None,
    },
}


def test_any_mutant_of_a_request_is_answered_or_refused_alone(
    tiny_model: Path, num_mutants: int, mutant_seed: int
) -> None:
    llm = LLM(str(tiny_model), load_format="dummy", device="cpu", max_model_len=64)
    expected = answer(llm)
    failures, num_right = [], 0
    for mutant in tree_mutants(REQUEST, mutant_seed, num_mutants):
        begin, wrong = time.process_time(), ""
        try:
            run(llm, without_doubled_keys(mutant.value))
            num_right += 1
        except RequestError as error:
            message = str(error)
            if not message.isprintable() or len(message) > MAX_CHARACTERS:
                wrong = f"a message of {len(message)} characters, not printable or too long: {message!r}"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            wrong = f"{type(error).__name__}: {error} at {Path(where.filename).name}:{where.lineno}"
        seconds = time.process_time() - begin
        if seconds > MAX_SECONDS:
            wrong += f" it took {seconds:.1f} s"
        if wrong:
            failures.append(f"{mutant}: {wrong}"[:1_000])
    assert not failures, f"{len(failures)} of {num_mutants}\n" + "\n".join(failures[:50])
    assert answer(llm) == expected
    assert num_mutants < 20 or 0 < num_right < num_mutants


def run(llm: LLM, request: dict[str, Any]) -> None:
    """Serve one request to its end."""
    arguments = {key: request[key] for key in ("priority", "deadline") if key in request}
    params = SamplingParams.from_mapping(request.get("params", {}))
    prompt: Any = request.get("prompt")
    llm.engine.add_request("r", prompt, params, **arguments)
    deltas = []
    while llm.engine.has_unfinished_requests():
        deltas += llm.engine.step()
    assert deltas[-1].finished
    llm.engine.check()


def answer(llm: LLM) -> list[int]:
    """Tokens of a plain request."""
    llm.engine.check()
    return llm.generate("ab", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))[0].outputs[0].token_ids
