"""Columns of plain text, as programs and people read them."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows below the header, each column as wide as its widest cell. A cell of several lines ends its row."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column].partition("\n")[0]) for row in cells) for column in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join("  ".join(row).rstrip() for row in padded)
