"""docs/reliability.md shows what was measured, and what was measured is without a problem."""

from __future__ import annotations

from benchmarks.reliability_page import PAGE, page, results


def test_the_page_agrees_with_the_results() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, *results()) == text, "run python benchmarks/reliability_page.py"


def test_no_published_run_found_a_problem() -> None:
    faults, _ = results()
    assert {name: row["problems"] for name, row in faults.items() if row["problems"]} == {}
