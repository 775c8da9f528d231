"""Every page of the documentation is reached, and every link leads somewhere; CI also builds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path for path in (*DOCS.glob("*.md"), *DOCS.glob("*/*.md"), *DOCS.glob("*.ipynb")) if "_build" not in path.parts
)


def test_every_page_is_in_the_sidebar() -> None:
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", (DOCS / "index.md").read_text("utf-8"), re.S | re.M)
    entries = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    reached = {
        path.with_suffix("") for entry in entries for path in (*DOCS.glob(f"{entry}.md"), *DOCS.glob(f"{entry}.ipynb"))
    }
    assert {path.with_suffix("") for path in PAGES} - reached == {DOCS / "index"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    lost = [link for link in links if not (page.parent / link).exists() and "\\" not in link]
    assert not lost


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
