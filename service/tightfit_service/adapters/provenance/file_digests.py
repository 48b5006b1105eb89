"""Digests of the files in an exported archive; read in pieces, never unpacked to disk."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tightfit_service.domain.errors import IntegrityError

MOST_FILES = 16
MOST_BYTES = 2 << 30
_PIECE_BYTES = 1 << 20


class ZipFileSets:
    """Implements `ports.provenance.FileSetReader` for what `formats.file_set` joins."""

    def digests(self, path: Path) -> Mapping[str, str]:
        """Return name and sha-256 of every file in the archive.

        Raises:
            IntegrityError: No archive, or more in it than an exporter writes.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                total = sum(entry.file_size for entry in entries)
                if len(entries) > MOST_FILES or total > MOST_BYTES:
                    raise _unexpected()
                found = {}
                for entry in entries:
                    with archive.open(entry) as file:
                        found[entry.filename] = _digest(file)
                return found
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise _unexpected() from error


def _digest(file: IO[bytes]) -> str:
    running = hashlib.sha256()
    while piece := file.read(_PIECE_BYTES):
        running.update(piece)
    return running.hexdigest()


def _unexpected() -> IntegrityError:
    return IntegrityError(
        "the exported model is not an archive as the exporters write them",
        field="model",
        remedy="run the job again; if it happens twice, the artifact store is damaged",
    )
