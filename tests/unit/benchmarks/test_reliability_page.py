"""docs/reliability.md shows what was measured, and what was measured is without a problem."""

from __future__ import annotations

from benchmarks.reliability_page import PAGE, memory, page, results


def test_the_page_agrees_with_the_results() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, results()) == text, "run python benchmarks/reliability_page.py"


def test_no_published_run_found_a_problem() -> None:
    faults = results()["faults"]
    assert {name: row["problems"] for name, row in faults.items() if row["problems"]} == {}


def test_memory_is_told_at_the_beginning_in_the_middle_and_at_the_end() -> None:
    rows = {"beginning": 180.4, "round 1, run": 181.6, "round 2, run": 182.0}
    found = {
        "jobs_in_the_database": 3_000,
        "projects": 50,
        "page": 500,
        "jobs_listed": 6_000,
        "jobs_run": 8,
        "jobs_ended_in_order": 8,
        "beginning_mebibytes": 180.4,
        "middle_mebibytes": 181.6,
        "end_mebibytes": 182.0,
        "held": {
            name: {"resident_mebibytes": held, "file_descriptors": 29}
            for name, held in rows.items()
        },
    }
    text = memory(found)
    assert "| round 1, run | 182 MiB | 29 |" in text
    assert "180 MiB at the beginning, 182 MiB in the middle, 182 MiB at the end" in text
