"""The chat format: how messages become text, and the small talk that the checkpoint is trained on."""

import random
from typing import NamedTuple

from tinyvllm.demo import grammar, stories, tasks

BEGIN, END, TURN, TURN_END, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = (BEGIN, END, TURN, TURN_END, PAD)
"""The special tokens, in the order of their ids."""

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""The Jinja template of ``tokenizer_config.json``; ``render`` is the same in Python."""

ABILITIES = "I can add, copy, reverse and sort, and I tell little stories. Try 12+7= or sort 3142="
_GREETINGS = ("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Good morning!", "hello", "hi")
_WHO = ("Who are you?", "What can you do?", "What are you?", "Help", "help", "Can you help me?", "How are you?")
_SYSTEM = ("You are a helpful assistant.", "You are the demo model of tinyvllm.", "Answer in one line.", "Be brief.")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def render(messages: list[Message]) -> str:
    """What ``CHAT_TEMPLATE`` makes of ``messages``, without the generation prompt and without ``BEGIN``."""
    return "".join(f"{TURN}{message.role}\n{message.content}{TURN_END}\n" for message in messages)


def render_prompt(content: str) -> str:
    """What ``CHAT_TEMPLATE`` makes of one user message ``content``, ready for the answer, without ``BEGIN``."""
    return render([Message("user", content)]) + f"{TURN}assistant\n"


def draw_conversation(rng: random.Random) -> list[Message]:
    """One to three questions with their answers, after a system message in one conversation out of four."""
    messages = [Message("system", rng.choice(_SYSTEM))] if rng.random() < 0.25 else []
    for _ in range(rng.choice((1, 1, 2, 3))):
        messages += _draw_exchange(rng)
    return messages


def _draw_exchange(rng: random.Random) -> list[Message]:
    choice = rng.random()
    if choice < 0.08:
        return [Message("user", rng.choice(_GREETINGS)), Message("assistant", f"Hello! {ABILITIES}")]
    if choice < 0.14:
        return [Message("user", rng.choice(_WHO)), Message("assistant", f"I am a very small model. {ABILITIES}")]
    if choice < 0.22:
        return _draw_story_exchange(rng)
    task = rng.choice(tuple(tasks.TASKS))
    item = tasks.draw_training(task, rng)
    return [Message("user", _reword(item.prompt, rng)), Message("assistant", item.answer)]


def _draw_story_exchange(rng: random.Random) -> list[Message]:
    story = draw_training_story(rng)
    hero = grammar.parse(stories.STORY_GRAMMAR, story).slots
    about = rng.choice(("", "", f" about a {hero['kind']}", f" about a {hero['kind']} named {hero['hero']}"))
    request = rng.choice(("Tell me a story", "Please tell me a story", "A story", "Write a story"))
    return [Message("user", request + about + rng.choice((".", ".", "", "!"))), Message("assistant", story)]


def draw_training_story(rng: random.Random) -> str:
    """A random story that may be trained on."""
    while True:
        story = stories.tell_story(rng)
        if not stories.is_held_out_story(story):
            return story


def _reword(prompt: str, rng: random.Random) -> str:
    """``prompt`` as people type it: as it is, without ``=``, or as a request."""
    if not prompt.endswith("="):
        return prompt
    bare = prompt[:-1]
    request = f"What is {bare}?" if "+" in bare else f"Please {bare}."
    return rng.choice((prompt, prompt, bare, request))
