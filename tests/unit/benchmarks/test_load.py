"""A short run with few clients, in which some method is called once or never, is measured too."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import pytest
from benchmarks import load


class Pool:
    """Plays the processes of the clients: each answers with the times that it was given."""

    def __init__(self, *found: Mapping[str, list[float]]) -> None:
        self.found = list(found)
        self.clients: list[int] = []

    def submit(self, work: object, address: str, clients: int, *_: object) -> Future[Any]:
        assert work is load.in_process
        assert address == "server:1"
        self.clients.append(clients)
        answer: Future[Any] = Future()
        answer.set_result(self.found[len(self.clients) - 1])
        return answer


def test_a_method_that_was_called_once_has_a_row_and_one_never_called_has_none() -> None:
    pool = Pool({"GetJob": [0.010, 0.030]}, {"GetJob": [0.020], "ListJobs": [0.0504]})
    found = load.measure_calls("server:1", clients=3, seconds=2.0, jobs=["j"], spec=b"", pool=pool)
    assert pool.clients == [2, 1]
    assert found == {
        "GetJob": {"count": 3, "per_second": 1.5, "p50_ms": 20.0, "p99_ms": 29.8},
        "ListJobs": {"count": 1, "per_second": 0.5, "p50_ms": 50.4, "p99_ms": 50.4},
    }


@pytest.mark.parametrize("clients", [1, 2, 5, 200])
def test_all_clients_are_played(clients: int) -> None:
    assert sum(load.shares(clients)) == clients
