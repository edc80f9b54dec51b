"""The comparison of logits finds what it is there to find, and nothing where there is nothing."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.tiny import write_checkpoint
from tinyvllm.bench.accuracy import (
    Answer,
    Recorded,
    TransformersReference,
    measure_accuracy,
    measure_company,
    measure_greedy,
    prompts_of,
)
from tinyvllm.bench.peers.recorder import NAME, take_recorded
from tinyvllm.bench.peers.source import weight_source
from tinyvllm.cli.main import main
from tinyvllm.config.resolve import Resolved, config_from_mapping
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams

LENGTHS = [1, 9, 30]


def recording(model: Path, folder: Path, **more: Any) -> tuple[Recorded, Resolved]:
    folder.mkdir()
    resolved = config_from_mapping(
        {
            "model": str(model),
            "device": "cpu",
            "skip_tokenizer_init": True,
            "plugins": ["tinyvllm.bench.peers.recorder"],
            "sampler": {"name": NAME, "folder": str(folder)},
            "scheduler": {"max_num_batched_tokens": 16},  # chunks, and prompts beside decodes
            **more,
        }
    )
    return Recorded(LLM.from_config(resolved), folder), resolved


class Distorted(Recorded):
    """An engine with a defect in its logits."""

    def __init__(self, recorded: Recorded, scale: float) -> None:
        super().__init__(recorded.llm, recorded._folder)
        self._scale = scale

    def answers(self, prompts: Sequence[Sequence[int]], num_output: int) -> list[Answer]:
        rng = np.random.default_rng(0)
        return [
            dataclasses.replace(
                answer,
                logits=answer.logits
                + np.float32(self._scale) * answer.logits.std() * rng.standard_normal(answer.logits.shape, np.float32),
            )
            for answer in super().answers(prompts, num_output)
        ]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", torch_dtype="bfloat16")


def test_the_recorder_writes_the_logits_that_the_token_was_chosen_from(model: Path, tmp_path: Path) -> None:
    recorded, _ = recording(model, tmp_path / "rows")
    plain = LLM(str(model), device="cpu", skip_tokenizer_init=True)
    prompt = {"prompt_token_ids": [5, 6, 7]}
    (answer,) = recorded.answers([[5, 6, 7]], 4)
    (output,) = plain.generate(prompt, SamplingParams(temperature=0, max_tokens=4, logprobs=-1, ignore_eos=True))
    assert list(answer.token_ids) == list(output.outputs[0].token_ids) == answer.logits.argmax(-1).tolist()
    for row, column in zip(answer.logits, output.outputs[0].logprobs or [], strict=True):
        logprobs = row - np.logaddexp.reduce(row)
        assert max(abs(logprobs[token] - each.logprob) for token, each in column.items()) < 1e-5
    with pytest.raises(FileNotFoundError):  # what was taken is gone
        take_recorded(tmp_path / "rows", 0, range(3, 4))


def test_logits_of_the_same_weights_agree(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    recorded, resolved = recording(model, tmp_path / "rows")
    source = weight_source(resolved, recorded.llm)
    reference = TransformersReference(source, torch_device="cpu", weight_dtype="bfloat16")
    results = measure_accuracy(recorded, reference, input_lens=LENGTHS, batch_sizes=[1, 3], output_len=3)
    assert [result.num_positions for result in results] == [3, 3, 3, 9, 9, 9, 18]
    for result in results:
        assert result.error < 1e-5
        assert result.peer_error is not None
        assert 1e-3 < result.peer_error < 0.1
        assert not result.broken
    assert sum(result.num_clear or 0 for result in results) > 10


def test_a_defect_in_the_logits_breaks_the_bounds(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    recorded, resolved = recording(model, tmp_path / "rows")
    source = weight_source(resolved, recorded.llm)
    reference = TransformersReference(source, torch_device="cpu", weight_dtype="bfloat16")
    for scale, expected in ((0.05, "error over 0.02"), (5.0, "another top token")):
        (result, _) = measure_accuracy(
            Distorted(recorded, scale), reference, input_lens=[30], batch_sizes=[3], output_len=3
        )
        assert expected in result.broken
        assert "times transformers'" in result.broken


def test_not_a_number_is_no_small_error(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    recorded, resolved = recording(model, tmp_path / "rows")
    source = weight_source(resolved, recorded.llm)
    reference = TransformersReference(source, torch_device="cpu", weight_dtype="bfloat16")
    (result, _) = measure_accuracy(
        Distorted(recorded, np.nan), reference, input_lens=[3], batch_sizes=[1], output_len=2
    )
    assert "error over 0.02" in result.broken


def test_the_default_samplers_tokens_are_those_of_the_recorded_logits(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    recorded, resolved = recording(model, tmp_path / "rows")
    source = weight_source(resolved, recorded.llm)
    reference = TransformersReference(source, torch_device="cpu", weight_dtype="bfloat16")
    plain = LLM(str(model), device="cpu", skip_tokenizer_init=True)
    answers = recorded.answers(prompts_of(61, LENGTHS, seed=0), 4)
    result = measure_greedy(answers, plain, reference)
    assert result.num_clear
    assert (result.num_other_top, result.broken) == (0, "")
    other = LLM(str(write_checkpoint(tmp_path / "other", seed=1)), device="cpu", skip_tokenizer_init=True)
    assert "another token" in measure_greedy(answers, other, reference).broken


def test_company_changes_rounding_only_and_nothing_if_invariant(model: Path, tmp_path: Path) -> None:
    plain, _ = recording(model, tmp_path / "plain")
    result = measure_company(plain, input_lens=LENGTHS, output_len=3)
    assert result.error < 1e-5
    assert not result.broken
    invariant, _ = recording(model, tmp_path / "invariant", batch_invariant=True)
    result = measure_company(invariant, input_lens=LENGTHS, output_len=3)
    assert (result.num_positions, result.error, result.is_bit_equal, result.broken) == (9, 0.0, True, "")


def test_a_bit_that_company_changes_breaks_invariance(model: Path, tmp_path: Path) -> None:
    invariant, _ = recording(model, tmp_path / "invariant", batch_invariant=True)
    result = measure_company(Distorted(invariant, 1e-6), input_lens=LENGTHS, output_len=3)
    assert result.broken == "bits differ"


def test_the_command_prints_the_comparison_and_fails_beyond_a_bound(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    found = tmp_path / "found.json"
    command = ["bench", "accuracy", "--model", str(model), "--device", "cpu", "--input-len", "2", "20"]
    command += ["--batch-size", "2", "--output-len", "2", "--output-json", str(found)]
    assert main(command) == 0
    assert "alone and in company, batch_invariant: true" in capsys.readouterr().out
    results = json.loads(found.read_text())
    compared = {result["case"]: result["is_bit_equal"] for result in results if result["is_bit_equal"] is not None}
    assert compared.pop("alone and in company, batch_invariant: true") is True
    assert len(compared) == 1
    monkeypatch.setattr("tinyvllm.bench.accuracy.MAX_ERROR", 1e-9)
    assert main(command) == 1
