"""Whatever the small files of a checkpoint hold: the model answers, or one error of ours names the file (or says which
sizes memory does not hold).

Never a bare traceback, more than two seconds or more than a gigabyte. Where a mutant is known, it stands as an example.
The long run: ``python -m pytest tests/test_hostile_files.py --num-mutants 1000``.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mutate import Mutant, text_mutants, to_json, tree_mutants
from tests.tiny_checkpoint import CONFIG, TEMPLATE
from tinyvllm import LLM, SamplingParams
from tinyvllm.errors import CapacityError, RequestError, TinyvllmError

MAX_SECONDS = 2
MAX_BYTES = 2**30
MAX_CHARACTERS = 6_000

FILES: dict[str, dict[str, Any]] = {
    "config.json": {
        **CONFIG,
        "attention_bias": False,
        "bos_token_id": 256,
        "initializer_range": 0.02,
        "layer_types": ["full_attention"],
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
        "sliding_window": None,
        "transformers_version": "4.50.0",
        "use_cache": True,
    },
    "generation_config.json": {
        "bos_token_id": 256,
        "do_sample": True,
        "eos_token_id": [258, 257],
        "max_new_tokens": 20,
        "min_p": 0.01,
        "pad_token_id": 257,
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.9,
        "transformers_version": "4.50.0",
    },
    "tokenizer_config.json": {
        "add_bos_token": False,
        "added_tokens_decoder": {
            "256": {"content": "<s>", "special": True, "lstrip": False},
            "258": {"content": "</s>", "special": True, "lstrip": False},
        },
        "additional_special_tokens": ["<pad>"],
        "bos_token": {"content": "<s>", "lstrip": False, "normalized": False},
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "extra_special_tokens": {},
        "model_max_length": 256,
        "pad_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
}
YAML = """\
model: {model}
load_format: dummy
device: cpu
max_model_len: 128
scheduler: {{name: continuous, max_num_seqs: 4, max_num_batched_tokens: 64}}
cache: {{block_size: 16, kv_bytes: 1MiB}}
attention: {{name: paged}}
seed: 7
"""
MESSAGES = [{"role": "user", "content": "ab"}]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    (copy / "chat_template.jinja").unlink()
    for name, tree in FILES.items():
        (copy / name).write_text(json.dumps(tree))
    return copy


@pytest.fixture
def little_memory(folder: Path) -> Iterator[None]:
    """No more than a gigabyte beside what a model has taken; whatever asks for more gets a MemoryError."""
    answer(LLM(str(folder), load_format="dummy", device="cpu"))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def answer(llm: LLM) -> None:
    """The model completes a prompt and a conversation, or says why it does not."""
    output = llm.generate("ab", SamplingParams(max_tokens=3, temperature=0.5, seed=1))[0].outputs[0]
    assert 1 <= len(output.token_ids) <= 3
    assert output.finish_reason in ("stop", "length")
    output.text.encode()
    assert len(llm.generate("ab")[0].outputs[0].token_ids) >= 1
    try:
        assert 1 <= len(llm.chat(MESSAGES, SamplingParams(max_tokens=2))[0].outputs[0].token_ids) <= 2
    except TinyvllmError as error:
        check_message(str(error))
    llm.engine.check()


class Trial:
    """Mutants of one file, one after the other: how many were right, and what went wrong with the others.

    Args:
        name: what an error must name, unless it is about memory.
        start: makes a model of the file as it is now.
    """

    def __init__(self, name: str, start: Callable[[], LLM]) -> None:
        self._name = name
        self._start = start
        self.num_right = 0
        self.failures: list[str] = []

    def run(self, mutant: Mutant) -> None:
        begin = time.process_time()
        wrong = self._wrong()
        seconds = time.process_time() - begin
        if not wrong and seconds > MAX_SECONDS:
            wrong = f"took {seconds:.1f} s"
        if wrong:
            self.failures.append(f"{self._name}, {mutant}: {wrong}"[:1_000])

    def _wrong(self) -> str:
        try:
            answer(self._start())
        except TinyvllmError as error:
            # What memory or a small vocabulary does not hold: the message has the sizes instead of a file.
            is_named = self._name in str(error) or isinstance(error, CapacityError | RequestError)
            return _wrong_with_message(str(error)) if is_named else f"an error that does not name the file: {error}"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {error} at {Path(where.filename).name}:{where.lineno}"
        self.num_right += 1
        return ""

    def check(self, num_mutants: int) -> None:
        failures = "\n".join(self.failures[:50])
        assert not failures, f"{len(self.failures)} of {num_mutants}\n{failures}"
        assert num_mutants < 20 or 0 < self.num_right < num_mutants


def _wrong_with_message(message: str) -> str:
    try:
        check_message(message)
    except AssertionError:
        return f"a message of {len(message)} characters that is long or not printable: {message!r}"
    return ""


def check_message(message: str) -> None:
    """Short, and nothing in it that a terminal would obey or refuse."""
    assert message.replace("\n", "").isprintable(), repr(message)
    assert len(message) < MAX_CHARACTERS, message[:2_000]


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", FILES)
def test_any_mutant_of_a_file_of_a_checkpoint_is_answered_or_refused_by_name(
    folder: Path, name: str, num_mutants: int, mutant_seed: int
) -> None:
    trial = Trial(name, lambda: LLM(str(folder), load_format="dummy", device="cpu"))
    for mutant in tree_mutants(FILES[name], mutant_seed, num_mutants):
        (folder / name).write_text(to_json(mutant.value))
        trial.run(mutant)
    trial.check(num_mutants)


@pytest.mark.usefixtures("little_memory")
def test_any_mutant_of_a_configuration_file_is_answered_or_refused(
    folder: Path, tmp_path: Path, num_mutants: int, mutant_seed: int
) -> None:
    path = tmp_path / "mutant.yaml"
    trial = Trial("", lambda: LLM.from_config(path))
    for mutant in text_mutants(YAML.format(model=folder), mutant_seed, num_mutants):
        path.write_bytes(mutant.value)
        trial.run(mutant)
    trial.check(num_mutants)
