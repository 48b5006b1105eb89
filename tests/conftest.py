"""How the tests run: none depends on the machine's speed, CI is repeatable, and nothing is paid for twice."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from fakes.ray_cluster import RayCluster

LONG_TIMEOUT_SECONDS = 1_800

# Collecting makes objects that nearly all stay, hundreds of thousands with the libraries under test:
# looking for garbage among them again and again took a fifth of the time of collecting.
gc.disable()

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


def pytest_collection_finish() -> None:
    """Look for garbage from here on, but not among what collecting left."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """A head node of Ray; starting one takes seconds, so all tests share it."""
    cluster = RayCluster.start()
    yield cluster
    cluster.stop()
