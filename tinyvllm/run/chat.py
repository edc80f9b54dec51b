"""A conversation with the model: what was said, and the next answer as it is generated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from tinyvllm.errors import RequestError
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams
from tinyvllm.run.console import Console
from tinyvllm.run.transcript import printable

HELP = "/exit ends, /clear forgets what was said, /help shows this; control-C stops an answer"


class Conversation:
    """Messages so far. Only :meth:`answer` and :meth:`clear` change them.

    Args:
        llm: who answers.
        params: how.
        system: a first message that :meth:`clear` keeps.
    """

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None = None) -> None:
        self._llm = llm
        self._params = replace(params, n=1)
        self._system = [{"role": "system", "content": system}] if system else []
        self._num_answers = 0
        self.messages = list(self._system)

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self._system)

    def answer(self, text: str) -> Iterator[str]:
        """The answer to ``text``, piece by piece. Stopped early, it is remembered as far as it went.

        Raises:
            RequestError: the conversation is too long, or the template refuses it; ``text`` is then forgotten.
        """
        engine, request_id = self._llm.engine, f"chat-{self._num_answers}"
        self._num_answers += 1
        messages = [*self.messages, {"role": "user", "content": text}]
        engine.add_request(request_id, self._llm.chat_prompt(messages), self._params)
        said = ""
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    news, said = output.outputs[0].text[len(said) :], output.outputs[0].text
                    yield news
        finally:
            engine.abort_request(request_id)
            self.messages = [*messages, {"role": "assistant", "content": said}]


def talk(conversation: Conversation) -> None:
    """Read lines and print answers until ``/exit`` or the end of input. Prompts for lines only on a terminal."""
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        _enable_line_editing()
        console.print(HELP, style="dim")
    while True:
        try:
            line = console.input("[bold]> [/bold]", markup=True) if is_terminal else input()
        except EOFError:
            return
        line = line.strip()
        if line in ("/exit", "/quit"):
            return
        if line == "/clear":
            conversation.clear()
        elif line.startswith("/"):
            console.print(HELP)
        elif line:
            _print_answer(console, conversation, line)


def _print_answer(console: Console, conversation: Conversation, line: str) -> None:
    pieces = conversation.answer(line)
    try:
        for piece in pieces:
            console.print(printable(piece), end="")
            console.file.flush()
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        console.print(" [stopped]", end="")
    except RequestError as error:
        console.print(f"{error}; /clear forgets what was said", style="red", end="")
    console.print()


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401 - importing it gives input() history and editing
    except ImportError:
        return
