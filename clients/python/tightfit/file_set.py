"""Models of several files: one archive in the server's store, plain files in the user's folder."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from tightfit.errors import IntegrityError

MOST_BYTES = 2 << 30


def unpack_files(archive: Path, names: Sequence[str], folder: Path) -> list[Path]:
    """Write the files of a downloaded archive into a folder, and return where they are.

    Args:
        archive: As it was downloaded.
        names: The files that it must hold, and no other.
        folder: Made if it is not there.

    Raises:
        IntegrityError: Not an archive of these files, or of more than 2 GiB.
        OSError: The folder cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = {entry.filename: entry for entry in opened.infolist()}
            total = sum(entry.file_size for entry in opened.infolist())
            if sorted(entries) != sorted(names) or total > MOST_BYTES:
                raise _unexpected(names)
            contents = {name: opened.read(entries[name]) for name in names}
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise _unexpected(names) from error
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in names]


def _unexpected(names: Sequence[str]) -> IntegrityError:
    return IntegrityError(
        f"the downloaded model is not an archive of {' and '.join(names)}",
        field="model",
        remedy="update the client, or fetch the artifact with the client library",
    )
