"""At the door: prompts become requests, or are refused with the reason. Nothing that was let in fails later."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyvllm.engine.completion import Completion, RequestState
from tinyvllm.errors import RequestError
from tinyvllm.request import Request, SamplingParams, SamplingRules
from tinyvllm.sequence import SequenceTokens

if TYPE_CHECKING:
    from tinyvllm.text.tokenizer import Tokenizer


class Admission:
    """The limits of one engine, and what the checkpoint says about generation.

    Args:
        tokenizer: None: prompts are token ids, and there is no text.
        vocab_size: ``V``.
        max_model_len: longest sequence.
        num_blocks, block_size: what the KV cache can hold.
        eos_token_ids: of the checkpoint.
        default_params: for requests without parameters.
        seed: of the engine; requests without a seed draw theirs from it, in order of arrival.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
        eos_token_ids: tuple[int, ...],
        default_params: SamplingParams,
        seed: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.default_params = default_params
        self._vocab_size = vocab_size
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._eos_token_ids = eos_token_ids
        self._seed = seed
        self._num_requests = 0

    def admit(
        self,
        request_id: str,
        prompt: str | Mapping[str, Any] | Sequence[int],
        params: SamplingParams | None,
        *,
        priority: int = 0,
        deadline: float = math.inf,
    ) -> Request:
        """The request, with its prompt in tokens.

        Raises:
            RequestError: the prompt is malformed, names tokens that do not exist, or can never fit; a parameter
                names a token that does not exist, or needs a tokenizer where there is none.
        """
        params = self.default_params if params is None else params
        params.check_vocabulary(self._vocab_size)
        if self.tokenizer is None and (params.stop or params.bad_words):
            raise RequestError("sampling.stop and bad_words need a tokenizer, and there is none; use stop_token_ids")
        text, token_ids = self._tokens(prompt)
        request = Request(request_id, text, token_ids, params, priority, deadline, time.monotonic())
        largest = max(request.prompt_token_ids)
        if largest >= self._vocab_size:
            raise RequestError(
                f"request {request_id!r}: token {largest} in the prompt, but the last of the vocabulary is "
                f"{self._vocab_size - 1}; was it made with another tokenizer?"
            )
        self._check_length(request)
        return request

    def begin(self, request: Request, *, stream: bool) -> RequestState:
        """The request's state, with its ``n`` completions."""
        params = request.params
        seed = params.seed
        if seed is None:
            entropy = np.random.SeedSequence([self._seed, self._num_requests])
            seed = int(entropy.generate_state(1, np.uint64)[0])
        self._num_requests += 1
        state = RequestState(request, seed=seed, tokenizer=self.tokenizer, stream=stream)
        rules = SamplingRules(self._eos_token_ids, self._bad_words(params))
        most_output = self.most_tokens(request) - len(request.prompt_token_ids)
        prompt_ids = np.array(request.prompt_token_ids, np.int32)
        for index in range(params.n):
            tokens = SequenceTokens.from_prompt(prompt_ids, params, rules)
            state.completions.append(Completion(state, index, tokens, most_output))
        return state

    def most_tokens(self, request: Request) -> int:
        """Prompt and output together are never longer than this."""
        most_output = self.max_model_len if request.params.max_tokens is None else request.params.max_tokens
        return min(len(request.prompt_token_ids) + most_output, self.max_model_len)

    def _tokens(self, prompt: str | Mapping[str, Any] | Sequence[int]) -> tuple[str | None, Sequence[int]]:
        if isinstance(prompt, (dict, Mapping)):  # dict first, as nearly always: the abstract class takes far longer
            unknown = set(prompt) - {"prompt", "prompt_token_ids"}
            if unknown or not prompt:
                raise RequestError(f"a prompt has the keys prompt or prompt_token_ids, got {sorted(map(str, prompt))}")
            text = prompt.get("prompt")
            if text is not None and not isinstance(text, str):
                raise RequestError(f"prompt must be a string, got {type(text).__name__}")
            if prompt.get("prompt_token_ids") is not None:
                return text, prompt["prompt_token_ids"]
            prompt = text if text is not None else ()
        if not isinstance(prompt, str):
            return None, prompt
        if self.tokenizer is None:
            raise RequestError("the prompt is text but no tokenizer is loaded; give prompt_token_ids")
        return prompt, self.tokenizer.encode(prompt)

    def _check_length(self, request: Request) -> None:
        num_prompt = len(request.prompt_token_ids)
        if num_prompt >= self.max_model_len:
            raise RequestError(
                f"request {request.request_id!r}: the prompt has {num_prompt} tokens and max_model_len is "
                f"{self.max_model_len}, which must leave room for one more; shorten it or raise max_model_len"
            )
        # The last token that is sampled is never fed back, so it needs no place.
        needed = -(-(self.most_tokens(request) - 1) // self._block_size)
        if needed > self._num_blocks:
            raise RequestError(
                f"request {request.request_id!r} can never fit: {num_prompt} prompt tokens and up to "
                f"{self.most_tokens(request) - num_prompt} more need {needed} KV blocks of {self._block_size}, and the "
                f"cache has {self._num_blocks}; lower max_tokens or max_model_len, or raise cache.num_blocks_override "
                "or cache.gpu_memory_utilization"
            )

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Token ids of each bad word, at the start of a text and after a space where that differs."""
        if not params.bad_words or self.tokenizer is None:
            return ()
        spellings: list[tuple[int, ...]] = []
        for word in params.bad_words:
            for prefix in ("", " "):
                token_ids = tuple(self.tokenizer.encode(prefix + word.lstrip(), add_special_tokens=False))
                if token_ids and token_ids not in spellings:
                    spellings.append(token_ids)
        return tuple(spellings)
