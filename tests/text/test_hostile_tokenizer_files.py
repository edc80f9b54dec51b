"""Whatever the files beside tokenizer.json hold: a tokenizer, or a LoadError that can be printed.

``--num-mutants 4000`` tries that many of each file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.mutate import to_json, tree_mutants
from tests.tiny_checkpoint import single_byte_tokenizer
from tinyvllm.errors import LoadError
from tinyvllm.text.tokenizer import Tokenizer


def token(content: str) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


FILES: dict[str, Any] = {
    "tokenizer_config.json": {
        "added_tokens_decoder": {"256": token("<s>"), "259": token("<|im_start|>"), "260": token("<|im_end|>")},
        "bos_token": token("<s>"),
        "eos_token": "<|im_end|>",
        "pad_token": None,
        "add_bos_token": True,
        "additional_special_tokens": ["<|im_start|>", token("<|im_end|>")],
        "extra_special_tokens": {"image_token": "<image>"},
        "model_max_length": 10**30,
        "chat_template": [{"name": "default", "template": "{% for m in messages %}{{ m.content }}{% endfor %}"}],
    },
    "special_tokens_map.json": {"eos_token": token("</s>"), "additional_special_tokens": ["<x>"]},
    "added_tokens.json": {"<a>": 259, "<b>": 260},
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_beside_the_tokenizer_is_read_or_refused(
    tmp_path: Path, name: str, num_mutants: int, mutant_seed: int
) -> None:
    single_byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    for mutant in tree_mutants(FILES[name], mutant_seed, num_mutants):
        (tmp_path / name).write_text(to_json(mutant.value))
        report = _load_and_use(tmp_path)
        assert all(line.isprintable() and len(line) < 1_000 for line in report), str(mutant)


def _load_and_use(folder: Path) -> tuple[str, ...]:
    """What the user is told about the files of a folder."""
    try:
        tokenizer = Tokenizer.from_folder(folder)
    except LoadError as error:
        return (str(error),)
    token_ids = tokenizer.encode("<s>hi<|im_end|>")
    assert "hi" in tokenizer.decode(token_ids, skip_special_tokens=False)
    assert tokenizer.eos_token_id is None or 0 <= tokenizer.eos_token_id < tokenizer.vocab_size
    return tokenizer.report
