"""Where the CUDA sources of the product lie."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).parents[2]
_SHARED = _ROOT / "tinyvllm" / "devices" / "include" / "tinyvllm" / "shared"
_FOLDERS = (_ROOT / "tinyvllm" / "runner", _SHARED, _ROOT / "plugins")


def all_sources() -> list[Path]:
    """Every ``.cu`` and ``.cuh`` but the prelude's; no two have one name."""
    found = [path for folder in _FOLDERS for path in folder.rglob("*.cu*")]
    assert len({path.name for path in found}) == len(found), "two sources of one name"
    return sorted(found)


def source_of(name: str) -> Path:
    """The source of that name."""
    (found,) = (path for path in all_sources() if path.name == name)
    return found
