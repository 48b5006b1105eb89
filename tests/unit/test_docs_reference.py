"""The pages on datasets and results say what the code reads and writes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from documentation import ROOT, fenced, tables
from fakes import results
from tightfit.dataset_file import METRICS_OF_TASK, read_dataset_file
from tightfit.words import METRICS
from tightfit_service.domain.dataset import METRICS_OF_TASK as METRICS_OF_SERVICE

DATASETS = (ROOT / "docs" / "datasets.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()


def rows_under(text: str, heading: str) -> list[list[str]]:
    """Return the rows of the one table whose first column is so called."""
    (found,) = (rows for first, rows in tables(text) if first[0].strip("`") == heading)
    return found


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_0-9]+)`", cell))


def test_the_metrics_on_the_page_are_those_of_each_task() -> None:
    told: dict[str, set[str]] = {}
    for metric, tasks, *_ in rows_under(DATASETS, "metric"):
        named = METRICS_OF_TASK if tasks == "all" else tasks.split(", ")
        for task in named:
            told.setdefault(task, set()).add(metric.strip("`"))
    assert told == {task: set(metrics) for task, metrics in METRICS_OF_TASK.items()}
    assert set(METRICS) == set.union(*told.values())


def test_client_and_service_offer_the_same_metrics() -> None:
    assert {task: tuple(metrics) for task, metrics in METRICS_OF_SERVICE.items()} == METRICS_OF_TASK


@pytest.mark.parametrize("number", [0, 1])
def test_the_descriptions_on_the_page_can_be_read(tmp_path: Path, number: int) -> None:
    images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, np.int64)
    np.savez(tmp_path / "digits.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)
    for name, array in (("images", images), ("speeds", np.zeros((4, 1))), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "dataset.yaml").write_text(list(fenced(DATASETS, "yaml"))[number])
    manifest = read_dataset_file(tmp_path / "dataset.yaml").manifest
    known = {row[0].strip("`").partition(".")[0] for row in rows_under(DATASETS, "key")}
    assert set(manifest) - {"version", "calibration"} <= known


def test_every_key_of_a_result_is_on_the_page() -> None:
    result = results.succeeded()
    listed = set().union(*(names_in(row[0]) for row in rows_under_all(RESULTS, "key")))
    told = names_in(RESULTS)
    assert set(result) <= listed
    assert set(result["budget"]) <= told
    assert set(result["best"]) <= told
    assert set(results.infeasible()["infeasibility"]) <= told
    assert names_in(rows_under_all(RESULTS, "key")[-1][0]) <= set(result["best"])


def rows_under_all(text: str, heading: str) -> list[list[str]]:
    return [row for first, rows in tables(text) if first[0] == heading for row in rows]
