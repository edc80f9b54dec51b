from __future__ import annotations

import json
import os
import resource
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from tinyvllm.errors import LoadError
from tinyvllm.interfaces import Loader, OpenCall
from tinyvllm_loaders.header import MAX_HEADER_BYTES, parse_header
from tinyvllm_loaders.safetensors import SafetensorsCheckpoint, SafetensorsFile, SafetensorsLoader

TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0, np.inf, np.nan], np.float16),
    "c": np.arange(-4, 4).astype(ml_dtypes.bfloat16).reshape(2, 2, 2),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 5), np.float32),
}
SHAPES = {name: tensor.shape for name, tensor in TENSORS.items()}


def pack(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


# ---------------------------------------------------------------- what is right


def test_every_tensor_comes_back_bit_for_bit(folder: Path) -> None:
    with SafetensorsCheckpoint(folder, SHAPES) as checkpoint:
        assert set(checkpoint.names()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            read = checkpoint.read(name)
            assert checkpoint.meta(name).shape == read.shape == tensor.shape
            assert read.dtype == tensor.dtype
            assert read.tobytes() == tensor.tobytes()
            assert read.flags.c_contiguous
            assert read.flags.writeable
        assert checkpoint.meta("c").dtype == "BF16"
        assert checkpoint.unexpected == ()


def test_the_plugin_opens_what_it_is_told(folder: Path) -> None:
    loader = SafetensorsLoader(None)  # type: ignore[arg-type]
    assert isinstance(loader, Loader)
    checkpoint = loader.open(OpenCall(folder, SHAPES, "BF16", 0))
    assert checkpoint.read("a").tolist() == [[0, 1, 2], [3, 4, 5]]
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(LoadError, match="closed"):
        checkpoint.read("a")


def test_unexpected_tensors_are_listed_but_not_harmless_ones(tmp_path: Path) -> None:
    extra: dict[str, np.ndarray[Any, Any]] = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
        "z": np.ones(1, np.int64),
    }
    save_file({**TENSORS, **extra}, tmp_path / "model.safetensors")
    checkpoint = SafetensorsCheckpoint(tmp_path, {"a": (2, 3)})
    assert checkpoint.unexpected == ("b", "c", "empty", "scalar", "z")
    with pytest.raises(LoadError, match="tensor 'z' has dtype I64, supported are F32, F16, BF16"):
        checkpoint.read("z")
    with pytest.raises(LoadError, match="no tensor 'nothing'"):
        checkpoint.meta("nothing")


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    write_shards(tmp_path)
    with SafetensorsCheckpoint(tmp_path, SHAPES) as checkpoint:
        for name, tensor in TENSORS.items():
            assert checkpoint.read(name).tobytes() == tensor.tobytes()


def test_files_may_be_links_as_in_the_hugging_face_cache(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert SafetensorsCheckpoint(snapshot, SHAPES).read("scalar") == 2.5


def test_reading_needs_no_second_copy(tmp_path: Path) -> None:
    import tracemalloc

    save_file({"big": np.ones((1024, 1024), np.float32)}, tmp_path / "model.safetensors")
    checkpoint = SafetensorsCheckpoint(tmp_path, {"big": (1024, 1024)})
    tracemalloc.start()
    array = checkpoint.read("big")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes * 1.01


# ---------------------------------------------------------------- what the model needs


def test_everything_that_does_not_fit_is_in_one_error(folder: Path) -> None:
    expected = {**SHAPES, "a": (3, 2), "b": (5,), **{f"layer.{i}": (1,) for i in range(12)}}
    with pytest.raises(LoadError) as caught:
        SafetensorsCheckpoint(folder, expected)
    message = str(caught.value)
    assert "missing 12 tensors: 'layer.0', " in message
    assert "'layer.9' and 2 more" in message
    assert "wrong shape of 2 tensors: a is [2, 3], expected [3, 2], b is [4], expected [5]" in message
    assert "\n" not in message


def test_a_dtype_that_is_not_supported_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    save_file({"w": np.ones(2, np.int64), "v": np.ones(2, np.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match="unsupported dtype of 1 tensor: w is I64, supported are F32, F16, BF16, F64"):
        SafetensorsCheckpoint(tmp_path, {"w": (2,)})
    assert SafetensorsCheckpoint(tmp_path, {}).unexpected == ("v", "w")


# ---------------------------------------------------------------- the file

DEFECTS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is empty; the download is not complete"),
    "less than a length": (b"\1\0\0", "3 bytes, expected at least 8"),
    "header beyond the file": (struct.pack("<Q", 100) + b"{}", "truncated"),
    "header beyond the limit": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "the limit is"),
    "length with the sign bit": (b"\xff" * 8 + b"{}", "the limit is"),
    "no header": (pack(b""), "not a JSON object"),
    "a list": (pack([]), "not a JSON object"),
    "text after the object": (pack(b"{} x"), "not valid JSON"),
    "not UTF-8": (pack(b'{"\xff": 1}'), "not valid JSON"),
    "nested deeply": (pack(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"),
    "a huge integer": (pack(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "NaN": (pack(b'{"a": NaN}'), "NaN is not JSON"),
    "a tensor twice": (pack(b'{"a": 1, "a": 2}'), "'a' is there twice"),
    "a field twice": (pack(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' is there twice"),
    "metadata twice": (pack(b'{"__metadata__": {"a": "1", "a": "2"}}'), "'a' is there twice"),
    "metadata of numbers": (pack({"__metadata__": {"a": 1}}), "strings to strings"),
    "metadata as a list": (pack({"__metadata__": []}), "strings to strings"),
    "an entry that is a number": (pack({"a": 3}), "expected exactly the fields"),
    "an unknown field": (pack({"a": entry(comment="x")}, b"8 bytes."), "expected exactly the fields"),
    "a missing field": (pack({"a": {"dtype": "F32", "shape": []}}), "expected exactly the fields"),
    "an unknown dtype": (pack({"a": entry("F33")}, b"8 bytes."), "unknown dtype 'F33'"),
    "a dtype that is a number": (pack({"a": entry(32)}, b"8 bytes."), "unknown dtype 32"),
    "a dtype that is a list": (pack({"a": entry(["F32"])}, b"8 bytes."), "unknown dtype"),
    "a shape that is a number": (pack({"a": entry(shape=2)}, b"8 bytes."), "shape must be"),
    "a negative size": (pack({"a": entry(shape=[-2])}, b"8 bytes."), "shape must be"),
    "two negative sizes": (pack({"a": entry(shape=[-1, -2])}, b"8 bytes."), "shape must be"),
    "true as a size": (pack({"a": entry(shape=[True, 2])}, b"8 bytes."), "shape must be"),
    "a fraction as a size": (pack({"a": entry(shape=[2.0])}, b"8 bytes."), "shape must be"),
    "a size beyond 63 bits": (pack({"a": entry(shape=[2**63, 0], offsets=(0, 0))}), "shape must be"),
    "too many dimensions": (pack({"a": entry(shape=[1] * 65)}, b"8 bytes."), "shape must be"),
    "one offset": (pack({"a": entry(offsets=[8])}, b"8 bytes."), "data_offsets must be"),
    "three offsets": (pack({"a": entry(offsets=[0, 8, 8])}, b"8 bytes."), "data_offsets must be"),
    "negative offsets": (pack({"a": entry(offsets=[-8, 0])}, b"8 bytes."), "data_offsets must be"),
    "false as an offset": (pack({"a": entry(offsets=[False, 8])}, b"8 bytes."), "data_offsets must be"),
    "offsets in the wrong order": (pack({"a": entry(offsets=[8, 0])}, b"8 bytes."), "do not lie in order"),
    "offsets beyond the data": (pack({"a": entry(offsets=[0, 8])}, b"7 bytes"), "do not lie in order"),
    "bytes that do not fit the shape": (pack({"a": entry(shape=[3])}, b"8 bytes."), "is 12 bytes, but .* hold 8"),
    "a product that wraps around": (pack({"a": entry(shape=[2**62, 4])}, b""), "do not lie in order"),
    "half a byte": (pack({"a": entry("F4", [3], (0, 1))}, b"1"), "is 1 bytes"),
    "bytes after the last tensor": (pack({"a": entry()}, b"9 bytes.."), "1 bytes follow the last tensor"),
    "data and no tensor": (pack({}, b"x"), "1 bytes follow the last tensor"),
    "a hole": (pack({"a": entry(), "b": entry(offsets=(9, 17))}, b"x" * 17), "'b' leaves a hole after tensor 'a'"),
    "a hole at the start": (pack({"a": entry(offsets=(1, 9))}, b"x" * 9), "'a' leaves a hole after the header"),
    "an overlap": (pack({"a": entry(), "b": entry(offsets=(4, 12))}, b"x" * 12), "'b' overlaps tensor 'a'"),
    "the same bytes twice": (pack({"a": entry(), "b": entry()}, b"x" * 8), "'b' overlaps tensor 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_the_file_is_a_load_error_naming_it(tmp_path: Path, defect: str) -> None:
    content, why = DEFECTS[defect]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=why) as caught:
        SafetensorsCheckpoint(tmp_path, {})
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isascii()
    assert len(message) < len(str(path)) + 500


def test_a_header_padded_with_spaces_and_one_without_tensors_are_fine(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(pack(b'{"__metadata__": {"format": "pt"}}      '))
    assert list(SafetensorsCheckpoint(tmp_path, {}).names()) == []


def test_tensors_of_no_size_may_share_their_place(tmp_path: Path) -> None:
    header = {"b": entry(shape=[0], offsets=(8, 8)), "a": entry(), "c": entry(shape=[5, 0], offsets=(0, 0))}
    (tmp_path / "model.safetensors").write_bytes(pack(header, b"8 bytes."))
    assert SafetensorsCheckpoint(tmp_path, {}).read("c").shape == (5, 0)


def test_a_file_cut_anywhere_is_a_load_error(tmp_path: Path) -> None:
    whole = save(TENSORS)
    path = tmp_path / "model.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(LoadError):
            SafetensorsFile(path)


def test_a_file_cut_while_in_use_is_a_load_error_and_never_kills(folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    for cut in (size - 1, size - 40, 8, 0):
        with SafetensorsCheckpoint(folder, SHAPES) as checkpoint:
            content = path.read_bytes()
            os.truncate(path, cut)
            with pytest.raises(LoadError, match="cut short while in use"):
                [checkpoint.read(name) for name in TENSORS]
        path.write_bytes(content)


def test_a_file_that_cannot_be_read_is_a_load_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")  # opening one would wait for ever
    with pytest.raises(LoadError, match="is no regular file"):
        SafetensorsCheckpoint(tmp_path, {})
    with pytest.raises(LoadError, match="no such file"):
        SafetensorsFile(tmp_path / "nothing.safetensors")


def test_a_link_that_leads_nowhere_is_an_incomplete_download(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    with pytest.raises(LoadError, match=r"it is a link to .*/blobs/abc, which is absent; the download is not complete"):
        SafetensorsCheckpoint(tmp_path, {})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "is a web page"),
        (b"\n  <HTML lang=en>", "is a web page"),
        (b"Entry not found", "an answer of the Hugging Face hub, 'Entry not found'"),
        (b"PK\x03\x04\x00\x00\x08\x08" + b"x" * 50, "is a zip archive"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00", "is a Python pickle"),
        (b"GGUF\x03\x00\x00\x00" + b"\0" * 40, "is a GGUF file"),
        (b"\0" * 4096, "begins with zeros only; the download is not complete"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match=what) as caught:
        SafetensorsCheckpoint(tmp_path, {})
    assert str(caught.value).startswith(str(tmp_path / name))


def test_an_adapter_and_a_gguf_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(pack({}))
    with pytest.raises(LoadError, match=r"holds an adapter .*merge_and_unload"):
        SafetensorsCheckpoint(tmp_path, {})
    other = tmp_path / "other"
    other.mkdir()
    (other / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(LoadError, match=r"found 'model-Q4_K_M\.gguf'\. GGUF files are not served"):
        SafetensorsCheckpoint(other, {})


# ---------------------------------------------------------------- names that are not those expected

NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight")


def hint(folder: Path, rename: Any) -> str:
    """What the refusal of a checkpoint says whose tensors are renamed; None leaves a tensor out."""
    renamed = {rename(name): np.ones(2, np.float32) for name in NAMES if rename(name) is not None}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(LoadError) as caught:
        SafetensorsCheckpoint(folder, dict.fromkeys(NAMES, (2,)))
    return str(caught.value)


def test_a_missing_head_alone_names_the_key_that_ties_it(tmp_path: Path) -> None:
    message = hint(tmp_path, lambda name: None if name == "lm_head.weight" else name)
    assert "missing 1 tensor: 'lm_head.weight' (where the head is the embedding table" in message
    assert "tie_word_embeddings: true" in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "language_model.", "anything."])
def test_another_prefix_of_all_names_is_named_with_its_cause(tmp_path: Path, prefix: str) -> None:
    message = hint(tmp_path, lambda name: prefix + name)
    assert f"the names in the file begin with '{prefix}': '{prefix}model.embed_tokens.weight'" in message
    assert "rename them" in message if prefix == "anything." else "they come from" in message


def test_names_without_their_prefix_are_named(tmp_path: Path) -> None:
    message = hint(tmp_path, lambda name: name.removeprefix("model."))
    assert "the names in the file lack the prefix 'model.': 'embed_tokens.weight'" in message
    message = hint(tmp_path, lambda name: name.replace("model.", "transformer.", 1))
    assert "begin with 'transformer.': 'transformer.embed_tokens.weight'" in message


def test_a_tensor_that_is_really_missing_has_no_hint(tmp_path: Path) -> None:
    assert "the names in the file" not in hint(tmp_path, lambda name: None if name == NAMES[0] else name)


def test_weights_in_float64_are_read(tmp_path: Path) -> None:
    save_file({"w": np.array([1.5, 1e300])}, tmp_path / "model.safetensors")
    checkpoint = SafetensorsCheckpoint(tmp_path, {"w": (2,)})
    assert checkpoint.meta("w").dtype == "F64"
    assert checkpoint.read("w").tolist() == [1.5, 1e300]


def test_a_failure_to_open_leaves_no_file_open(tmp_path: Path) -> None:
    write_shards(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(LoadError):
            SafetensorsCheckpoint(tmp_path, {"nothing": (1,)})
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_hundred_thousand_entries_are_checked_in_linear_time() -> None:
    entries = {f"t{i}": entry(shape=[1], offsets=(4 * i, 4 * i + 4)) for i in range(100_000)}
    start = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    assert len(parse_header(json.dumps(entries).encode(), 400_000, "x")) == 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - start < 10


# ---------------------------------------------------------------- the folder


def write_shards(folder: Path, **changes: Any) -> None:
    """Two shards and their index; ``changes`` replace entries of the weight map, None leaves one out."""
    shards = {"model-1-of-2.safetensors": ("a", "b"), "model-2-of-2.safetensors": ("c", "scalar", "empty")}
    for shard, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names} | changes
    kept = {name: shard for name, shard in weight_map.items() if shard is not None}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": kept}))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"a": "model-2-of-2.safetensors"}, "not where the index says: 'a' is not in 'model-2-of-2.safetensors'"),
        ({"b": "model-2-of-2.safetensors"}, "not where the index says: 'b' is not in"),
        ({"a": None}, "tensor 'a' is in 'model-1-of-2.safetensors', but by the index nowhere"),
        ({"x": "model-3-of-2.safetensors"}, "1 of 3 shards missing: 'model-3-of-2.safetensors'"),
        ({"x": "../model.safetensors"}, "expected a plain"),
        ({"x": "/etc/model.safetensors"}, "expected a plain"),
        ({"x": "a\\model.safetensors"}, "expected a plain"),
        ({"x": ".safetensors"}, "expected a plain"),
        ({"x": "..safetensors"}, "expected a plain"),
        ({"x": "model\0.safetensors"}, "expected a plain"),
        ({"x": "pytorch_model.bin"}, "expected a plain"),
        ({"x": 5}, "expected a plain"),
        ({"x": ["model-1-of-2.safetensors"]}, "expected a plain"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_a_load_error(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    write_shards(tmp_path, **changes)
    with pytest.raises(LoadError, match=why):
        SafetensorsCheckpoint(tmp_path, SHAPES)


def test_index_and_shards_may_disagree_about_tensors_that_the_model_does_not_need(tmp_path: Path) -> None:
    write_shards(tmp_path, a=None, b="model-2-of-2.safetensors", lm_head="model-1-of-2.safetensors")
    needed = {name: shape for name, shape in SHAPES.items() if name not in ("a", "b")}
    with SafetensorsCheckpoint(tmp_path, needed) as checkpoint:
        assert checkpoint.unexpected == ("a", "b")
        assert checkpoint.read("c").tolist() == TENSORS["c"].tolist()


def test_an_index_that_names_a_shard_longer_than_a_file_name_is_a_load_error(tmp_path: Path) -> None:
    write_shards(tmp_path, a="x" * 500 + ".safetensors")
    with pytest.raises(LoadError, match="expected a plain") as caught:
        SafetensorsCheckpoint(tmp_path, SHAPES)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_a_tensor_in_two_shards_is_a_load_error(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"a": TENSORS["a"], "c": TENSORS["c"]}, tmp_path / "model-2-of-2.safetensors")
    weight_map = {"a": "model-1-of-2.safetensors", "b": "model-1-of-2.safetensors", "c": "model-2-of-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(LoadError, match=r"tensor 'a' is in 'model-2-of-2\.safetensors', but by the index in 'model-1"):
        SafetensorsCheckpoint(tmp_path, {name: SHAPES[name] for name in "abc"})


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 50_000,
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
    ],
    ids=range(8),
)
def test_a_damaged_index_is_a_load_error(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(LoadError, match=r"index\.json"):
        SafetensorsCheckpoint(tmp_path, {})


def test_a_missing_and_a_truncated_shard_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    shard = tmp_path / "model-2-of-2.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(LoadError, match=r"model-2-of-2\.safetensors"):
        SafetensorsCheckpoint(tmp_path, SHAPES)
    shard.unlink()
    with pytest.raises(LoadError, match=r"1 of 2 shards missing: 'model-2-of-2\.safetensors'"):
        SafetensorsCheckpoint(tmp_path, SHAPES)


def test_pickle_files_are_never_read_and_the_error_says_how_to_convert(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(
        LoadError, match=r"found only 'pytorch_model.bin'. Pickle files are never read.*save_pretrained"
    ):
        SafetensorsCheckpoint(tmp_path, {})


def test_a_folder_without_weights_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"expected model\.safetensors.*loader: \{name: dummy\}"):
        SafetensorsCheckpoint(tmp_path, {})
    with pytest.raises(LoadError, match="no such folder"):
        SafetensorsCheckpoint(tmp_path / "nowhere", {})
    (tmp_path / "weights.safetensors").write_bytes(pack({}))
    with pytest.raises(LoadError, match=r"found 'weights\.safetensors'; rename"):
        SafetensorsCheckpoint(tmp_path, {})
