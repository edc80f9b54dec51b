"""The kernel of the documentation as files, right or with something changed."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "plugins.md"
_SOURCE = re.compile(r"```cuda\n(.*?)```", re.DOTALL)
_PLUGIN = re.compile(r"```python\n((?:(?!```).)*?cuda_kernel\(\"my_rms_norm\".*?)```", re.DOTALL)


def write_own_kernel(folder: Path, *changes: tuple[str, str]) -> Path:
    """``my_rms_norm.cu`` and ``my_rms_norm.py`` in ``folder``, parts of the source replaced; the plugin."""
    text = PAGE.read_text()
    source, plugin = _SOURCE.search(text), _PLUGIN.search(text)
    assert source is not None
    assert plugin is not None
    code = source[1]
    for old, new in changes:
        assert old in code
        code = code.replace(old, new, 1)
    (folder / "my_rms_norm.cu").write_text(code)
    (folder / "my_rms_norm.py").write_text(plugin[1])
    return folder / "my_rms_norm.py"
