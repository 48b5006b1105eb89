"""Arrays inside ZIP archives: headers checked before anything is allocated, data memory-mapped."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import lzma
import math
import stat
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tightfit_service.domain.errors import (
    InvalidDatasetError,
    ResourceExhaustedError,
    UnavailableError,
)

_BAD_HEADER = (
    ValueError,
    KeyError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    OverflowError,
    RecursionError,
)
"""What NumPy raises for headers of .npy files that are none: it parses them as Python literals."""
_BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    struct.error,
)
"""What the standard library raises on archives that are damaged or use exotic features."""

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA}
_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LOCAL_HEADER_MAGIC = b"PK\x03\x04"
_MAX_NPY_HEADER_BYTES = 10_000
_MAX_LZMA_DICTIONARY_BYTES = 128 << 20
"""Twice what `xz -9` uses; the decoder allocates what the stream asks for."""
_COPY_BYTES = 1 << 20
_FREE_RATIO_BYTES = 256 << 20
"""Labels and blank images compress a thousandfold, so small archives may expand at any ratio."""
_MAX_RATIO = 200


def _damaged() -> InvalidDatasetError:
    return InvalidDatasetError(
        "the dataset's archive is damaged or uses a feature that is not read",
        field="dataset",
        remedy="pack and upload it again with the tightfit client",
    )


class FileSection(io.RawIOBase):
    """A read-only window on a file, so that an archive inside an archive opens without a copy."""

    def __init__(self, path: Path, *, start: int, size: int) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the window and return the new position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        """Return the position within the window."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the window; 0 at its end."""
        view = memoryview(buffer).cast("B")
        room = max(0, min(len(view), self._size - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(room)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file underneath."""
        self._file.close()
        super().close()


@dataclass(frozen=True, kw_only=True)
class ZipSection:
    """A ZIP archive that is a whole file or a contiguous part of one."""

    path: Path
    start: int
    size: int

    @classmethod
    def whole(cls, path: Path) -> ZipSection:
        """Return the section that is the whole file."""
        return cls(path=path, start=0, size=path.stat().st_size)

    @contextlib.contextmanager
    def opened(self) -> Iterator[zipfile.ZipFile]:
        """Open the archive.

        Raises:
            InvalidDatasetError: It is damaged, here or while it is read inside the block.
        """
        with FileSection(self.path, start=self.start, size=self.size) as raw:
            try:
                with zipfile.ZipFile(io.BufferedReader(raw)) as archive:
                    yield archive
            except _BROKEN as error:
                raise _damaged() from error

    def data_start(self, info: zipfile.ZipInfo) -> int:
        """Return the position in the file of a stored member's data.

        The central directory does not tell it: the local header's extra field differs in length.

        Raises:
            InvalidDatasetError: The local header does not fit the directory.
        """
        with self.path.open("rb") as file:
            file.seek(self.start + info.header_offset)
            header = file.read(_LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size:
            raise _damaged()
        fields = _LOCAL_HEADER.unpack(header)
        position: int = (
            self.start + info.header_offset + _LOCAL_HEADER.size + fields[9] + fields[10]
        )
        if (
            fields[0] != _LOCAL_HEADER_MAGIC
            or position + info.compress_size > self.start + self.size
        ):
            raise _damaged()
        return position


def check_members(archive: zipfile.ZipFile, *, max_count: int, max_total_bytes: int) -> None:
    """Refuse archives whose directory is hostile, before any member is read.

    Raises:
        InvalidDatasetError: Too many members, doubled names, links, encryption, unknown compression,
            or more data than allowed after decompression.
    """
    members = archive.infolist()
    if len(members) > max_count:
        raise InvalidDatasetError(
            f"the archive has {len(members)} members, more than {max_count}",
            field="dataset",
            remedy="keep the arrays that the splits need",
        )
    seen: set[str] = set()
    for info in members:
        if info.filename in seen:
            raise InvalidDatasetError(
                f"the archive holds {info.filename!r} twice",
                field="dataset",
                remedy="pack it again",
            )
        seen.add(info.filename)
        if info.flag_bits & _ENCRYPTED:
            raise InvalidDatasetError(
                f"{info.filename!r} is encrypted",
                field="dataset",
                remedy="pack it without a password",
            )
        if info.compress_type not in _METHODS:
            raise InvalidDatasetError(
                f"{info.filename!r} uses compression method {info.compress_type}",
                field="dataset",
                remedy="use stored, deflate or LZMA",
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InvalidDatasetError(
                f"{info.filename!r} is a link", field="dataset", remedy="pack the file it points to"
            )
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise _damaged()
    packed = sum(info.compress_size for info in members)
    total = sum(info.file_size for info in members)
    if total > max_total_bytes or (
        total > _FREE_RATIO_BYTES and total > _MAX_RATIO * max(packed, 1)
    ):
        raise InvalidDatasetError(
            f"the archive expands to {total} bytes from {packed}, more than is allowed",
            field="dataset",
            remedy=f"keep arrays below {max_total_bytes} bytes in all, and do not pad them",
        )


@dataclass(frozen=True, kw_only=True)
class NpyHeader:
    """What the header of a .npy file says, and where its data begins."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    payload_start: int

    @property
    def payload_bytes(self) -> int:
        """Size of the array's data."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes], *, name: str, file_size: int) -> NpyHeader:
    """Read and check the header of a .npy file; nothing is allocated, nothing is unpickled.

    Raises:
        InvalidDatasetError: Not a .npy file, a type that is not plain numbers (named), or a size that
            is not what shape and type need.
    """
    field = f"arrays.{name}"
    try:
        version = np.lib.format.read_magic(stream)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = reader(stream, max_header_size=_MAX_NPY_HEADER_BYTES)
    except _BAD_HEADER as error:
        raise InvalidDatasetError(
            f"array {name!r} is not a .npy array", field=field, remedy="write it with numpy.save"
        ) from error
    if dtype.hasobject:
        raise InvalidDatasetError(
            f"array {name!r} holds Python objects (dtype object), which are never unpickled",
            field=field,
            remedy="save an array of numbers: numpy.stack the samples to one shape first",
        )
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise InvalidDatasetError(
            f"array {name!r} has type {dtype}, which is no plain number",
            field=field,
            remedy="use an integer type or float16, float32, float64",
        )
    if len(shape) > 8 or any(size < 0 for size in shape):
        raise InvalidDatasetError(
            f"array {name!r} has shape {shape}", field=field, remedy="use at most 8 axes"
        )
    header = NpyHeader(
        dtype=dtype, shape=shape, fortran_order=fortran_order, payload_start=stream.tell()
    )
    if header.payload_start + header.payload_bytes != file_size:
        raise InvalidDatasetError(
            f"array {name!r} of shape {shape} and type {dtype} needs {header.payload_bytes} bytes, "
            f"the file holds {file_size - header.payload_start}",
            field=field,
            remedy="the file is truncated or forged; write it again",
        )
    return header


class ArrayCache:
    """Decompressed arrays as .npy files in one folder, written whole or not at all.

    Files are named by the sha-256 of the compressed bytes, so that the folder may be shared by
    datasets, threads and processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The folder; it exists once something was put into it."""
        return self._folder

    def extract(self, section: ZipSection, info: zipfile.ZipInfo) -> Path:
        """Return the path of a member's decompressed bytes, decompressing on first use.

        Raises:
            InvalidDatasetError: The member does not hold what its directory entry says.
            ResourceExhaustedError: The disk is full.
            UnavailableError: The folder cannot be written.
        """
        start = section.data_start(info)
        digest = hashlib.sha256(f"{info.compress_type} {info.file_size} ".encode())
        with section.path.open("rb") as file:
            file.seek(start)
            left = info.compress_size
            while left and (chunk := file.read(min(left, _COPY_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
        target = self._folder / f"{digest.hexdigest()}.bin"
        if target.is_file() and target.stat().st_size == info.file_size:
            return target
        _check_lzma_dictionary(section, info, start)
        with section.opened() as archive, archive.open(info) as stream, self.writing(target) as out:
            written = 0
            while chunk := stream.read(_COPY_BYTES):
                written += len(chunk)
                out.write(chunk)
            if written != info.file_size:
                raise _damaged()
        return target

    @contextlib.contextmanager
    def writing(self, target: Path) -> Iterator[IO[bytes]]:
        """Give a file to write that becomes `target` when the block ends without an error."""
        temporary: Path | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as out:
                temporary = Path(out.name)
                yield out
            temporary.replace(target)
            temporary = None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ResourceExhaustedError(
                    "no room to unpack the dataset",
                    field="dataset",
                    remedy="free disk space on the server",
                ) from error
            raise UnavailableError(
                "the folder for unpacked datasets cannot be written",
                field="dataset",
                remedy="give the service a writable data folder",
            ) from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def _check_lzma_dictionary(section: ZipSection, info: zipfile.ZipInfo, start: int) -> None:
    if info.compress_type != zipfile.ZIP_LZMA:
        return
    with section.path.open("rb") as file:
        file.seek(start)
        head = file.read(9)
    # Version (2 bytes), length of the properties (2), lc/lp/pb (1), dictionary size (4): APPNOTE 5.8.
    if len(head) < 9 or struct.unpack_from("<I", head, 5)[0] > _MAX_LZMA_DICTIONARY_BYTES:
        raise InvalidDatasetError(
            f"{info.filename!r} needs an LZMA dictionary of more than "
            f"{_MAX_LZMA_DICTIONARY_BYTES} bytes to unpack",
            field="dataset",
            remedy="compress it with a smaller dictionary, or not at all",
        )


def header_of(section: ZipSection, info: zipfile.ZipInfo, *, name: str) -> NpyHeader:
    """Read the header of a .npy member without unpacking the rest."""
    _check_lzma_dictionary(section, info, section.data_start(info))
    with section.opened() as archive, archive.open(info) as stream:
        return read_header(stream, name=name, file_size=info.file_size)


def map_array(
    section: ZipSection, info: zipfile.ZipInfo, *, name: str, cache: ArrayCache
) -> npt.NDArray[np.generic]:
    """Return a member as a read-only memory-mapped array, unpacked into the cache if compressed."""
    header = header_of(section, info, name=name)
    if info.compress_type == zipfile.ZIP_STORED:
        path, start = section.path, section.data_start(info)
    else:
        path, start = cache.extract(section, info), 0
    if header.payload_bytes == 0:
        return np.empty(header.shape, dtype=header.dtype)
    return np.memmap(
        path,
        dtype=header.dtype,
        mode="r",
        offset=start + header.payload_start,
        shape=header.shape,
        order="F" if header.fortran_order else "C",
    )
