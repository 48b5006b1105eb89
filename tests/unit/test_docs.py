"""The documentation points at what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from documentation import PAGES, ROOT, page_id


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, heading = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name}: {target}"
        if heading and linked.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
            assert heading in slugs, f"{page.name}: {target}"


def test_the_files_that_the_architecture_page_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.split("Where to look:")[1].split("## ")[0]
    for name in re.findall(r"`([\w/.]+/[\w.]*)`", table):
        package = ROOT / "service" / "tightfit_service"
        assert (package / name).exists() or (ROOT / name).exists(), name


def test_every_decision_is_listed_and_has_all_its_parts() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text()
    for record in sorted(folder.glob("0*.md")):
        text = record.read_text()
        title = re.match(r"# (\d+)\. (.+)\n", text)
        assert title is not None
        assert f"| [{title[1]}]({record.name}) | {title[2]} |" in index
        for part in ("Context", "Decision", "Alternatives", "Consequences"):
            assert f"**{part}.**" in text, f"{record.name}: {part}"
