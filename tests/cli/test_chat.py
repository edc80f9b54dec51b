"""A conversation remembers what was said, and what was stopped."""

import fcntl
import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tinyvllm import LLM, SamplingParams
from tinyvllm.cli.main import main
from tinyvllm.errors import RequestError
from tinyvllm.run.chat import HELP, Conversation, talk
from tinyvllm.run.console import Console
from tinyvllm.run.line_input import LineInput
from tinyvllm.run.transcript import printable
from tinyvllm.text.chat_options import ChatOptions

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(str(tiny_model), load_format="dummy")


def test_an_answer_comes_in_pieces_that_make_the_whole(llm: LLM) -> None:
    conversation = Conversation(llm, GREEDY)
    pieces = list(conversation.answer("hello"))
    whole = llm.chat([{"role": "user", "content": "hello"}], GREEDY)[0].outputs[0].text
    assert "".join(pieces) == whole
    assert conversation.messages[-1] == {"role": "assistant", "content": whole}


def test_a_stopped_answer_is_remembered_as_far_as_it_went_and_frees_its_blocks(llm: LLM) -> None:
    conversation = Conversation(llm, GREEDY, system="Be brief.")
    pieces = conversation.answer("hello")
    said = next(pieces) + next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert conversation.messages[-1] == {"role": "assistant", "content": said}
    assert not llm.engine.has_unfinished_requests()
    llm.engine.check()


def test_a_message_that_is_too_long_alone_is_refused_and_forgotten(llm: LLM) -> None:
    conversation = Conversation(llm, GREEDY, system="Be brief.")
    list(conversation.answer("hello"))
    before = list(conversation.messages)
    with pytest.raises(RequestError, match="max_model_len"):
        list(conversation.answer("x" * 300))
    assert conversation.messages == before
    assert not llm.engine.has_unfinished_requests()


def test_the_oldest_questions_are_dropped_with_their_answers_and_the_system_message_stays(llm: LLM) -> None:
    conversation = Conversation(llm, GREEDY, system="Be brief.")
    dropped = []
    for i in range(12):
        list(conversation.answer(f"{i}:" + "x" * 40))
        dropped.append(conversation.num_dropped)
        prompt = llm.chat_prompt(conversation.messages)["prompt_token_ids"]
        assert len(prompt) <= llm.max_model_len
    assert dropped[0] == 0
    assert set(dropped) == {0, 2}
    assert conversation.messages[0] == {"role": "system", "content": "Be brief."}
    assert conversation.messages[1]["role"] == "user"
    assert conversation.messages[1]["content"] != "0:" + "x" * 40
    assert conversation.messages[-2]["content"] == "11:" + "x" * 40


def test_a_long_conversation_leaves_room_for_an_answer_without_a_limit(llm: LLM) -> None:
    conversation = Conversation(llm, SamplingParams(temperature=0.0, ignore_eos=True))
    for _ in range(3):
        list(conversation.answer("x" * 100))
        *before, answer = conversation.messages
        assert before == [{"role": "user", "content": "x" * 100}]
        assert answer["role"] == "assistant"


def test_options_reach_every_prompt(llm: LLM) -> None:
    conversation = Conversation(llm, GREEDY, options=ChatOptions(chat_template="{{ messages | length }}"))
    conversation.check()
    list(conversation.answer("hello"))
    whole = llm.generate({"prompt_token_ids": llm.get_tokenizer().encode("1", False)}, GREEDY)[0].outputs[0].text
    assert conversation.messages[-1]["content"] == whole
    with pytest.raises(RequestError, match="malformed"):
        Conversation(llm, GREEDY, options=ChatOptions(chat_template="{% x %}")).check()


def test_clear_keeps_the_system_message(llm: LLM) -> None:
    conversation = Conversation(llm, GREEDY, system="Be brief.")
    list(conversation.answer("hello"))
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_control_characters_are_made_visible() -> None:
    assert printable("a\x1b[2J\tb\n\x9b\x7f") == "a\\x1b[2J\tb\n\\x9b\\x7f"


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    """The messages that ``LineInput`` makes of ``text`` on standard input."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    lines = LineInput(Console())
    return list(iter(lines.read, None))


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\\\nb\\\nc\nd\n", ["a\nb\nc", "d"]),
        ("a\\\n", ["a"]),
        ('"""a\n\nb"""\nc\n', ["a\n\nb", "c"]),
        ('"""\na \\\n"""\n', ["\na \\\n"]),
        ('"""a"""\n', ["a"]),
        ('"""a\nb', ["a\nb"]),
        ("\ufeffa\n\ufeffb\n", ["a", "\ufeffb"]),
        ("", []),
    ],
)
def test_a_message_may_have_several_lines(monkeypatch: pytest.MonkeyPatch, text: str, messages: list[str]) -> None:
    assert typed(monkeypatch, text) == messages


