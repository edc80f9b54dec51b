"""What a loader may not answer, and what is said of it; what it may answer is used."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from tests.sockets.plugins import LOADER, answer, complaint, write_plugin
from tinyvllm.cli.main import main
from tinyvllm.errors import CapacityError, LoadError, PluginError
from tinyvllm.interfaces import Kind, OpenCall
from tinyvllm.plugin_call import PluginName
from tinyvllm.registry import Registry
from tinyvllm.start.checked_loader import open_checkpoint

EMBED = "Checkpoint.{}('model.embed_tokens.weight')"
META, READ = EMBED.format("meta"), EMBED.format("read")

WRONG = [
    ("Mine.open = lambda self, call: None", "open returned None; expected a Checkpoint with names, meta, read, close"),
    ("del Tensors.close, Tensors.meta", "open returned an object of type Tensors without meta, close; expected"),
    ("Mine.open = lambda self, call: {}", "open returned a dict of 0 without names, meta, read, close; expected"),
    ("Mine.open = fail", "open raised ValueError: spoilt"),
    ("Mine.open = lambda self: None", "open raised TypeError: <lambda>() takes 1 positional argument but 2 were given"),
    (
        "Mine.open = lambda self, call: call.expected.clear()",
        "open raised AttributeError: 'mappingproxy' object has no",
    ),
    ("Tensors.names = lambda self: None", "names returned None; expected the names of all tensors, strings, each once"),
    ("Tensors.names = lambda self: 'lm_head.weight'", "names returned the str 'lm_head.weight'; expected the names"),
    ("Tensors.names = lambda self: 7", "Checkpoint.names returned the int 7; expected the names of all tensors"),
    ("Tensors.names = lambda self: [*self.call.expected, 7]", "names returned the int 7 as a name; expected the names"),
    ("Tensors.names = lambda self: [*self.call.expected, b'x']", "names returned the bytes b'x' as a name; expected"),
    ("Tensors.names = lambda self: [*self.call.expected] * 2", "returned the str 'model.embed_tokens.weight' twice"),
    (
        "Tensors.names = lambda self: [n for n in self.call.expected if n != 'lm_head.weight']",
        "names returned 20 names without lm_head.weight; expected every tensor of call.expected",
    ),
    ("Tensors.names = lambda self: []", "0 names without model.embed_tokens.weight, "),
    ("Tensors.names = fail", "Checkpoint.names raised ValueError: spoilt"),
    ("Tensors.names = lambda self: (fail() for _ in range(3))", "Checkpoint.names raised ValueError: spoilt"),
    ("Tensors.meta = lambda self, name: None", f"{META} returned None; expected a TensorMeta"),
    ("Tensors.meta = lambda self, name: ((61, 48), 'F32')", f"{META} returned a tuple of 2; expected a TensorMeta"),
    ("Tensors.meta = lambda self, name: TensorMeta(61, 'F32')", "returned the shape the int 61; expected a tuple of"),
    ("Tensors.meta = lambda self, name: TensorMeta((61.0, 48.0), 'F32')", "the shape a tuple of 2; expected a tuple"),
    ("Tensors.meta = lambda self, name: TensorMeta((48, 61), 'F32')", "returned shape (48, 61); expected (61, 48)"),
    ("Tensors.meta = lambda self, name: TensorMeta((61, 48), 'float32')", "the dtype the str 'float32'; expected one"),
    (
        "Tensors.meta = lambda self, name: TensorMeta((61, 48), np.float32)",
        "returned the dtype an object of type t",
    ),
    (
        "Tensors.meta = lambda self, name: TensorMeta((61, 48), 'I8')",
        "returned the dtype the str 'I8'; expected o",
    ),
    ("Tensors.meta = fail", f"{META} raised ValueError: spoilt"),
    (
        "Tensors.read = lambda self, name: None",
        f"{READ} returned None; expected an array of float32 and",
    ),
    (
        "Tensors.read = lambda self, name: np.zeros(self.call.expected[name], np.float16)",
        f"{READ} returned float16 of shape (61, 48); expected an array of float32 and shape (61, 48), as meta says",
    ),
    (
        "Tensors.meta = lambda self, name: TensorMeta(self.call.expected[name], 'BF16')",
        f"{READ} returned float32 of shape (61, 48); expected an array of bfloat16",
    ),
    ("Tensors.read = lambda self, name: np.zeros((61, 48), '>f4')", f"{READ} returned >f4 of shape (61, 48); expected"),
    (
        "Tensors.read = lambda self, name: np.zeros(self.call.expected[name][::-1], np.float32)",
        f"{READ} returned float32 of shape (48, 61); expected an array of float32 and shape (61, 48)",
    ),
    ("Tensors.read = lambda self, name: [[0.0]]", f"{READ} returned a list of 1; expected an array of float32"),
    ("Tensors.read = fail", f"{READ} raised ValueError: spoilt"),
    ("Tensors.close = fail", "Checkpoint.close raised ValueError: spoilt"),
    ("Tensors.unexpected = 'rest'", "Checkpoint.unexpected returned the str 'rest'; expected a tuple of names"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_answer_names_plugin_method_answer_and_rule(
    change: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    plugin = write_plugin(tmp_path, LOADER, change)
    text = complaint(tiny, plugins=[str(plugin)], loader={"name": "mine"})
    assert text.startswith(f"loader 'mine' of local plugin {plugin}: ")
    assert message in text


RIGHT = [
    "pass",
    "Tensors.names = lambda self: (name for name in [*self.call.expected, 'more'])",
    "Tensors.names = lambda self: dict.fromkeys(self.call.expected).keys()",
    "Tensors.meta = lambda self, name: TensorMeta(list(self.call.expected[name]), 'F32')",
    "Tensors.meta = lambda self, name: TensorMeta(tuple(np.array(self.call.expected[name])), 'F32')",
    # A transposed view of the transpose: the right values, in another order in memory.
    """
