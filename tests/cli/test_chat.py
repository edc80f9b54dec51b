"""A conversation remembers what was said, and what was stopped."""

from pathlib import Path

import pytest

from tinyvllm import LLM, SamplingParams
from tinyvllm.errors import RequestError
from tinyvllm.run.chat import Conversation
from tinyvllm.run.transcript import printable

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


def test_a_conversation_that_is_too_long_is_refused_and_the_line_forgotten(llm: LLM) -> None:
    conversation = Conversation(llm, GREEDY)
    with pytest.raises(RequestError, match="max_model_len"):
        list(conversation.answer("x" * 300))
    assert conversation.messages == []


def test_clear_keeps_the_system_message(llm: LLM) -> None:
    conversation = Conversation(llm, GREEDY, system="Be brief.")
    list(conversation.answer("hello"))
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_control_characters_are_made_visible() -> None:
    assert printable("a\x1b[2J\tb\n\x9b\x7f") == "a\\x1b[2J\tb\n\\x9b\\x7f"
