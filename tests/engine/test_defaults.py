"""The default configuration first: the same tokens in the first run and the second, eager, and synchronous.

A recording that meets a live step, a token at the wrong position or a step that reads back too early gives other tokens
in one of them. Where all steps of two runs have the same rows, their bits are equal. Rows that end by what was sampled
stay for one step more in a run that is one step ahead, and rounding may differ: there the answers are sharp and known.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest

from tests.engine.device_runs import MAX_MODEL_LEN, expected, random_prompts, run, start
from tests.engine.test_device_engine import SMALL, device  # noqa: F401 -- a fixture
from tinyvllm import LLM, SamplingParams
from tinyvllm.cli.main import main, parser
from tinyvllm.cli.options import resolve
from tinyvllm.config import config_from_mapping
from tinyvllm.demo.stories import held_out_beginnings
from tinyvllm.demo.verify import ANSWER_TOKENS, SAMPLED_TASKS, sample
from tinyvllm.outputs import RequestOutput

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "eager": {"enforce_eager": True},
    "synchronous": {"scheduler": {"async_scheduling": False}},
}
DEFAULT_FIRST = ["default", *[pytest.param(name, marks=pytest.mark.slow) for name in ("eager", "synchronous")]]
MODES: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0},
    "random": {"temperature": 0.7, "seed": 11},
    "cut": {"seed": 5, "top_p": 0.9, "top_k": 20, "min_p": 0.02},
    "penalised": {"temperature": 0, "presence_penalty": 0.3, "frequency_penalty": 0.2, "repetition_penalty": 1.02},
    "biased": {"temperature": 0, "logit_bias": {30: 2.0, 31: -2.0}},
    "listed": {"temperature": 0, "logprobs": 3},
    "n=2": {"temperature": 0.7, "seed": 9, "n": 2},
    "everything": {
        "temperature": 0.7, "seed": 9, "n": 2, "top_p": 0.95, "top_k": 50, "presence_penalty": 0.2,
        "logit_bias": {30: 1.0}, "logprobs": 2,
    },
}  # fmt: skip
ANSWERS = {"58+64=": "122", "sort 31425=": "12345", "reverse 90817=": "71809", "copy 7771234=": "7771234"}
"""Prompts that a wrong token, position or block answers wrong, and what the checkpoint answers in every mode."""
QUESTIONS = tuple(ANSWERS)
FAST_AND_SLOW = [
    *[(SMALL, mode) for mode in MODES],
    ("demo", "greedy"),
    *[pytest.param("demo", mode, marks=pytest.mark.slow) for mode in MODES if mode != "greedy"],
]

SOME_FAST = [
    mode if mode in ("greedy", "cut", "n=2", "everything") else pytest.param(mode, marks=pytest.mark.slow)
    for mode in MODES
]


@cache
def engine(model: str, device: str, config: str) -> LLM:  # noqa: F811
    """The same for all tests of a module, so that what comes first for one mode is not what comes first for all."""
    return new_engine(model, device, config)


def new_engine(model: str, device: str, config: str) -> LLM:  # noqa: F811
    """With default settings but for what ``config`` names; the small random model has no tokenizer."""
    return LLM("demo", device=device, **CONFIGS[config]) if model == "demo" else start(model, device, **CONFIGS[config])


def prompts_of(model: str) -> Sequence[Any]:
    """Four prompts."""
    if model == "demo":
        return QUESTIONS
    return [{"prompt_token_ids": prompt} for prompt in random_prompts(model, (5, 9, 17, 3), seed=12)]


def told(outputs: Sequence[RequestOutput]) -> list[Any]:
    """Tokens, log-probabilities and reasons to end of every completion; for comparisons to the bit."""
    return [
        [(each.token_ids, each.logprobs, each.finish_reason, each.stop_reason) for each in output.outputs]
        for output in outputs
    ]


def all_runs(model: str, device: str, prompts: Sequence[Any], params: Any) -> dict[str, list[RequestOutput]]:  # noqa: F811
    """What the first run gives in an engine where the mode is new, the second there, and the other configurations."""
    first = engine(model, device, "default").generate(prompts, params, use_tqdm=False)
    names = ("default", "eager", "synchronous")
    return {"first": first} | {name: engine(model, device, name).generate(prompts, params, False) for name in names}


def check_equal(runs: Mapping[str, Sequence[RequestOutput]], *, to_the_bit: bool = True) -> None:
    """Every run gave the tokens of the first; and its bits, if all runs have the same steps."""
    first = told(runs["first"])
    for name, outputs in runs.items():
        if to_the_bit:
            assert told(outputs) == first, name
        else:
            assert without_logprobs(told(outputs)) == without_logprobs(first), name


def without_logprobs(answers: list[Any]) -> list[Any]:
    return [[(tokens, finish, stop) for tokens, _, finish, stop in completions] for completions in answers]


@pytest.mark.parametrize(("model", "mode"), FAST_AND_SLOW)
def test_one_request_gives_the_same_in_every_run(device: str, model: str, mode: str) -> None:  # noqa: F811
    prompts = prompts_of(model)[:1]
    runs = all_runs(model, device, prompts, SamplingParams(max_tokens=6, **MODES[mode]))
    # Two completions that end by what was sampled share more steps in a run that is one step ahead.
    check_equal(runs, to_the_bit=not (model == "demo" and "n" in MODES[mode]))
    if model == "demo":
        assert {each.text for each in runs["first"][0].outputs} == {ANSWERS[prompts[0]]}


SHRINKING = [("greedy", 0), ("random", 1), ("cut", 2), ("everything", 3)]
"""A mode and the place of the row that is the last; all others are slow."""


def shrinking() -> list[Any]:
    """Every mode with every survivor on the small model; on the demo checkpoint some."""
    small = [(SMALL, mode, survivor) for mode, survivor in SHRINKING]
    more = [(SMALL, mode, survivor) for mode in MODES for survivor in range(4) if (mode, survivor) not in SHRINKING]
    more += [("demo", mode, survivor) for mode in ("greedy", "cut", "everything") for survivor in range(4)]
    return [*small, *[pytest.param(*each, marks=pytest.mark.slow) for each in more]]


@pytest.mark.parametrize(("model", "mode", "survivor"), shrinking())
def test_a_batch_that_shrinks_to_one_of_its_rows_gives_the_same_in_every_run(
    device: str,  # noqa: F811
    model: str,
    mode: str,
    survivor: int,
) -> None:
    """Rows end by their length, so that all runs have the same steps; each row is once the last."""
    lengths = [7 if i == survivor else 2 + (i + survivor) % 4 for i in range(4)]
    params = [SamplingParams(max_tokens=n, ignore_eos=True, **MODES[mode]) for n in lengths]
    runs = all_runs(model, device, prompts_of(model), params)
    check_equal(runs)
    if model == "demo":
        for output, prompt, length in zip(runs["first"], QUESTIONS, lengths, strict=True):
            right = ANSWERS[prompt]
            for each in output.outputs:
                assert each.text[: len(right)].startswith(right[:length]), prompt


@pytest.mark.parametrize("config", DEFAULT_FIRST)
@pytest.mark.parametrize("mode", SOME_FAST)
def test_a_mode_that_first_comes_beside_other_requests_gives_the_same(device: str, mode: str, config: str) -> None:  # noqa: F811
    """In a fresh engine; beside greedy requests, one of which ends before it and one after it."""
    prompts = random_prompts(SMALL, (5, 9, 17), seed=13)
    plain = {"ignore_eos": True, "temperature": 0}
    wanted = [SamplingParams(max_tokens=n, **{**plain, **more}) for n, more in ((12, {}), (4, MODES[mode]), (5, {}))]
    outputs = run(new_engine(SMALL, device, config), prompts, wanted, (3, 1, 0))
    assert told(outputs) == first_beside_others(device, mode)


@cache
def first_beside_others(device: str, mode: str) -> list[Any]:  # noqa: F811
    """The same in an engine that is given a second and a third round: what came first is not new any more."""
    prompts = random_prompts(SMALL, (5, 9, 17), seed=13)
    plain = {"ignore_eos": True, "temperature": 0}
    wanted = [SamplingParams(max_tokens=n, **{**plain, **more}) for n, more in ((12, {}), (4, MODES[mode]), (5, {}))]
    llm = engine(SMALL, device, "default")
    return [told(run(llm, prompts, wanted, (3, 1, 0))) for _ in range(3)][-1]


STOPS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "58+64=": ({"stop": "22"}, "1"),
    "sort 31425=": ({"stop": ["34"]}, "12"),
    "reverse 90817=": ({"stop_token_ids": "1"}, "7"),
    "copy 7771234=": ({"stop_token_ids": "2"}, "7771"),
}
"""What ends each answer early, and what is left of it; token ids are those of the one character."""


@pytest.mark.parametrize("config", DEFAULT_FIRST)
@pytest.mark.parametrize("survivor", [3, *[pytest.param(i, marks=pytest.mark.slow) for i in range(3)]])
def test_a_batch_that_shrinks_by_stops_gives_the_right_answers(device: str, survivor: int, config: str) -> None:  # noqa: F811
    """By a stop string, a stop token, and the end of the text."""
    llm = engine("demo", device, config)
    params, right = [], []
    for i, (prompt, (stop, left)) in enumerate(STOPS.items()):
        if i == survivor:
            stop, left = {}, ANSWERS[prompt]
        if "stop_token_ids" in stop:
            stop = {"stop_token_ids": llm.get_tokenizer().encode(stop["stop_token_ids"], add_special_tokens=False)}
        params.append(SamplingParams(temperature=0, **stop))
        right.append(left)
    outputs = llm.generate(QUESTIONS, params, use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == right


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_questions_asked_in_the_middle_of_others_are_answered_right(device: str, mode: str) -> None:  # noqa: F811
    """Each mode in a fresh engine, beside a long greedy answer."""
    llm = new_engine("demo", device, "default")
    others = [(QUESTIONS[3], {"temperature": 0}), (QUESTIONS[0], MODES[mode]), (QUESTIONS[1], MODES[mode])]
    for i, (prompt, params) in enumerate(others):
        llm.engine.add_request(str(i), prompt, SamplingParams(**params), stream=False)
        for _ in range(2):
            assert not llm.engine.step()
    outputs: dict[str, RequestOutput] = {}
    while llm.engine.has_unfinished_requests():
        outputs |= {delta.request_id: delta.output for delta in llm.engine.step() if delta.output}
        llm.engine.check()
    for i, (prompt, _) in enumerate(others):
        assert {each.text for each in outputs[str(i)].outputs} == {ANSWERS[prompt]}


# ------------------------------------------------------------ the demo's tasks


@pytest.mark.parametrize(
    ("task", "num_items"),
    [("sort", 2), *[pytest.param(task, 20, marks=pytest.mark.slow) for task in SAMPLED_TASKS]],
)
def test_the_demo_s_tasks_are_answered_as_on_the_cpu(device: str, task: str, num_items: int) -> None:  # noqa: F811
    """Held-out items, through plain ``generate`` with default settings."""
    prompts = [item["prompt"] for item in sample(task, num_items)]
    params = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, stop=["\n"])
    texts = []
    for each in ("cpu", device):
        outputs = engine("demo", each, "default").generate(prompts, params, use_tqdm=False)
        texts.append([output.outputs[0].text for output in outputs])
    assert texts[1] == texts[0]


@pytest.mark.slow
def test_the_demo_s_stories_are_the_cpu_s_until_rounding_may_choose(device: str) -> None:  # noqa: F811
    num_stories, num_tokens = (20, 140) if device == "cuda" else (4, 60)
    llm = engine("demo", device, "default")
    prompts = [llm.get_tokenizer().encode(text) for text in itertools.islice(held_out_beginnings(0), num_stories)]
    prompts = [prompt for prompt in prompts if len(prompt) + num_tokens <= MAX_MODEL_LEN]
    assert len(prompts) >= num_stories // 2
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    num_equal = sum(
        same_until_close(tuple(prompt), output.outputs[0].token_ids)
        for prompt, output in zip(prompts, outputs, strict=True)
    )
    assert num_equal >= 0.4 * num_tokens * len(prompts)


def same_until_close(prompt: tuple[int, ...], tokens: Sequence[int]) -> int:
    """How many tokens are the CPU's; the first that is not may be one that rounding chooses, else this fails."""
    want = expected("demo", prompt, len(tokens))
    for i, (ours, theirs) in enumerate(zip(tokens, want.tokens, strict=True)):
        if ours != theirs:
            at = len(prompt) - 1 + i
            margin, slack = want.rows[at, theirs] - want.rows[at, ours], want.bound[at, [ours, theirs]].sum()
            assert margin <= slack, f"token {i} is {ours}, not {theirs}: {margin:.3g} less likely, bound {slack:.3g}"
            return i
    return len(tokens)


@pytest.mark.slow
def test_demo_verify_passes(device: str, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """On the emulator one item of each task: a story takes minutes."""
    items = "20" if device == "cuda" else "1"
    assert main(["demo", "--verify", "--items", items, "--device", device]) == 0
    assert capsys.readouterr().out.startswith(f"addition {items}/{items} 100.0 %")


@pytest.mark.parametrize("device", ["auto", "cpu", "emulator", "cuda"])
def test_demo_verify_changes_no_default(device: str) -> None:  # noqa: F811
    args = parser().parse_args(["demo", "--verify", "--items", "20", "--device", device])
    assert resolve(args).config == config_from_mapping({"model": "demo", "device": device}).config
