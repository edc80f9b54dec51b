"""Talk with a model, line by line."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from tinyvllm._checks import shown
from tinyvllm.cli.options import add_config_arguments, add_engine_arguments, add_sampling_arguments, resolve
from tinyvllm.errors import ConfigError, RequestError
from tinyvllm.run.refuse import refuse_fields
from tinyvllm.text.chat_options import ChatOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``chat``."""
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    parser.add_argument(
        "--chat-template", metavar="FILE", help="a Jinja file instead of the checkpoint's chat template"
    )
    parser.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        help="""variables of the chat template: '{"enable_thinking": false}'""",
    )
    add_engine_arguments(parser)
    add_sampling_arguments(parser)
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the model and talk. Answers end where the model ends them unless ``max_tokens`` says otherwise."""
    options = _options(args.chat_template_kwargs)
    resolved = resolve(args, {("chat_template",): args.chat_template} if args.chat_template is not None else None)
    refuse_fields(
        resolved, ("n", "logprobs", "prompt_logprobs", "detokenize"), "a conversation has one answer, as text"
    )
    from tinyvllm.llm import LLM
    from tinyvllm.run.chat import Conversation, talk
    from tinyvllm.run.jobs import merged_params

    llm = LLM.from_config(resolved)
    sampling = resolved.config.run.sampling if resolved.config.run else {}
    params = merged_params(replace(llm.get_default_sampling_params(), max_tokens=None), sampling)
    conversation = Conversation(llm, params, args.system, options)
    conversation.check()
    return talk(conversation)


def _options(text: str | None) -> ChatOptions:
    if text is None:
        return ChatOptions()
    where = "--chat-template-kwargs"
    try:
        kwargs: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where} must be JSON such as '{{\"enable_thinking\": false}}', got {shown(text)}: {error}"
        ) from error
    try:
        return ChatOptions(chat_template_kwargs=kwargs)
    except RequestError as error:
        raise ConfigError(f"{where}: {error}") from error
