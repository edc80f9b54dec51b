"""The engine against transformers, on the committed checkpoints and answers; ``make_golden.py`` wrote both."""

from __future__ import annotations

import pytest

from .cases import CASES, HERE, Case, load
from .compare import compare, generate


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_engine_gives_the_logprobs_and_greedy_tokens_of_transformers(case: Case) -> None:
    goldens = load(case.expected)
    try:
        outputs = generate(case.checkpoint, goldens, max_model_len=case.max_model_len)
    except Exception as refusal:
        if case.may_refuse is None or case.may_refuse not in str(refusal):
            raise
        pytest.skip(f"refused by name, which is allowed: {refusal}")
    for output, golden in zip(outputs, goldens, strict=True):
        comparison = compare(output, golden)
        assert not comparison.complaints, "\n".join(comparison.complaints)
        assert comparison.num_steps == len(golden.greedy)  # the files hold no step that is too close to call


def test_every_file_belongs_to_a_listed_case() -> None:
    names = sorted(case.name for case in CASES)
    assert sorted(path.name for path in (HERE / "checkpoints").iterdir()) == names
    assert sorted(path.stem for path in (HERE / "expected").iterdir()) == names
