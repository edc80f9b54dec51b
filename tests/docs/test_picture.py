"""The picture in the README shows what its command prints."""

from __future__ import annotations

from tests.docs.picture import COMMAND, PICTURE, ROOT, lines_of, printed, svg_of

TABLE = "┌"
COUNTS = ("requests", "prompt tokens", "generated tokens")
MAX_BYTES = 40_000


def results_in(lines: list[str]) -> list[str]:
    """Prompts and texts, and of the table the counts: the same on every machine, in every run."""
    results = lines[: next(i for i, line in enumerate(lines) if line.startswith(TABLE))]
    table = [[cell.strip() for cell in line.split("│")[1:3]] for line in lines[len(results) :] if "│" in line]
    return results + [f"{name}: {count}" for name, count in table if name in COUNTS]


def test_the_picture_shows_the_results_that_the_command_prints() -> None:
    shown = results_in(lines_of(PICTURE.read_text()))
    assert shown == results_in(lines_of(svg_of(printed("--device", "cpu"))))
    assert shown[0] == f"$ {COMMAND}"
    assert {"19", "122", "31425", "52413", "12345", "requests: 6"} <= set(shown)


def test_the_picture_is_of_the_first_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"&& {COMMAND}\n```" in readme
    assert f"]({PICTURE.relative_to(ROOT)})" in readme


def test_the_picture_needs_nothing_from_the_network() -> None:
    svg = PICTURE.read_text()
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert len(svg.encode()) < MAX_BYTES
