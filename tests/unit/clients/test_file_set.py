"""Tests of models of several files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tightfit.errors import IntegrityError
from tightfit.file_set import unpack_files

NAMES = ("model.h", "model.c")


def archive(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in files.items():
            opened.writestr(name.replace("__", "/").replace("_", "."), content)
    return path


def test_files_are_written(tmp_path: Path) -> None:
    packed = archive(tmp_path / "a.zip", model_h=b"1", model_c=b"2")
    files = unpack_files(packed, NAMES, tmp_path / "out")
    assert [path.read_bytes() for path in files] == [b"1", b"2"]


@pytest.mark.parametrize(
    "files",
    [
        {"model_h": b"1"},
        {"model_h": b"1", "model_c": b"2", "more_c": b"3"},
        {"model_h": b"1", "__model_c": b"2"},
    ],
)
def test_other_archives_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    packed = archive(tmp_path / "a.zip", **files)
    with pytest.raises(IntegrityError, match=r"model\.h and model\.c"):
        unpack_files(packed, NAMES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(IntegrityError):
        unpack_files(tmp_path / "a.zip", NAMES, tmp_path / "out")
