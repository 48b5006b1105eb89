"""Archives of torch.export (`.pt2`) as plain data: bounded, and without unpickling anything.

`torch.export.load` unpickles sample inputs, custom objects and tensor subclasses, and loads shared
libraries that an archive brings along. Here only JSON and raw bytes are read; the rest is refused,
or left out where the program does not need it. The layout is that of torch 2.8 and newer
(`torch/export/pt2_archive/constants.py`).
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tightfit_service.graph.model_file import ModelLimits, invalid, shown

_SAVE_AGAIN = "save it again: torch.export.save(torch.export.export(model.eval(), inputs), path)"
_LARGEST_JSON = 1 << 26
_MODEL = "models/model.json"
_FOLDERS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
_COMPILED = "data/aotinductor/"
_LEGACY = re.compile(r"serialized_exported_program\.json|data/(weights|constants)/model\.pt")
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    ValueError,
    OSError,
    NotImplementedError,
    EOFError,
    KeyError,
    RuntimeError,
    OverflowError,
)
_PATH = re.compile(r"[\w./-]{1,512}", re.ASCII)
NAME = re.compile(r"\w{1,200}(\.\w{1,200}){0,40}", re.ASCII)
"""Of parameters, buffers and constants: torch writes them into Python code."""
DTYPES = {
    1: ("uint8", 1),
    2: ("int8", 1),
    3: ("int16", 2),
    4: ("int32", 4),
    5: ("int64", 8),
    6: ("float16", 2),
    7: ("float32", 4),
    8: ("float64", 8),
    12: ("bool", 1),
    13: ("bfloat16", 2),
}
"""Element types by torch's number for them (`torch._export.serde.schema.ScalarType`), with bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """A tensor as it lies in the archive; sizes and strides count elements.

    Attributes:
        data: From its first element to its last; empty where there are none.
        dtype: Name of the element type in torch.
        device: Kind of device that it was saved from.
    """

    data: memoryview
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    is_parameter: bool
    device: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Pt2Archive:
    """What an archive holds: the program as parsed JSON, not yet checked, and its tensors by name."""

    program: dict[str, Any]
    weights: Mapping[str, StoredTensor]
    constants: Mapping[str, StoredTensor]


def read_archive(data: bytes, *, limits: ModelLimits) -> Pt2Archive:
    """Read an archive that `torch.export.save` wrote.

    Raises:
        InvalidModelError: Damaged, larger than a limit, of another kind or version, or with parts
            that would have to be unpickled or executed.
    """
    if len(data) > limits.file_bytes:
        raise invalid(
            f"the model file has {len(data)} bytes, more than the {limits.file_bytes} allowed",
            remedy="send a smaller model",
        )
    try:
        with open_archive(data) as archive:
            files = _checked_members(archive, limits)
            return _contents(_Members(archive, files), limits)
    except _ZIP_ERRORS as error:
        raise invalid(
            "the .pt2 archive is damaged or truncated", remedy=f"upload all of it, or {_SAVE_AGAIN}"
        ) from error


def open_archive(data: bytes) -> zipfile.ZipFile:
    """Open a zip archive that starts where the file does.

    Archives of torch.export hold others (of sample inputs); of a truncated one, zipfile would open
    the last that is whole.

    Raises:
        zipfile.BadZipFile: It is none, or truncated.
        Exception: One of what zipfile raises on damaged files: `ValueError`, `OSError`,
            `NotImplementedError`, `EOFError`.
    """
    archive = zipfile.ZipFile(io.BytesIO(data))
    if min((item.header_offset for item in archive.infolist()), default=0):
        raise zipfile.BadZipFile
    return archive


class _Members:
    """Members of an open archive by their paths without its root folder."""

    def __init__(self, archive: zipfile.ZipFile, files: Mapping[str, zipfile.ZipInfo]) -> None:
        self._archive = archive
        self.files = files

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise invalid(f"the .pt2 archive has no {shown(path)}", remedy=_SAVE_AGAIN)
        # zipfile gives no more than the declared size, which has been checked, and checks the CRC.
        return self._archive.read(self.files[path])

    def read_json(self, path: str) -> dict[str, Any]:
        if path in self.files and self.files[path].file_size > _LARGEST_JSON:
            raise invalid(
                f"{shown(path)} in the .pt2 archive is larger than {_LARGEST_JSON} bytes",
                remedy="send a smaller model",
            )
        try:
            found = json.loads(self.read(path))
        except (ValueError, RecursionError) as error:
            raise invalid(
                f"{shown(path)} in the .pt2 archive is no JSON", remedy=_SAVE_AGAIN
            ) from error
        if not isinstance(found, dict):
            raise malformed(path)
        return found


def malformed(what: str) -> Exception:
    """Return the error for a part of the archive that is not what torch writes."""
    return invalid(
        f"{shown(what)} in the .pt2 archive is not what torch.export.save writes",
        remedy=_SAVE_AGAIN,
    )


def _checked_members(archive: zipfile.ZipFile, limits: ModelLimits) -> dict[str, zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > limits.tensor_count:
        raise invalid(
            f"the .pt2 archive has more than {limits.tensor_count} members",
            remedy="send a smaller model",
        )
    total = sum(item.file_size for item in members)
    if total > limits.file_bytes:
        raise invalid(
            f"the .pt2 archive unpacks to {total} bytes, more than the {limits.file_bytes} allowed",
            remedy="send a smaller model",
        )
    files: dict[str, zipfile.ZipInfo] = {}
    for item in members:
        path = item.filename.partition("/")[2]
        if item.filename in _FOREIGN_MEMBERS or item.filename.endswith(".npy"):
            what, remedy = _FOREIGN_MEMBERS.get(item.filename, _ARRAYS)
            raise invalid(f"the file is {what}, which is not taken in", remedy=remedy)
        if item.flag_bits & 1:
            raise invalid("the .pt2 archive is encrypted", remedy=_SAVE_AGAIN)
        if path in files:
            raise invalid(
                f"the .pt2 archive holds {shown(item.filename)} twice", remedy=_SAVE_AGAIN
            )
        files[path] = item
        if _LEGACY.fullmatch(path) or _LEGACY.fullmatch(item.filename):
            raise invalid(
                "the .pt2 file was written by torch 2.7 or older, which stores pickles",
                remedy=f"with torch 2.8 or newer, load it and {_SAVE_AGAIN}",
            )
    return files


_AS_PT2 = "export the network: torch.export.save(torch.export.export(model.eval(), inputs), path)"
_ARRAYS = ("a NumPy archive (.npz), which holds arrays without a network", _AS_PT2)
_FOREIGN_MEMBERS = {
    "[Content_Types].xml": ("an office document", "send the network as ONNX, TFLite or .pt2"),
    "META-INF/MANIFEST.MF": ("a Java archive", "send the network as ONNX, TFLite or .pt2"),
    "AndroidManifest.xml": ("an Android package", "send the model file inside it"),
    "manifest.json": (
        "a model archive (such as of Core ML or of a web application)",
        "send the ONNX, TFLite or .pt2 file it was made from",
    ),
}


def _contents(members: _Members, limits: ModelLimits) -> Pt2Archive:
    files = members.files
    if any(path.startswith(_COMPILED) for path in files):
        raise invalid(
            "the .pt2 archive holds a compiled program (AOTInductor), which is machine code",
            remedy=f"send the exported program: {_SAVE_AGAIN}",
        )
    if "archive_format" not in files or members.read("archive_format") != b"pt2":
        inside = [
            item.filename
            for item in files.values()
            if item.filename.endswith((".onnx", ".tflite", ".pt2"))
        ]
        raise invalid(
            "the file is a zip archive that torch.export.save did not write",
            remedy=f"send {shown(inside[0])} inside it" if inside else _AS_PT2,
        )
    models = [path for path in files if path.startswith("models/")]
    if models != [_MODEL]:
        raise invalid(
            f"the .pt2 archive holds {len(models)} programs; one named 'model' is needed",
            remedy=f"save each network to a file of its own: {_SAVE_AGAIN}",
        )
    if "byteorder" in files and members.read("byteorder") != b"little":
        raise invalid(
            "the .pt2 archive was written on a big-endian machine", remedy="save it on another"
        )
    weights, constants = (
        _tensors(members, folder, config, limits) for folder, config in _FOLDERS.items()
    )
    _check_total((*weights.values(), *constants.values()), limits)
    return Pt2Archive(program=members.read_json(_MODEL), weights=weights, constants=constants)


def _check_total(tensors: Sequence[StoredTensor], limits: ModelLimits) -> None:
    """Refuse tensors that overlap in the file and would not fit when each stands for itself."""
    widths = dict(DTYPES.values())
    total = sum(max(len(t.data), widths[t.dtype] * math.prod(t.sizes)) for t in tensors)
    if total > limits.file_bytes:
        raise invalid(
            f"the tensors of the .pt2 archive take {total} bytes, more than the "
            f"{limits.file_bytes} allowed",
            remedy="send a smaller model",
        )


def _tensors(
    members: _Members, folder: str, config: str, limits: ModelLimits
) -> dict[str, StoredTensor]:
    entries = members.read_json(config).get("config")
    if not isinstance(entries, dict):
        raise malformed(config)
    if len(entries) > limits.tensor_count:
        raise invalid(
            f"the model has more than {limits.tensor_count} stored tensors",
            remedy="send a smaller model",
        )
    records: dict[str, bytes] = {}
    found = {}
    for name, entry in entries.items():
        if not NAME.fullmatch(name):
            raise invalid(
                f"a tensor is named {shown(name)}; names are words joined by dots",
                remedy=f"rename the module, and {_SAVE_AGAIN}",
            )
        try:
            found[name] = _tensor(members, folder, name, entry, records, limits)
        except (KeyError, TypeError, AttributeError) as error:
            raise malformed(f"{config}: {name}") from error
    return found


def _tensor(
    members: _Members,
    folder: str,
    name: str,
    entry: Mapping[str, Any],
    records: dict[str, bytes],
    limits: ModelLimits,
) -> StoredTensor:
    path, meta = entry["path_name"], entry["tensor_meta"]
    if entry["use_pickle"] is not False or meta is None:
        raise invalid(
            f"{shown(name)} is stored as a pickle, which could run code",
            remedy="export a network whose parameters, buffers and constants are plain tensors",
        )
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise malformed(f"path of {name}")
    if meta["dtype"] not in DTYPES:
        raise invalid(
            f"tensor {shown(name)} has the element type {meta['dtype']!r:.20} of torch, which is not read",
            remedy="export the network in float32",
        )
    dtype, width = DTYPES[meta["dtype"]]
    device = str(meta["device"]["type"])[:20]
    if device == "meta":
        raise invalid(
            f"tensor {shown(name)} was on the meta device when it was saved, and has no values",
            remedy="load the weights before torch.export.export",
        )
    sizes, strides = (
        tuple(_whole(item["as_int"]) for item in meta[key]) for key in ("sizes", "strides")
    )
    offset = _whole(meta["storage_offset"]["as_int"])
    if path not in records:
        records[path] = members.read(folder + path)
    data = records[path]
    elements = math.prod(sizes)
    if len(sizes) != len(strides) or len(sizes) > limits.rank:
        raise malformed(f"shape of {name}")
    if elements > limits.tensor_elements:
        raise invalid(
            f"tensor {shown(name)} has {elements} elements, more than {limits.tensor_elements}",
            remedy="send a smaller model",
        )
    last = offset + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
    if elements and (last + 1) * width > len(data):
        raise invalid(
            f"tensor {shown(name)} announces more elements than the {len(data)} bytes it stores",
            remedy="the file is damaged: export or upload it again",
        )
    return StoredTensor(
        data=memoryview(data)[offset * width : (last + 1) * width if elements else 0],
        dtype=dtype,
        sizes=sizes,
        strides=strides,
        is_parameter=entry["is_param"] is True,
        device=device,
    )


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise TypeError(value)
    return value
