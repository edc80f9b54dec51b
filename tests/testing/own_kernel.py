"""The kernel and the attention of the documentation as files, right or with something changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "plugins.md"
_BLOCK = r"```{language}\n((?:(?!```).)*?{mark}.*?)```"


def write_own_kernel(folder: Path, *changes: tuple[str, str]) -> Path:
    """``my_rms_norm.cu`` and ``my_rms_norm.py`` in ``folder``, parts of the source replaced; the plugin."""
    return _write(folder, "my_rms_norm", r"cuda_kernel\(\"my_rms_norm\"", changes)


def write_own_attention(folder: Path, *changes: tuple[str, str]) -> Path:
    """``my_attention.cu`` and ``my_attention.py`` in ``folder``, parts of either replaced; the plugin."""
    return _write(folder, "my_attention", r"Plugin\(\"my_attention\"", changes)


def _write(folder: Path, name: str, registration: str, changes: Sequence[tuple[str, str]]) -> Path:
    texts = {".cu": _block("cuda", rf"void {name}\("), ".py": _block("python", registration)}
    for old, new in changes:
        (suffix,) = [suffix for suffix, text in texts.items() if old in text]
        texts[suffix] = texts[suffix].replace(old, new, 1)
    for suffix, text in texts.items():
        (folder / name).with_suffix(suffix).write_text(text)
    return (folder / name).with_suffix(".py")


def _block(language: str, mark: str) -> str:
    found = re.search(_BLOCK.format(language=language, mark=mark), PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]
