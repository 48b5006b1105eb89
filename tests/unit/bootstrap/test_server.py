"""A server is composed of its settings, and takes what it needs for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tightfit_service.bootstrap import build_server
from tightfit_service.domain.errors import InvalidRequestError, UnavailableError
from tightfit_service.settings import Settings


async def test_a_server_keeps_its_data_folder_to_itself_until_it_is_closed(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, listen="127.0.0.1:0", metrics_listen="")
    server = build_server(settings)
    assert (tmp_path / "state.db").is_file()
    with pytest.raises(UnavailableError, match="another server"):
        build_server(settings)
    server.resources.close()
    build_server(settings).resources.close()


async def test_a_port_that_is_open_to_everybody_is_refused_before_anything_is_opened(
    tmp_path: Path,
) -> None:
    with pytest.raises(InvalidRequestError, match="open to other machines"):
        build_server(Settings(data_dir=tmp_path / "data", listen="0.0.0.0:0"))
    assert not (tmp_path / "data").exists()
