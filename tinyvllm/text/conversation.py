"""What stands behind ``LLM.chat`` and the ``messages`` of a batch file: from messages and options to a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyvllm.prompts import list_of_conversations
from tinyvllm.text.chat_options import CHAT_OPTIONS, ChatOptions
from tinyvllm.text.messages import Messages
from tinyvllm.text.tokenizer import Tokenizer

__all__ = ["CHAT_OPTIONS", "ChatOptions", "chat_prompt", "conversations_in"]


def conversations_in(messages: Any) -> list[tuple[str, Messages]]:
    """Each conversation with what the user calls it: ``messages``, or ``messages[i]`` where several were given.

    Raises:
        RequestError: it is neither a list of messages nor a list of such lists, or it is empty.
    """
    conversations = list_of_conversations(messages)
    is_list_of_lists = isinstance(messages, Sequence) and not isinstance(messages[0], Mapping)
    if len(conversations) == 1 and not is_list_of_lists:
        return [("messages", conversations[0])]
    return [(f"messages[{i}]", each) for i, each in enumerate(conversations)]


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
