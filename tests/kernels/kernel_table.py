"""The tables of registers, shared memory and barriers in ``docs/reference/kernels.md``.

``python -m tests.kernels.kernel_table`` writes them again; it needs NVRTC, no GPU, and half a minute.
"""

from __future__ import annotations

import re
from pathlib import Path

from tinyvllm.devices.nvrtc import ARCHITECTURES, KernelUsage, compile_cubin

from . import barriers
from .sources import source_of
from .variants import Kernel, table_kernels

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "kernels.md"
COMMAND = "python -m tests.kernels.kernel_table"
AGAIN = f"run {COMMAND} and commit what it writes"
USAGE, BARRIERS = "registers and shared memory", "barriers"
_MADE_WITH = re.compile(r"^NVRTC (\d+\.\d+)\.$", re.MULTILINE)


def usage_of(kernel: Kernel) -> list[KernelUsage]:
    """What the compiler says of one kernel, for each of its architectures."""
    return [
        next(usage for usage in compile_cubin(source_of(kernel.source), arch, dict(kernel.defines)).usage
             if usage.name == kernel.name)
        for arch in kernel.architectures
    ]  # fmt: skip


def row_of(kernel: Kernel) -> str:
    """The kernel's line of the table."""
    used = dict(zip(kernel.architectures, usage_of(kernel), strict=True))
    static = sorted({usage.static_shared_bytes for usage in used.values()})
    cells = (
        f"`{kernel.name}`",
        kernel.label,
        " to ".join(str(size) for size in (static if len(static) == 1 else (static[0], static[-1]))),
        str(kernel.dynamic_bytes),
        *(str(used[arch].registers) if arch in used else "-" for arch in ARCHITECTURES),
    )
    return _line(cells)


def table() -> str:
    """Everything between the marks."""
    head = ("kernel", "for", "static", "dynamic", *(f"sm_{arch}" for arch in ARCHITECTURES))
    lines = [_line(head), _line(("---",) * len(head)), *(row_of(kernel) for kernel in table_kernels())]
    return f"NVRTC {nvrtc_version()}.\n\n" + "\n".join(lines) + "\n"


def nvrtc_version() -> str:
    """Of the compiler that is installed.

    Raises:
        DeviceError: none is.
    """
    from tinyvllm.devices.cuda.nvrtc_version import nvrtc_version as version

    return ".".join(map(str, version()))


def written() -> tuple[str, list[str]]:
    """The version that the page was made with, and its rows."""
    part = _part(PAGE.read_text(encoding="utf-8"), USAGE)
    version = _MADE_WITH.search(part)
    assert version, f"no version of NVRTC in {PAGE}"
    return version[1], [line for line in part.splitlines() if line.startswith("| `")]


def written_barriers() -> list[str]:
    """The page's rows about barriers."""
    return [line for line in _part(PAGE.read_text(encoding="utf-8"), BARRIERS).splitlines() if line.startswith("| `")]


def main() -> None:
    """Writes the page."""
    text = PAGE.read_text(encoding="utf-8")
    head = [_line(("file", "statement", "what it orders", "without it")), _line(("---",) * 4)]
    for name, lines in ((BARRIERS, "\n".join([*head, *barriers.rows()]) + "\n"), (USAGE, table())):
        text = text.replace(_part(text, name), lines)
    PAGE.write_text(text, encoding="utf-8")


def _part(text: str, name: str) -> str:
    """What stands between the marks."""
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->\n"
    return text[text.index(begin) + len(begin) : text.index(end)]


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
