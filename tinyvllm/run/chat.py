"""A conversation with the model: what was said, and the next answer as it is generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from tinyvllm._nearest import did_you_mean
from tinyvllm.errors import RequestError, TinyvllmError
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams
from tinyvllm.run.console import Console
from tinyvllm.run.line_input import History, LineInput
from tinyvllm.run.transcript import printable
from tinyvllm.text.chat_options import DEFAULT_OPTIONS, ChatOptions
from tinyvllm.text.conversation import chat_prompt
from tinyvllm.text.messages import Message

COMMANDS = {
    "/clear": "forgets what was said",
    "/exit": "ends; so does control-D",
    "/help": "shows this",
}
HELP = "\n".join(
    (
        *(f"{command}  {does}" for command, does in COMMANDS.items()),
        'A line that ends in \\ goes on in the next one; """ begins and ends a message of several lines.',
        "Control-C stops an answer, or drops the line that is being typed.",
    )
)
# A conversation is shortened until this part of max_model_len is free for the answer.
_ANSWER_SHARE = 4


class Conversation:
    """Messages so far. Only :meth:`answer` and :meth:`clear` change them.

    Args:
        llm: who answers.
        params: how.
        system: a first message that :meth:`clear` keeps.
        options: of every prompt: ``chat_template_kwargs`` and so on.

    Attributes:
        messages: what was said and is remembered.
        num_dropped: messages that :meth:`answer` dropped the last time, because the conversation was too long.
    """

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None = None, options: ChatOptions = DEFAULT_OPTIONS
    ) -> None:
        self._llm = llm
        self._params = replace(params, n=1)
        self._options = options
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)
        self.num_dropped = 0

    def check(self) -> None:
        """Find out whether there is a template that takes the options, before anybody has typed a message.

        Raises:
            RequestError: there is none, or it is malformed or refuses the options or the system message.
        """
        chat_prompt(self._llm.get_tokenizer(), [*self._system, {"role": "user", "content": "?"}], self._options)

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self._system)

    def answer(self, text: str) -> Iterator[str]:
        """The answer to ``text``, piece by piece. Stopped early, it is remembered as far as it went.

        The oldest questions are dropped with their answers while the conversation leaves less than a quarter of
        ``max_model_len``, or less than ``max_tokens``, for the answer; the system message is kept.

        Raises:
            RequestError: ``text`` alone is too long, the template refuses the conversation, or the request failed;
                ``text`` is then forgotten.
        """
        messages, prompt = self._shortened([*self.messages, {"role": "user", "content": text}])
        self.num_dropped = len(self.messages) + 1 - len(messages)
        return self._pieces(messages, prompt)

    def _pieces(self, messages: list[Message], prompt: dict[str, Any]) -> Iterator[str]:
        said, has_failed = "", False
        try:
            for delta in self._llm.stream(prompt, self._params):
                said += delta.text
                yield delta.text
        except TinyvllmError:
            has_failed = True
            raise
        finally:
            if not has_failed:
                self.messages = [*messages, {"role": "assistant", "content": said}]

    def _shortened(self, messages: list[Message]) -> tuple[list[Message], dict[str, Any]]:
        """The messages that fit, and their prompt; the last message stays even if it does not fit."""
        limit = self._llm.max_model_len
        reserved = limit // _ANSWER_SHARE
        if self._params.max_tokens is not None:
            reserved = min(reserved, self._params.max_tokens)
        while True:
            prompt = chat_prompt(self._llm.get_tokenizer(), messages, self._options)
            shorter = self._without_oldest(messages)
            if shorter is None or len(prompt["prompt_token_ids"]) + reserved <= limit:
                return messages, prompt
            messages = shorter

    def _without_oldest(self, messages: Sequence[Message]) -> list[Message] | None:
        """The messages without the oldest question and its answer; None if there is only the last question."""
        first = len(self._system)
        later = (i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user")
        following = next(later, None)
        return None if following is None else [*self._system, *messages[following:]]


def talk(conversation: Conversation) -> int:
    """Read messages and print answers until ``/exit`` or the end of input. Prompts for messages only on a terminal.

    Returns:
        The exit code: that of RequestError if a message was refused that nobody typed, but came through a pipe.
    """
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    lines = LineInput(console)
    num_refused = 0
    if lines.is_terminal:
        console.print("/help shows the commands; control-D ends", style="dim")
    with History() if lines.is_terminal else nullcontext():
        while (message := lines.read()) is not None:
            command, *rest = message.strip().split(maxsplit=1) or [""]
            if command in ("/exit", "/quit"):
                break
            if command.startswith("/") and command[1:].isalpha():
                _obey(console, conversation, command, bool(rest))
            elif command and not _print_answer(console, conversation, message.strip()):
                num_refused += 1
    return RequestError.exit_code if num_refused and not lines.is_terminal else 0


def _obey(console: Console, conversation: Conversation, command: str, has_rest: bool) -> None:
    if command not in COMMANDS:
        console.print(f"unknown command {command}; there are {', '.join(COMMANDS)}{did_you_mean(command, COMMANDS)}")
    elif has_rest:
        console.print(f"{command} stands alone; nothing was done")
    elif command == "/clear":
        conversation.clear()
    else:
        console.print(HELP)


def _print_answer(console: Console, conversation: Conversation, message: str) -> bool:
    """Print the answer as it comes; False if the message was refused."""
    try:
        pieces = conversation.answer(message)
        if conversation.num_dropped:
            console.print(
                f"[the conversation is too long for max_model_len: its {conversation.num_dropped} oldest messages are "
                "forgotten]",
                style="dim",
            )
        try:
            for piece in pieces:
                console.print(printable(piece), end="")
                console.file.flush()
        except KeyboardInterrupt:
            pieces.close()  # type: ignore[attr-defined]
            console.print(" [stopped]", end="")
    except RequestError as error:
        console.print(f"{error}; /clear forgets what was said", style="red")
        return False
    console.print()
    return True
