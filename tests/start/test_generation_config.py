from __future__ import annotations

from typing import Any

import pytest

from tinyvllm.errors import LoadError
from tinyvllm.start.generation_config import GenerationDefaults, generation_defaults


def defaults(config: Any = None, generation: Any = None, eos: int | None = None, **options: Any) -> GenerationDefaults:
    return generation_defaults(config or {}, generation or {}, eos, vocab_size=259, **options)


def test_end_tokens_of_all_three_places_are_taken_once() -> None:
    got = defaults({"eos_token_id": 2}, {"eos_token_id": [5, 2]}, 7)
    assert got.eos_token_ids == (5, 2, 7)
    assert defaults({"eos_token_id": None}, {"eos_token_id": []}).eos_token_ids == ()
    assert defaults({"eos_token_id": 0}).eos_token_ids == (0,)


def test_an_end_token_that_is_not_in_the_vocabulary_is_left_out_and_reported() -> None:
    got = defaults({"eos_token_id": [258, 259]}, {}, 100_000)
    assert got.eos_token_ids == (258,)
    assert got.left_out == (
        "config.json: eos_token_id 259 is not in the vocabulary of 259, ignored",
        "tokenizer: eos_token_id 100000 is not in the vocabulary of 259, ignored",
    )


@pytest.mark.parametrize("value", [-(2**31), 3_000_000_000, 10**400, True, 2.0, "2", [[2]], {"id": 2}])
def test_an_end_token_that_is_no_token_id_is_a_load_error(value: Any) -> None:
    for place in ("config", "generation"):
        options: dict[str, Any] = {place: {"eos_token_id": value}}
        with pytest.raises(LoadError, match="eos_token_id must be a token id") as caught:
            defaults(**options)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("key", "value", "sampling"),
    [
        ("temperature", 0.6, {"temperature": 0.6}),
        ("temperature", 1, {"temperature": 1}),
        ("temperature", None, {}),
        ("top_k", 50.0, {"top_k": 50}),
        ("top_k", 0, {"top_k": 0}),
        ("max_new_tokens", 20, {"max_tokens": 20}),
        ("max_new_tokens", 20.0, {"max_tokens": 20}),
        ("do_sample", False, {}),
    ],
)
def test_sampling_defaults_are_taken_where_they_can_be_used(key: str, value: Any, sampling: dict[str, Any]) -> None:
    got = defaults(generation={key: value})
    assert dict(got.sampling) == sampling
    assert got.left_out == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_p", 0),
        ("top_p", "0.9"),
        ("top_k", 50.5),
        ("top_k", float("inf")),
        ("max_new_tokens", 0),
        ("temperature", -1),
        ("temperature", 10**400),
        ("min_p", float("nan")),
        ("repetition_penalty", 0),
        ("repetition_penalty", [1.1]),
    ],
)
def test_a_sampling_default_that_cannot_be_used_is_left_out_and_reported(key: str, value: Any) -> None:
    got = defaults(generation={key: value, "eos_token_id": 3})
    assert dict(got.sampling) == {}
    assert got.eos_token_ids == (3,)
    (line,) = got.left_out
    assert line.startswith(f"generation_config.json: {key} = ")
    assert len(line) < 400


def test_vllm_leaves_the_sampling_of_the_file_out_and_keeps_its_end_tokens() -> None:
    got = defaults(generation={"temperature": 0.1, "top_p": 0, "eos_token_id": 3}, takes_sampling=False)
    assert got == GenerationDefaults((3,), {})
