"""Talk with a model, line by line."""

from __future__ import annotations

import argparse
from dataclasses import replace

from tinyvllm.cli.options import add_config_arguments, add_engine_arguments, add_sampling_arguments, resolve
from tinyvllm.run.refuse import refuse_fields


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``chat``."""
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    add_engine_arguments(parser)
    add_sampling_arguments(parser)
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the model and talk. Answers end where the model ends them unless ``max_tokens`` says otherwise."""
    resolved = resolve(args)
    refuse_fields(
        resolved, ("n", "logprobs", "prompt_logprobs", "detokenize"), "a conversation has one answer, as text"
    )
    from tinyvllm.llm import LLM
    from tinyvllm.run.chat import Conversation, talk
    from tinyvllm.run.jobs import merged_params

    llm = LLM.from_config(resolved)
    sampling = resolved.config.run.sampling if resolved.config.run else {}
    params = merged_params(replace(llm.get_default_sampling_params(), max_tokens=None), sampling)
    talk(Conversation(llm, params, args.system))
    return 0
