"""The maker of hostile files: every mutant can be made again, and differs from what it was made of."""

import json

from tests.mutate import mutant_of_text, mutant_of_tree, text_mutants, to_json, tree_mutants

TREE = {"sizes": [1, 2], "name": "llama", "rope": {"type": "linear", "factor": 4.0}}
TEXT = "model: demo\ncache: {block_size: 16}\nrun:\n  prompts: [a, b]\n"


def test_a_mutant_can_be_made_again_by_seed_and_number() -> None:
    for mutant in tree_mutants(TREE, seed=3, count=200):
        assert to_json(mutant_of_tree(TREE, 3, mutant.index).value) == to_json(mutant.value)
    for mutant in text_mutants(TEXT, seed=3, count=200):
        assert mutant_of_text(TEXT, 3, mutant.index).value == mutant.value


def test_mutants_are_readable_json_and_leave_the_original_alone() -> None:
    before = json.dumps(TREE)
    texts = {to_json(mutant.value) for mutant in tree_mutants(TREE, seed=1, count=2_000)}
    assert all(isinstance(json.loads(text), dict) for text in texts)
    assert json.dumps(TREE) == before
    assert len(texts) > 500


def test_every_kind_of_mutation_comes_up() -> None:
    done = " ".join(str(mutant) for mutant in tree_mutants(TREE, seed=1, count=2_000))
    for kind in (
        "dropped",
        "renamed",
        "twice",
        "deep",
        "None",
        "True",
        "-1",
        "'x'",
        "nan",
        "\\ud800",
        "\\x1b",
        "xxxxx",
    ):
        assert kind in done
    texts = [mutant.value for mutant in text_mutants(TEXT, seed=1, count=2_000)]
    for piece in (b"\0", b"!!python", b"\t", b"&a", b"0xfff", b"[[[[", b"\\ud800"):
        assert any(piece in text for text in texts)
