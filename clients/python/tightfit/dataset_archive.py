"""A dataset packed with its arrays into one archive for upload."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tightfit.dataset_file import DatasetFile
from tightfit.errors import InvalidInputError
from tightfit.transfer import OutgoingFile, file_digest

# the earliest time that ZIP can express: equal contents must give equal bytes
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@contextmanager
def packed(dataset: DatasetFile) -> Iterator[OutgoingFile]:
    """Pack a dataset into a temporary archive that lives as long as the context.

    The archive is an uncompressed ZIP with `manifest.json` first and the array files as they are.
    Equal contents give equal bytes, so that a server which has them already need not be sent them.
    For people it is named by the folder that the description lies in.

    Raises:
        InvalidInputError: An array file cannot be read, or the temporary folder is full.
    """
    with tempfile.TemporaryDirectory(prefix="tightfit-") as folder:
        archive = Path(folder) / "dataset.zip"
        try:
            _write_archive(archive, dataset)
        except OSError as error:
            raise InvalidInputError(
                f"cannot pack the dataset: {error}",
                field=str(dataset.path),
                remedy="check that the arrays are readable and that TMPDIR has room for a copy",
            ) from error
        yield OutgoingFile(
            path=archive,
            display_name=dataset.path.resolve().parent.name,
            digest=file_digest(archive),
            size_bytes=archive.stat().st_size,
        )


def _write_archive(archive: Path, dataset: DatasetFile) -> None:
    with zipfile.ZipFile(archive, "w", compression=zipfile.ZIP_STORED) as output:
        text = json.dumps(dataset.manifest, indent=1, sort_keys=True).encode()
        output.writestr(_member("manifest.json", len(text)), text)
        for name, source in sorted(dataset.files.items()):
            info = _member(name, source.stat().st_size)
            with source.open("rb") as file, output.open(info, "w") as member:
                shutil.copyfileobj(file, member, 1 << 20)


def _member(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=_FIXED_TIME)
    info.file_size = size
    info.create_system = 3
    info.external_attr = 0o100644 << 16
    return info
