"""What stands behind ``LLM.chat`` and the ``messages`` of a batch file: from messages and options to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyvllm.text.chat_options import CHAT_OPTIONS, ChatOptions
from tinyvllm.text.messages import Messages, check_messages
from tinyvllm.text.tokenizer import Tokenizer

__all__ = ["CHAT_OPTIONS", "ChatOptions", "chat_prompt", "conversations_in"]


def conversations_in(messages: Any) -> list[tuple[str, Messages]]:
    """Each conversation with what the user calls it: ``messages``, or ``messages[i]`` where several were given.

    Raises:
        RequestError: it is neither a list of messages nor a list of such lists, or it is empty.
    """
    checked: Sequence[Any] = messages if _is_list_of_lists(messages) else check_messages(messages)
    if not _is_list_of_lists(checked):
        return [("messages", checked)]
    return [(f"messages[{i}]", check_messages(each, f"messages[{i}]")) for i, each in enumerate(checked)]


def chat_prompt(
    tokenizer: Tokenizer, messages: Messages, options: ChatOptions, where: str = "messages"
) -> dict[str, Any]:
    """The prompt of a conversation, as text and tokens.

    Args:
        tokenizer: with the chat template.
        messages: of one conversation.
        options: beside the messages.
        where: what the user calls the messages, for messages of errors.
    Raises:
        RequestError: something is malformed, by its place; or the template refuses the messages.
    """
    text = tokenizer.render_conversation(messages, options, where)
    # The template writes the special tokens itself; the tokenizer must not add them again.
    return {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}


def _is_list_of_lists(messages: Any) -> bool:
    is_list = isinstance(messages, Sequence) and not isinstance(messages, (str, bytes))
    return (
        is_list and bool(messages) and isinstance(messages[0], Sequence) and not isinstance(messages[0], (str, bytes))
    )
