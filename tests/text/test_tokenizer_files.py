"""Files of a tokenizer that are not what their names say, are no files, or are larger than any such file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinyvllm.errors import LoadError
from tinyvllm.text.tokenizer import Tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "what"),
    [(POINTER, "Git LFS pointer.*git lfs pull"), (b"<html></html>", "is a web page"), (b"", "is empty")],
)
def test_a_file_of_another_kind_is_named(tokenizer_folder: Path, file: str, content: bytes, what: str) -> None:
    (tokenizer_folder / file).write_bytes(content)
    with pytest.raises(LoadError, match=what) as caught:
        Tokenizer.from_folder(tokenizer_folder)
    assert str(caught.value).startswith(str(tokenizer_folder / file))


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_what_is_no_file_is_refused_and_never_waited_for(tokenizer_folder: Path, file: str) -> None:
    path = tokenizer_folder / file
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(LoadError, match="is no regular file"):
        Tokenizer.from_folder(tokenizer_folder)
    path.unlink()
    path.symlink_to("../../blobs/0123")
    with pytest.raises(
        LoadError, match=r"a link to \.\./\.\./blobs/0123, which is absent; the download is not complete"
    ):
        Tokenizer.from_folder(tokenizer_folder)
    path.unlink()
    with path.open("wb") as sparse:
        sparse.truncate(3 * 2**30)
    with pytest.raises(LoadError, match=r"has 3221225472 bytes, at most \d+ are read of such a file"):
        Tokenizer.from_folder(tokenizer_folder)


@pytest.mark.parametrize("kind", ["pointer", "pipe", "sparse"])
def test_a_chat_template_that_is_no_template_leaves_prompts_alone(tokenizer_folder: Path, kind: str) -> None:
    path = tokenizer_folder / "chat_template.jinja"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(POINTER)
    if kind == "sparse":
        os.truncate(path, 3 * 2**30)
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    (line,) = tokenizer.report
    assert {"pointer": "is a Git LFS pointer", "pipe": "is no regular file", "sparse": "at most 8388608"}[kind] in line


def test_a_template_may_begin_with_a_byte_order_mark_or_look_like_a_web_page(tokenizer_folder: Path) -> None:
    source = "<html>{{ messages[0]['content'] }}\r\n"
    (tokenizer_folder / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf" + source.encode())
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "<html>hi"
