"""``docs/run.svg``: the first command of the README in a terminal, as a picture.

python -m tests.docs.picture    runs the command and draws it anew
"""

from __future__ import annotations

import inspect
import io
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.text import Text

from tests.cli.terminal import run_in_terminal

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "run.svg"
COMMAND = "python -m tinyvllm --config configs/quickstart.yaml"
COLUMNS = 100
_ERASED = "\x1b[2K"  # a line of the progress bar, of which nothing remains
_CHARACTER_WIDTH = 12.2
_FORMAT: str = inspect.signature(Console.export_svg).parameters["code_format"].default


def printed(*further: str) -> Text:
    """What the command leaves on a terminal, the command itself included.

    Args:
        further: arguments that change nothing of what is generated.
    """
    program = shlex.split(COMMAND)
    session = run_in_terminal(*program[3:], *further, columns=COLUMNS)
    assert session.returncode == 0, session.screen
    remaining = session.raw.rpartition(_ERASED)[2].replace("\r\n", "\n").rstrip()
    return Text.assemble("$ ", COMMAND, "\n", Text.from_ansi(remaining))


def svg_of(text: Text) -> str:
    """A picture of a terminal with ``text``; a line that is too long goes on in the next one."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in text.split("\n", allow_blank=True):
        for piece in line.divide(range(COLUMNS, len(line), COLUMNS)):
            console.print(piece, no_wrap=True, crop=False)
    svg = console.export_svg(title="tinyvllm", code_format=without_network(_FORMAT), unique_id="run")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def without_network(code_format: str) -> str:
    """rich's frame of a picture without its fonts, which a browser would fetch, and without its comment."""
    local = re.sub(r"@font-face \{\{.*?\}\}\s*|<!--.*?-->\s*", "", code_format, flags=re.DOTALL)
    return local.replace("Fira Code", "Menlo")


def lines_of(svg: str) -> list[str]:
    """The text of such a picture."""
    rows: dict[float, list[str]] = {}
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if "clip-path" not in element.attrib:
            continue  # the title
        row = rows.setdefault(float(element.attrib["y"]), [])
        column = round(float(element.attrib["x"]) / _CHARACTER_WIDTH)
        text = (element.text or "").replace("\N{NO-BREAK SPACE}", " ").rstrip("\n")
        row += [" "] * (column + len(text) - len(row))
        row[column : column + len(text)] = text
    return ["".join(rows[y]).rstrip() for y in sorted(rows)]


if __name__ == "__main__":
    PICTURE.write_text(svg_of(printed()))
