"""Text that names a file or folder: whether any system could have one of that name."""

from __future__ import annotations

import os
from pathlib import Path

_MAX_PATH_BYTES = 4095
_MAX_NAME_BYTES = 255


def wrong_with_path(text: str) -> str:
    """What is wrong with ``text`` as a path, whatever files there are; empty where nothing is."""
    try:
        content = os.fsencode(text)
    except UnicodeEncodeError:
        return "must be a path that the file system can hold, without half of a surrogate pair"
    if b"\0" in content:
        return "must be a path, without the character U+0000"
    longest = max(map(len, content.split(b"/")))
    if len(content) > _MAX_PATH_BYTES or longest > _MAX_NAME_BYTES:
        return f"must be a path of at most {_MAX_PATH_BYTES} bytes, each name in it at most {_MAX_NAME_BYTES}"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return f"begins with {text.split('/')[0]!r}, and that home folder is not known; write the folder out"
    return ""
