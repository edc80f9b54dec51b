"""Training never sees what verification asks."""

import itertools
import re

from tinyvllm.demo import chat, stories, tasks
from tinyvllm.demo.hold_out import is_held_out
from tinyvllm.demo.making import corpus
from tinyvllm.demo.randomness import stream


def test_about_one_item_in_ten_is_held_out() -> None:
    held_out = sum(is_held_out(f"item {number}") for number in range(10_000))
    assert 900 < held_out < 1100


def test_both_orders_of_a_sum_are_on_the_same_side() -> None:
    assert tasks.addition(12, 7).key == tasks.addition(7, 12).key


def test_no_held_out_item_is_asked_in_the_training_stream() -> None:
    for document in itertools.islice(corpus.documents(0), 3000):
        text = "".join(piece.text for piece in document).replace(chat.ABILITIES, "")
        for left, right in re.findall(r"(\d+)\+(\d+)", text):
            assert not is_held_out(tasks.addition(int(left), int(right)).key)
        for task, number in re.findall(r"(copy|reverse|sort) (\d+)", text):
            assert not is_held_out(tasks.digits(task, number).key)
        for story, questions in re.findall(r"(Grandma[^?]*\.)((?: Who has the \w+\?\w*)+)", text):
            for thing in re.findall(r"Who has the (\w+)", questions):
                assert not is_held_out(tasks.ask_who_has(story, thing))


def test_no_held_out_story_is_told_in_the_training_stream() -> None:
    told = 0
    for document in itertools.islice(corpus.documents(0), 3000):
        for piece in document:
            story = piece.text.removesuffix(chat.END).removesuffix(chat.TURN_END)
            if piece.learn and stories.is_story(story):
                told += 1
                assert not stories.is_held_out_story(story)
    assert told > 100


def test_held_out_beginnings_are_of_held_out_stories() -> None:
    for beginning in itertools.islice(stories.held_out_beginnings(0), 50):
        assert is_held_out(f"story {stories.opening(beginning)}")


def test_training_items_are_never_held_out() -> None:
    rng = stream("test", 0)
    for task in tasks.TASKS:
        assert not any(is_held_out(tasks.draw_training(task, rng).key) for _ in range(200))
