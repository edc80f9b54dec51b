"""The blocking front: prompts in, all their outputs back. vLLM's spelling.

::

    from tinyvllm import LLM, SamplingParams
    outputs = LLM("demo").generate(["12+7="], SamplingParams(temperature=0, max_tokens=8))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvllm._progress import Progress
from tinyvllm.config.resolve import Resolved, config_from_mapping, load_config
from tinyvllm.device import Device, Gpu
from tinyvllm.engine.engine import Engine
from tinyvllm.engine.engine_thread import EngineThread, NewRequest
from tinyvllm.engine.stats import EngineStats
from tinyvllm.errors import RequestError
from tinyvllm.outputs import OutputDelta, RequestOutput
from tinyvllm.prompts import Messages, Prompt, list_of_params, list_of_priorities, list_of_prompts
from tinyvllm.request import SamplingParams
from tinyvllm.shapes import ModelShape
from tinyvllm.start.build import Built, build_engine

if TYPE_CHECKING:
    from tinyvllm.text.tokenizer import Tokenizer


_PROGRESS_INTERVAL_S = 0.1


class LLM:
    """A model that is loaded and ready.

    Args:
        model: ``"demo"``, a folder in Hugging Face layout, or ``org/name`` from the local cache.
        tokenizer: folder of the tokenizer; None: the model's own.
        skip_tokenizer_init: load no tokenizer; prompts are token ids and there is no text.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"emulator"``.
        dtype: what weights are rounded to; ``"auto"``: as stored.
        max_model_len: longest sequence; None: the checkpoint's own limit.
        seed: of dummy weights, and of requests without a seed.
        sections: every other key of a configuration file, sections as mappings: ``scheduler={"name": "static"}``.

    Raises:
        ConfigError, PluginError, LoadError, DeviceError, CapacityError: see :mod:`tinyvllm.errors`.
    """

    def __init__(
        self,
        model: str,
        tokenizer: str | None = None,
        skip_tokenizer_init: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        max_model_len: int | None = None,
        seed: int = 0,
        **sections: Any,
    ) -> None:
        named = {
            "model": model,
            "tokenizer": tokenizer,
            "skip_tokenizer_init": skip_tokenizer_init,
            "device": device,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "seed": seed,
        }
        self._start(config_from_mapping({**named, **sections}))

    @classmethod
    def from_config(cls, config: str | Path | Mapping[str, Any] | Resolved) -> LLM:
        """The model that a configuration file, a mapping of the same keys, or an already read one describes."""
        if isinstance(config, Mapping):
            config = config_from_mapping(config)
        elif not isinstance(config, Resolved):
            config = load_config(config)
        llm = cls.__new__(cls)
        llm._start(config)
        return llm

    def _start(self, resolved: Resolved) -> None:
        self.config = resolved.config
        self._built: Built = build_engine(resolved.config, resolved.registry, resolved.plugin_options, resolved.base)
        self._thread = EngineThread(self._built.engine)

    def __repr__(self) -> str:
        shape, device = self.shape, self.device
        name = device.properties.name if isinstance(device, Gpu) else device.name
        size = f"{shape.num_layers} layers, vocab_size={shape.vocab_size}"
        return f"LLM({self.config.model!r}, device={name!r}, max_model_len={self._built.max_model_len}, {size})"

    @property
    def engine(self) -> Engine:
        """The engine behind: for callers that drive the loop themselves."""
        return self._built.engine

    @property
    def report(self) -> Sequence[str]:
        """What was chosen at start and why, a line each."""
        return self._built.report

    @property
    def shape(self) -> ModelShape:
        """The sizes of the model."""
        return self._built.shape

    @property
    def device(self) -> Device:
        """The device that the model is on."""
        return self._built.device

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight, and of a number in the KV cache, where the model is."""
        return self.device.activation_dtype.itemsize

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence, prompt and output together."""
        return self._built.max_model_len

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies."""
        return self._built.folder

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            RequestError: there is none.
        """
        if self._built.tokenizer is None:
            raise RequestError("no tokenizer is loaded; leave out skip_tokenizer_init, or give tokenizer a folder")
        return self._built.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What holds for requests without parameters: the checkpoint's ``generation_config.json``."""
        return SamplingParams.from_mapping(self._built.defaults.sampling)

    def get_metrics(self) -> EngineStats:
        """Counts since the engine began."""
        return self.engine.stats()

    def generate(
        self,
        prompts: Prompt | Iterable[Any],
        sampling_params: SamplingParams | Iterable[SamplingParams | None] | None = None,
        use_tqdm: bool = True,
        *,
        priority: int | Iterable[int] = 0,
    ) -> list[RequestOutput]:
        """Complete every prompt. Several threads may call it: they share the batch, and each gets its own outputs.

        Args:
            prompts: one or a list (a tuple, a generator) of: text, ``{"prompt": ...}``, a list of token ids,
                ``{"prompt_token_ids": [...]}``.
            sampling_params: for all, or one a prompt; None: the checkpoint's defaults.
            use_tqdm: show progress if there is a terminal.
            priority: for all, or one a prompt; lower is sooner, for schedulers that look at it.
        Returns:
            one output a prompt, in the order of ``prompts``.
        Raises:
            RequestError: a prompt or its parameters cannot be served; none of the prompts is left behind.
            TinyvllmError: a plugin or the device has failed while one of the prompts was computed.
        """
        prompts = list_of_prompts(prompts)
        params = list_of_params(sampling_params, len(prompts))
        priorities = list_of_priorities(priority, len(prompts))
        return self._run([NewRequest(*each) for each in zip(prompts, params, priorities, strict=True)], use_tqdm)

    def chat(
        self,
        messages: Messages | Iterable[Messages],
        sampling_params: SamplingParams | Iterable[SamplingParams | None] | None = None,
        use_tqdm: bool = True,
        *,
        priority: int | Iterable[int] = 0,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, through the checkpoint's chat template.

        Args:
            messages: ``[{"role": "user", "content": "..."}, ...]``, or a list of such lists.
            sampling_params, use_tqdm, priority: as in :meth:`generate`.
            add_generation_prompt: end the prompt with what begins an answer.
            continue_final_message: go on with the last message; needs ``add_generation_prompt=False``.
            tools: descriptions of functions, as in OpenAI's API.
            chat_template: Jinja text, or the name of one of the checkpoint's templates, instead of its default.
            chat_template_kwargs: variables of the template, ``{"enable_thinking": False}``.
        Raises:
            RequestError: as in :meth:`generate`; something is not in the format, by its place
                (``messages[1].content[0].type``); or the template refuses the messages.
        """
        from tinyvllm.text.conversation import ChatOptions, chat_prompt, conversations_in

        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )
        tokenizer = self.get_tokenizer()
        prompts = [chat_prompt(tokenizer, each, options, where) for where, each in conversations_in(messages)]
        return self.generate(prompts, sampling_params, use_tqdm, priority=priority)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        """The prompt that :meth:`generate` takes for one conversation.

        Args:
            messages: ``[{"role": "user", "content": "..."}, ...]``.
            options: those of :meth:`chat` from ``add_generation_prompt`` on.
        Raises:
            RequestError: as in :meth:`chat`.
        """
        from tinyvllm.text.conversation import ChatOptions, chat_prompt

        return chat_prompt(self.get_tokenizer(), messages, ChatOptions.from_mapping(options))

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> Iterator[OutputDelta]:
        """Complete one prompt, and give what is new as it comes.

        Closing the iterator ends the request.

        Args:
            prompt: text, ``{"prompt": ...}`` or ``{"prompt_token_ids": [...]}``; :meth:`chat_prompt` makes one.
            sampling_params: None: the checkpoint's defaults.
            priority: lower is sooner, for schedulers that look at it.
        Returns:
            deltas, each of one completion: new tokens, new text, and at the end why it ended. What has come since the
            last one was taken comes as one.
        Raises:
            RequestError: the prompt or its parameters cannot be served.
        """
        call = self._thread.new_call([NewRequest(prompt, sampling_params, priority)], stream=True)
        for deltas in self._thread.deltas_of(call):
            yield from deltas

    def _run(self, requests: Sequence[NewRequest], use_tqdm: bool) -> list[RequestOutput]:
        call, finished = self._thread.new_call(requests), dict[str, RequestOutput]()
        with Progress(self.engine, total=len(requests), is_shown=use_tqdm) as progress:
            for deltas in self._thread.deltas_of(call, _PROGRESS_INTERVAL_S):
                finished.update((delta.request_id, delta.output) for delta in deltas if delta.output is not None)
                progress.update(len(finished))
        return [finished[request_id] for request_id in call.request_ids]
