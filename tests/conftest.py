"""How hypothesis runs here: no test depends on the machine's speed, and CI is repeatable."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from fakes.ray_cluster import RayCluster

LONG_TIMEOUT_SECONDS = 1_800

# A slow machine is no failure. In CI the examples are the same each time: what chance finds on a
# developer's machine becomes a test of its own, and an unrelated change is not held up by it.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests of whole servers more time before they count as stuck: others may need the machine."""
    for item in items:
        is_long = item.get_closest_marker("long") or item.get_closest_marker("debian")
        if is_long and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_SECONDS))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """A head node of Ray; starting one takes seconds, so all tests share it."""
    cluster = RayCluster.start()
    yield cluster
    cluster.stop()
