"""Admission: prompts become requests, or are refused with the reason. What is admitted can be served."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyvllm._checks import shown
from tinyvllm.batch import ALL_LOGPROBS
from tinyvllm.engine.completion import Completion
from tinyvllm.engine.request_state import RequestState
from tinyvllm.errors import RequestError
from tinyvllm.request import Request, SamplingParams, SamplingRules, check_params
from tinyvllm.sequence import SequenceTokens

if TYPE_CHECKING:
    from tinyvllm.text.tokenizer import Tokenizer

_PROMPT_KEYS = frozenset({"prompt", "prompt_token_ids"})
# Keys of vLLM's prompts that ask for nothing where they are None.
_OTHER_PROMPT_KEYS = frozenset({"cache_salt", "mm_processor_kwargs", "multi_modal_data", "multi_modal_uuids"})
_PROMPT_FORMS = 'text, a list of token ids, {"prompt": ...} or {"prompt_token_ids": [...]}'

# A request keeps all of its log-probabilities until it ends. One is a Logprob, its number, its text and a place in a
# mapping: 115 bytes and the text, measured with 20 of them beside each other.
BYTES_PER_LOGPROB = 120
MAX_LOGPROB_BYTES = 2**29


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
                names a token that does not exist, needs a tokenizer where there is none, or asks for more
                log-probabilities than the vocabulary or memory has; ``priority`` or ``deadline`` is no such number.
        """
        params = self.default_params if params is None else check_params("params", params)
        params.check_vocabulary(self._vocab_size)
        if self.tokenizer is None and (params.stop or params.bad_words):
            raise RequestError("sampling.stop and bad_words need a tokenizer, and there is none; use stop_token_ids")
        text, token_ids = self._tokens(prompt)
        request = Request(request_id, text, token_ids, params, priority, deadline, time.monotonic())
        largest = max(request.prompt_token_ids)
        if largest >= self._vocab_size:
            raise RequestError(
                f"request {shown(request_id)}: token {largest} in the prompt, but the last of the vocabulary is "
                f"{self._vocab_size - 1}; was it made with another tokenizer?"
            )
        self._check_length(request)
        self._check_logprobs(request)
        return request

    def begin(self, request: Request, *, stream: bool) -> RequestState:
        """The request's state, with its ``n`` completions."""
        params = request.params
        seed = params.seed
        if seed is None:
            entropy = np.random.SeedSequence([self._seed, self._num_requests])
            seed = int(entropy.generate_state(1, np.uint64)[0])
        state = RequestState(request, seed=seed, tokenizer=self.tokenizer, stream=stream)
        rules = SamplingRules(self._eos_token_ids, self._bad_words(params))
        max_output = self.max_tokens(request) - len(request.prompt_token_ids)
        prompt_ids = np.array(request.prompt_token_ids, np.int32)
        for index in range(params.n):
            tokens = SequenceTokens.from_prompt(prompt_ids, params, rules)
            state.completions.append(Completion(state, index, tokens, max_output))
        self._num_requests += 1
        return state

    def max_tokens(self, request: Request) -> int:
        """Prompt and output together are never longer than this."""
        max_output = self.max_model_len if request.params.max_tokens is None else request.params.max_tokens
        return min(len(request.prompt_token_ids) + max_output, self.max_model_len)

    def _tokens(self, prompt: str | Mapping[str, Any] | Sequence[int]) -> tuple[str | None, Sequence[int]]:
        if isinstance(prompt, (dict, Mapping)):  # dict first, as nearly always: the abstract class takes far longer
            unknown = [
                key
                for key in prompt
                if key not in _PROMPT_KEYS and not (key in _OTHER_PROMPT_KEYS and prompt[key] is None)
            ]
            if unknown or not prompt:
                raise RequestError(f"a prompt has the keys prompt or prompt_token_ids, got {shown(list(prompt))}")
            text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            if text is not None and not isinstance(text, str):
                raise RequestError(f"prompt must be a string, got {type(text).__name__}")
            if token_ids is not None:
                return text, token_ids
            if text is None:
                raise RequestError(f"a prompt is {_PROMPT_FORMS}, got {shown(dict(prompt))}")
            prompt = text
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("the prompt is text but no tokenizer is loaded; give prompt_token_ids")
            return prompt, self.tokenizer.encode(prompt)
        is_list = isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray))
        if not is_list and not hasattr(prompt, "tolist"):
            raise RequestError(f"a prompt is {_PROMPT_FORMS}, got {shown(prompt)}")
        return None, prompt

    def _check_length(self, request: Request) -> None:
        num_prompt = len(request.prompt_token_ids)
        if num_prompt >= self.max_model_len:
            raise RequestError(
                f"request {shown(request.request_id)}: the prompt has {num_prompt} tokens and max_model_len is "
                f"{self.max_model_len}, which must leave room for one more; shorten it or raise max_model_len"
            )
        # The last token that is sampled is never fed back, so it needs no place.
        needed = -(-(self.max_tokens(request) - 1) // self._block_size)
        if needed > self._num_blocks:
            raise RequestError(
                f"request {shown(request.request_id)} can never fit: {num_prompt} prompt tokens and up to "
                f"{self.max_tokens(request) - num_prompt} more need {needed} KV blocks of {self._block_size}, and the "
                f"cache has {self._num_blocks}; lower max_tokens or max_model_len, or raise cache.num_blocks_override, "
                "cache.kv_bytes or cache.gpu_memory_utilization"
            )

    def _check_logprobs(self, request: Request) -> None:
        """Refuse a request whose log-probabilities would fill the memory."""
        params, num_prompt = request.params, len(request.prompt_token_ids)
        num_output = params.n * (self.max_tokens(request) - num_prompt)
        width, prompt_width = self._num_logprobs(params.logprobs), self._num_logprobs(params.prompt_logprobs)
        num_bytes = BYTES_PER_LOGPROB * (num_output * width + num_prompt * prompt_width)
        if num_bytes > MAX_LOGPROB_BYTES:
            raise RequestError(
                f"request {shown(request.request_id)}: log-probabilities of up to {num_output} generated tokens "
                f"({width} each, n is {params.n}) and of {num_prompt} prompt tokens ({prompt_width} each) take about "
                f"{num_bytes / 2**20:,.0f} MiB, and one request may have {MAX_LOGPROB_BYTES / 2**20:,.0f} MiB; lower "
                "logprobs, prompt_logprobs, max_tokens or n"
            )

    def _num_logprobs(self, num_beside: int | None) -> int:
        """Log-probabilities of one token, its own included, where so many beside it are asked for."""
        if num_beside is None:
            return 0
        return self._vocab_size if num_beside == ALL_LOGPROBS else 1 + num_beside

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
