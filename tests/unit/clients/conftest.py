"""A fake server per test."""

from collections.abc import Iterator

import pytest

from fakes.tightfit_server import FakeTightfit


@pytest.fixture
def fake() -> Iterator[FakeTightfit]:
    server = FakeTightfit.start()
    yield server
    server.stop()
