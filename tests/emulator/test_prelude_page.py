"""The page of the prelude names every primitive, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from tinyvllm.devices.compile_cache import INCLUDE_DIR

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "prelude.md"
_PRIMITIVE = re.compile(r"^TINYVLLM_DEVICE \w+\*? (\w+)(?:<\w+>)?\(", re.MULTILINE)


def headers() -> list[str]:
    prelude = (INCLUDE_DIR / "tinyvllm" / "prelude.cuh").read_text()
    names = [*re.findall(r'#include "(tinyvllm/\w+\.cuh)"', prelude), *_HOPPER]
    return [(INCLUDE_DIR / name).read_text() for name in names if name not in _COMPILERS]


_HOPPER = ("tinyvllm/tensor_copy.cuh",)
_COMPILERS = ("tinyvllm/emulator.cuh", "tinyvllm/device.cuh")


def test_every_primitive_is_on_the_page_and_no_other() -> None:
    defined = {name for header in headers() for name in _PRIMITIVE.findall(header)}
    documented = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert documented == defined


def test_every_primitive_is_described_where_it_is_defined() -> None:
    for header in headers():
        lines = header.splitlines()
        first = [i for i, line in enumerate(lines) if line.startswith("TINYVLLM_DEVICE")]
        for i in first:
            before = [line for line in lines[max(0, i - 2) : i] if line.startswith(("///", "template"))]
            assert before, lines[i]