def test_closed_standard_input_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert LineInput(Console()).read() is None


def test_control_c_ends_a_talk_that_nobody_types(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LineInput(Console()).read()


def talk_with(llm: LLM, monkeypatch: pytest.MonkeyPatch, text: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return talk(Conversation(llm, GREEDY))


def test_commands_are_told_from_messages(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk_with(llm, monkeypatch, "/foo\n/claer\n/clear now\n\n/help\n/exit\nhello\n") == 0
    out = capsys.readouterr().out
    unknown, near, rest, *help_text = out.splitlines()
    assert unknown == "unknown command /foo; there are /clear, /exit, /help"
    assert near == "unknown command /claer; there are /clear, /exit, /help; did you mean '/clear'?"
    assert rest == "/clear stands alone; nothing was done"
    assert "\n".join(help_text) == HELP
    assert talk_with(llm, monkeypatch, "/usr/bin\n") == 0
    assert "unknown command" not in capsys.readouterr().out


def test_a_refused_message_from_a_pipe_shows_in_the_exit_code_and_the_talk_goes_on(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk_with(llm, monkeypatch, f"{'x' * 300}\nhello\n") == 2
    refused, answer = capsys.readouterr().out.split("\n", 1)
    assert "max_model_len" in refused
    assert answer.strip()


def test_what_is_forgotten_is_said(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk_with(llm, monkeypatch, f"{'x' * 110}\n{'y' * 110}\n")
    assert "max_model_len: its 2 oldest messages are forgotten]" in capsys.readouterr().out


def test_flags_of_chat_are_checked_before_the_model_is_loaded(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, error in (
        ("{x", "must be JSON such as"),
        ("[]", "must be a mapping"),
        ('{"tools": []}', "argument of its own"),
    ):
        assert main(["chat", "--model", "nowhere", "--chat-template-kwargs", text]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: --chat-template-kwargs")
        assert error in shown
    template = tiny_model / "broken.jinja"
    template.write_text("{% for %}")
    arguments = ["--model", str(tiny_model), "--set", "load_format=dummy", "--chat-template", str(template)]
    assert main(["chat", *arguments]) == 3
    assert "broken.jinja:1: the chat template is malformed" in capsys.readouterr().err
    template.unlink()


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, tiny_model: Path, cache: Path) -> None:
        self._primary, secondary = pty.openpty()
        arguments = ["--model", str(tiny_model), "--set", "load_format=dummy", "--max-tokens", "2", "--device", "cpu"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tinyvllm", "chat", *arguments],
            stdin=secondary,
            stdout=secondary,
            stderr=subprocess.STDOUT,
            env={**os.environ, "XDG_CACHE_HOME": str(cache), "TERM": "dumb"},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )
        os.close(secondary)
        self.seen = ""

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        """Read until ``text`` is on the screen, after what was waited for before."""
        end = time.monotonic() + timeout_s
        while text not in self.seen:
            assert select.select([self._primary], [], [], max(0.0, end - time.monotonic()))[0], self.seen
            self.seen += os.read(self._primary, 4096).decode()
        self.seen = self.seen.split(text, 1)[1]

    def type(self, text: str) -> None:
        os.write(self._primary, text.encode())

    def interrupt(self, answer: str) -> None:
        """Type control-C until there is an answer: Python may miss one that comes just before it waits for a key."""
        for _ in range(60):
            self.type("\x03")
            if select.select([self._primary], [], [], 1.0)[0]:
                break
        self.wait_for(answer)


def test_in_a_terminal_control_c_drops_the_line_and_control_d_ends(tiny_model: Path, tmp_path: Path) -> None:
    terminal = Terminal(tiny_model, tmp_path)
    terminal.wait_for("> ")
    terminal.type("half a li")
    terminal.wait_for("half a li")
    terminal.interrupt("control-D or /exit ends")
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("> ")
    terminal.type("\x04")
    terminal.wait_for("\n")
    assert terminal.process.wait(30) == 0
    history = tmp_path / "tinyvllm" / "chat_history"
    assert history.read_text().split() == ["hello"]
    assert history.stat().st_mode & 0o777 == 0o600
