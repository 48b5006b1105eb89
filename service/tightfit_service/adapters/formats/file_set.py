"""Results of several files, as one artifact: a ZIP archive whose equal contents give equal bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping

from tightfit_service.domain.errors import InvalidModelError

_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that ZIP can express."""
_READABLE_BY_ALL = 0o644 << 16
_MOST_BYTES = 2 << 30


def join_files(files: Mapping[str, bytes]) -> bytes:
    """Return an archive of the files, in their order."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _FIXED_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = _READABLE_BY_ALL
            archive.writestr(info, data)
    return out.getvalue()


def split_files(data: bytes, names: Collection[str]) -> dict[str, bytes]:
    """Return the files of an archive.

    Args:
        data: From `join_files`.
        names: The files that it must hold, and no other.

    Raises:
        InvalidModelError: Not an archive of these files.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if sorted(entry.filename for entry in entries) == sorted(names) and total < _MOST_BYTES:
                return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise _other(names) from error
    raise _other(names)


def _other(names: Collection[str]) -> InvalidModelError:
    return InvalidModelError(
        f"this is not an archive of {' and '.join(sorted(names))}",
        field="model",
        remedy="give the file as tightfit exported it",
    )
