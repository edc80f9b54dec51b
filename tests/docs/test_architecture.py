"""What the architecture page and the glossary mention exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["docs/architecture.md", "docs/forward.md", "docs/glossary.md", "README.md"]
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for folder in ("tinyvllm", "plugins") for path in (ROOT / folder).rglob("*.py")
)


def mentioned(page: str) -> set[str]:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    paths = {each for each in mentioned(page) if re.fullmatch(r"(tinyvllm|plugins|tests|configs|docs)/[\w./-]*", each)}
    missing = sorted(path for path in paths if not (ROOT / path).exists())
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_class_and_function_exists(page: str) -> None:
    names = {each for each in mentioned(page) if re.fullmatch(r"[A-Z]\w*[a-z]\w*(\.\w+)*|[a-z]+(_[a-z]+)+", each)}
    assert names or page == "README.md"
    missing = sorted(each for each in names if not re.search(rf"\b{each.rpartition('.')[2]}\b", SOURCES))
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [each for each in targets if "://" not in each and not ((ROOT / page).parent / each).exists()]
    assert not missing


def test_every_folder_of_the_core_is_in_the_layout() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    folders = [path.name for path in (ROOT / "tinyvllm").iterdir() if (path / "__init__.py").exists()]
    assert not [name for name in folders if f"`tinyvllm/{name}/`" not in page]
