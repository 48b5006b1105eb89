"""What the tests of all formats share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from fakes.conversions import Convert, converting_once
from tightfit_service.adapters.formats import tflite_export


@pytest.fixture(scope="session")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """Convert each network to TFLite once."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "conversions"
    folder.mkdir(exist_ok=True)
    return converting_once(folder)


@pytest.fixture(scope="session", autouse=True)
def _exporters_convert_once(convert: Convert) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tflite_export, "convert", convert)
        yield
