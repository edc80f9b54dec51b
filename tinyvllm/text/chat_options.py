"""What may be given beside the messages of a conversation. Knows nothing about templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyvllm._checks import check_flag, refuse, shown
from tinyvllm._nearest import did_you_mean
from tinyvllm.errors import RequestError

CHAT_OPTIONS = ("add_generation_prompt", "continue_final_message", "tools", "chat_template", "chat_template_kwargs")
"""The names of what may be given beside messages: arguments of ``LLM.chat``, keys of a line of a batch file."""
_MAX_VARIABLES = 64
_TOOLS = 'a list such as [{"type": "function", "function": {"name": ..., "parameters": ...}}]'


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a conversation becomes a prompt. Values are checked when an object is made.

    Attributes:
        add_generation_prompt: end with what begins an answer.
        continue_final_message: end within the last message, so that the model goes on with it;
            ``add_generation_prompt`` must then be false.
        tools: descriptions of functions, as in OpenAI's API.
        chat_template: Jinja text, or the name of one of the checkpoint's templates; None: the checkpoint's.
        chat_template_kwargs: variables of the template (``enable_thinking``).
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> ChatOptions:
        """The options of a mapping; None stands for the default.

        Raises:
            RequestError: an option that there is not, or a bad value.
        """
        for name in options:
            if name not in CHAT_OPTIONS:
                hint = did_you_mean(name, CHAT_OPTIONS)
                raise RequestError(f"unknown option {shown(name)}{hint}; the options are {', '.join(CHAT_OPTIONS)}")
        return cls(**{name: value for name, value in options.items() if value is not None})

    def __post_init__(self) -> None:
        check_flag("add_generation_prompt", self.add_generation_prompt)
        check_flag("continue_final_message", self.continue_final_message)
        if self.add_generation_prompt and self.continue_final_message:
            raise RequestError(
                "add_generation_prompt and continue_final_message cannot both be true; to continue the last message, "
                "give add_generation_prompt as false"
            )
        _check_tools(self.tools)
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            refuse("chat_template", self.chat_template, "the text of a Jinja template")
        _check_template_kwargs(self.chat_template_kwargs)


def _check_tools(tools: object) -> None:
    if tools is None:
        return
    if not isinstance(tools, Sequence) or isinstance(tools, (str, bytes)):
        refuse("tools", tools, _TOOLS)
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            refuse(f"tools[{i}]", tool, "a mapping that describes a function")
        where, function = (f"tools[{i}].function", tool["function"]) if "function" in tool else (f"tools[{i}]", tool)
        if not isinstance(function, Mapping):
            refuse(where, function, "a mapping with name and parameters")
        if not isinstance(function.get("name"), str):
            refuse(f"{where}.name", function.get("name"), "the name of a function")


def _check_template_kwargs(kwargs: object) -> None:
    if kwargs is None:
        return
    if not isinstance(kwargs, Mapping):
        refuse("chat_template_kwargs", kwargs, 'a mapping such as {"enable_thinking": false}')
    if len(kwargs) > _MAX_VARIABLES:
        raise RequestError(f"chat_template_kwargs must have at most {_MAX_VARIABLES} entries, got {len(kwargs)}")
    for name in kwargs:
        if not isinstance(name, str) or not name.isidentifier():
            raise RequestError(f"chat_template_kwargs has the key {shown(name)}, which is no name of a variable")
        if name in ("messages", *CHAT_OPTIONS):
            raise RequestError(f"chat_template_kwargs.{name} is an argument of its own; give it as {name}")


DEFAULT_OPTIONS = ChatOptions()
"""Those of a plain conversation that waits for an answer."""