def read(self, name):
    return np.full(self.call.expected[name][::-1], 0.01, np.float32).T
Tensors.read = read
""",
    """
def read(self, name):
    array = np.full(self.call.expected[name], 0.01, np.float32)
    array.flags.writeable = False
    return array
Tensors.read = read
""",
    """
def read(self, name):
    return np.full(self.call.expected[name], 0.01, np.float64)
Tensors.read = read
Tensors.meta = lambda self, name: TensorMeta(self.call.expected[name], 'F64')
""",
]


@pytest.mark.parametrize("change", RIGHT)
def test_right_answers_of_other_forms_give_the_same_tokens(change: str, tiny: Path, tmp_path: Path) -> None:
    plain = answer(tiny, plugins=[str(write_plugin(tmp_path, LOADER, ""))], loader={"name": "mine"})
    (tmp_path / "other").mkdir()
    plugin = write_plugin(tmp_path / "other", LOADER, change)
    assert answer(tiny, plugins=[str(plugin)], loader={"name": "mine"}) == plain


@pytest.mark.parametrize("method", ["Mine.open", "Tensors.names", "Tensors.meta", "Tensors.read"])
def test_what_a_loader_says_of_its_files_passes_as_it_is(method: str, tiny: Path, tmp_path: Path) -> None:
    change = f"def refuse(*arguments):\n    raise LoadError('shard 3 is torn')\n{method} = refuse"
    plugin = write_plugin(tmp_path, LOADER, change)
    with pytest.raises(LoadError) as caught:
        answer(tiny, plugins=[str(plugin)], loader={"name": "mine"})
    assert str(caught.value) == "shard 3 is torn"


def test_memory_that_runs_out_while_reading_is_no_bug_of_the_loader(tiny: Path, tmp_path: Path) -> None:
    change = "def read(self, name):\n    raise MemoryError('17 GiB')\nTensors.read = read"
    plugin = write_plugin(tmp_path, LOADER, change)
    with pytest.raises(CapacityError, match=r"read.* memory ran out: 17 GiB"):
        answer(tiny, plugins=[str(plugin)], loader={"name": "mine"})


def test_an_error_shows_the_plugins_own_frames_and_no_others(tiny: Path, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, LOADER, "Tensors.read = fail")
    text = complaint(tiny, plugins=[str(plugin)], loader={"name": "mine"})
    assert f'File "{plugin}", line' in text
    assert "in fail" in text
    assert "checked_loader.py" not in text


def test_a_close_that_fails_does_not_hide_why_it_is_closed(tiny: Path, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, LOADER, "Tensors.close = fail\nTensors.read = lambda self, name: None")
    with pytest.raises(PluginError, match=r"read.* returned None") as caught:
        answer(tiny, plugins=[str(plugin)], loader={"name": "mine"})
    assert "Checkpoint.close raised ValueError: spoilt" in caught.value.__notes__[0]


def test_what_was_opened_is_closed_when_it_is_refused(tmp_path: Path) -> None:
    opened = mock.Mock(spec=["names", "meta", "read", "close"])
    opened.names.return_value = []
    loader = mock.Mock()
    loader.open.return_value = opened
    with pytest.raises(PluginError, match="0 names without x; expected every tensor"):
        open_checkpoint(loader, PluginName(Kind.LOADER, "mine"), OpenCall(tmp_path, {"x": (1,)}, "F32", 0))
    opened.close.assert_called_once_with()


def test_the_command_line_says_it_in_a_few_lines(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_plugin(tmp_path, LOADER, "Tensors.read = fail")
    arguments = ["generate", "x", "--model", str(tiny), "--device", "cpu", "--plugin", str(plugin)]
    assert main([*arguments, "--set", "loader.name=mine", "--set", "skip_tokenizer_init=true"]) == 2
    err = capsys.readouterr().err
    assert "loader 'mine'" in err
    assert "Traceback" not in err


def test_the_loaders_that_come_with_tinyvllm_obey_the_rules(tiny: Path) -> None:
    for name in ("safetensors", "dummy"):
        assert len(answer(tiny, loader={"name": name})) == 4
    assert Registry().named(Kind.LOADER, "dummy").origin.startswith("tinyvllm ")
