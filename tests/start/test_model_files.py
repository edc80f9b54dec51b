from __future__ import annotations

from pathlib import Path

import pytest

from tinyvllm.errors import LoadError
from tinyvllm.start.model_files import ModelFiles, hugging_face_cache, resolve_model


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}}')
    return folder


def make_cached(cache: Path, commit: str = "abc123", reference: str = "abc123\n") -> Path:
    repository = cache / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(reference)
    return make_checkpoint(repository / "snapshots" / commit)


def test_demo_is_the_folder_in_the_package() -> None:
    import tinyvllm

    try:
        folder = resolve_model("demo").folder
    except LoadError as error:  # before the checkpoint is made
        assert "tinyvllm/demo/config.json" in str(error)  # noqa: PT017
    else:
        assert folder == Path(tinyvllm.__file__).parent / "demo"


def test_a_folder_is_relative_to_the_base_or_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "models" / "tiny")
    assert resolve_model(str(folder)).folder == folder
    assert resolve_model("models/tiny", tmp_path).folder == folder
    assert resolve_model("./models/../models/tiny", tmp_path).folder.samefile(folder)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("models/tiny").folder == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/models/tiny", Path("/")).folder == folder


def test_a_folder_named_demo_needs_its_path(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "demo")
    assert resolve_model("./demo", tmp_path).folder == folder


def test_a_name_of_the_hub_is_looked_up_in_the_local_cache(tmp_path: Path) -> None:
    snapshot = make_cached(tmp_path / "cache")
    assert resolve_model("org/name", tmp_path, tmp_path / "cache").folder == snapshot
    mine = make_checkpoint(tmp_path / "org" / "name")
    assert resolve_model("org/name", tmp_path, tmp_path / "cache").folder == mine


@pytest.mark.parametrize("reference", ["", "missing", "../../../secret", "/etc", "\xff"])
def test_a_damaged_cache_is_a_load_error_with_the_command_that_mends_it(tmp_path: Path, reference: str) -> None:
    make_checkpoint(tmp_path / "secret")
    make_cached(tmp_path / "cache", reference=reference)
    with pytest.raises(LoadError, match=r"leads to no snapshot; .* `hf download org/name`"):
        resolve_model("org/name", tmp_path, tmp_path / "cache")


def test_a_cache_without_a_reference_has_one_snapshot_or_says_so(tmp_path: Path) -> None:
    snapshot = make_cached(tmp_path)
    reference = snapshot.parents[1] / "refs" / "main"
    reference.unlink()
    assert resolve_model("org/name", tmp_path / "elsewhere", tmp_path).folder == snapshot
    make_checkpoint(snapshot.parent / "def456")
    with pytest.raises(LoadError, match=r"in 2 versions, and .*refs/main is missing"):
        resolve_model("org/name", tmp_path / "elsewhere", tmp_path)


def test_a_blob_that_is_absent_is_an_incomplete_download(tmp_path: Path) -> None:
    snapshot = make_cached(tmp_path)
    for name in ("config.json", "generation_config.json"):
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to("../../blobs/0123")
        with pytest.raises(LoadError, match=r"a link to \.\./\.\./blobs/0123, which is absent; the download"):
            resolve_model("org/name", tmp_path / "elsewhere", tmp_path).read_json(name)


def test_without_a_home_the_cache_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def expanduser(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    with pytest.raises(LoadError, match="set HF_HUB_CACHE"):
        hugging_face_cache({})


def test_an_adapter_and_a_gguf_file_have_words_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "model-Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(LoadError, match=r"holds 'model-Q4\.gguf' and no config\.json\. GGUF files are not served"):
        resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LoadError, match=r"holds an adapter .*merge_and_unload"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "Git LFS pointer.*git lfs pull"),
        (b"<!doctype html><html></html>", "is a web page"),
        ('{"a": 1}'.encode("utf-16"), "is text in UTF-16"),
    ],
)
def test_a_json_file_of_another_kind_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    folder = make_checkpoint(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(LoadError, match=what):
        ModelFiles(folder).read_json("config.json")


def test_a_byte_order_mark_and_line_ends_of_windows_are_fine(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    (folder / "config.json").write_bytes(b'\xef\xbb\xbf{\r\n"model_type": "llama"\r\n}\r\n')
    assert ModelFiles(folder).read_json("config.json") == {"model_type": "llama"}


def test_an_absent_name_says_how_to_fetch_it_and_never_does(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"neither a folder .* nor in the cache .* `hf download org/other`"):
        resolve_model("org/other", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    "model", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c", "", "..", "../x", "a\0b", "a\x1b[31mb", "x" * 5000]
)
def test_what_is_no_folder_is_a_load_error(tmp_path: Path, model: str) -> None:
    with pytest.raises(LoadError, match=r"config\.json|cannot be the name") as caught:
        resolve_model(model, tmp_path, tmp_path / "cache")
    assert str(caught.value).isprintable()


def test_a_file_or_a_folder_without_config_is_a_load_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(LoadError, match="is a file; name the folder"):
        resolve_model("model.safetensors", tmp_path)
    with pytest.raises(LoadError, match=r"config\.json: is missing"):
        resolve_model(str(tmp_path))


def test_json_files_are_read_or_absent(tmp_path: Path) -> None:
    files = ModelFiles(make_checkpoint(tmp_path / "m"))
    config = files.read_json("config.json")
    assert config is not None
    assert config["model_type"] == "llama"
    assert files.read_json("generation_config.json") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "a": 1,\n  oops\n}', r"config\.json:3: is not valid JSON"),
        (b"", r"config\.json: is empty"),
        (b"[1]", "must hold a mapping, got list"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not valid JSON"),
    ],
    ids=range(7),
)
def test_json_that_is_wrong_is_a_load_error_naming_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    folder = make_checkpoint(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(LoadError, match=message):
        ModelFiles(folder).read_json("config.json")


def test_the_environment_says_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert hugging_face_cache({}) == Path("/home/me/.cache/huggingface/hub")
    assert hugging_face_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert hugging_face_cache({"XDG_CACHE_HOME": "/x", "HF_HOME": "/h"}) == Path("/h/hub")
    assert hugging_face_cache({"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old"}) == Path("/old")
    assert hugging_face_cache({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "~/new"}) == Path("/home/me/new")
    snapshot = make_cached(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert resolve_model("org/name", tmp_path / "elsewhere").folder == snapshot
