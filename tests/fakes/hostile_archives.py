"""Seeded archives and arrays that mean harm: bombs, ways out of the folder, false sizes, overlaps."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from fakes.packed_datasets import image_arrays, manifest, npz_bytes

_SYMLINK = 0o120777 << 16
_CENTRAL = b"PK\x01\x02"
_CENTRAL_BYTES = 46
ESCAPE = "tightfit-escaped"
"""Part of every path that leads out of the folder: found anywhere, it got out."""
_WAYS_OUT = (
    f"../../../../{ESCAPE}",
    f"arrays/../../../{ESCAPE}",
    f"/tmp/{ESCAPE}",
    f"arrays\\..\\..\\{ESCAPE}",
    f"arrays/./../{ESCAPE}\x00.npy",
    f"C:\\{ESCAPE}",
)


def plain_zip(files: Mapping[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def good_dataset() -> dict[str, bytes]:
    """Return the members of a dataset that is accepted."""
    return {
        "manifest.json": json.dumps(manifest()).encode(),
        "arrays/data.npz": npz_bytes(image_arrays(), compression=zipfile.ZIP_DEFLATED),
    }


def hostile_zip(files: Mapping[str, bytes], rng: random.Random) -> bytes:
    """Return an archive of the files with one attack on whoever unpacks it."""
    return rng.choice(_ATTACKS)(dict(files), rng)


def _way_out(files: dict[str, bytes], rng: random.Random) -> bytes:
    return plain_zip({**files, rng.choice(_WAYS_OUT): b"harm"})


def _link(files: dict[str, bytes], rng: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        info = zipfile.ZipInfo(rng.choice(["arrays/link.npy", "arrays/data.npy", "data/link"]))
        info.external_attr = _SYMLINK
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


def _bomb(files: dict[str, bytes], rng: random.Random) -> bytes:
    name = rng.choice(sorted(files))
    return plain_zip({**files, name: bytes(rng.choice([8, 32]) << 20)})


def _nested(files: dict[str, bytes], rng: random.Random) -> bytes:
    content = b"harm"
    for depth in range(rng.choice([3, 60])):
        content = plain_zip({f"arrays/{depth}.npz": content})
    return plain_zip({**files, rng.choice([*sorted(files), "arrays/more.npz"]): content})


def _false_sizes(files: dict[str, bytes], rng: random.Random) -> bytes:
    """Write another size, checksum or offset into the directory than there is."""
    raw = bytearray(plain_zip(files, compression=rng.choice([0, 8])))
    places = _directory(raw)
    at = rng.choice(places) + rng.choice([8, 10, 16, 20, 24, 28, 30, 34, 42])
    value = rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, rng.randrange(2**32)])
    raw[at : at + 4] = struct.pack("<I", value)
    return bytes(raw)


def _overlap(files: dict[str, bytes], rng: random.Random) -> bytes:
    """List one member's bytes many times: a bomb without nesting (D. Fifield, WOOT 2019)."""
    name = rng.choice(sorted(files))
    raw = plain_zip({**files, name: bytes(4 << 20)})
    start = _directory(raw)[0]
    end = raw.rindex(b"PK\x05\x06")
    entry_at = next(at for at in _directory(raw) if name.encode() in raw[at : at + 200])
    length = _CENTRAL_BYTES + sum(struct.unpack("<HHH", raw[entry_at + 28 : entry_at + 34]))
    entry = raw[entry_at : entry_at + length]
    count = rng.choice([50, 2_000])
    copies = b"".join(
        _renamed(entry, f"arrays/{number:05}.npy".encode()) for number in range(count)
    )
    directory = raw[start:end] + copies
    total = len(_directory(raw)) + count
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, total, total, len(directory), start, 0)
    return raw[:start] + directory + tail


def _renamed(entry: bytes, name: bytes) -> bytes:
    return entry[:28] + struct.pack("<HHH", len(name), 0, 0) + entry[34:46] + name


def _twice(files: dict[str, bytes], rng: random.Random) -> bytes:
    import warnings

    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")
        for name, content in [*files.items(), (rng.choice(sorted(files)), b"another")]:
            archive.writestr(name, content)
    return stream.getvalue()


def _many(files: dict[str, bytes], rng: random.Random) -> bytes:
    count = rng.choice([400, 5_000])
    return plain_zip({**files, **{f"arrays/{number}.npy": b"" for number in range(count)}})


def _directory(raw: bytes | bytearray) -> list[int]:
    places, at = [], bytes(raw).find(_CENTRAL)
    while at >= 0:
        places.append(at)
        at = bytes(raw).find(_CENTRAL, at + 4)
    return places


_ATTACKS: list[Callable[[dict[str, bytes], random.Random], bytes]] = [
    _way_out,
    _link,
    _bomb,
    _nested,
    _false_sizes,
    _overlap,
    _twice,
    _many,
]


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (f"/tmp/{ESCAPE}", "w"))


def hostile_npy(rng: random.Random) -> bytes:
    """Return a .npy whose header or content means harm."""
    headers = [
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1048576), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3, 6, 5), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 3_000 + ",), }",
        f"__import__('os').system('touch /tmp/{ESCAPE}')",
        "(" * 5_000,
        "{'descr': [('a', '<f4')] * 100000, 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<M8[ns]', 'fortran_order': True, 'shape': (40, 3), }",
        "{'descr': '|V2147483647', 'fortran_order': False, 'shape': (40,), }",
        "",
    ]
    header = rng.choice(headers).encode()
    size = rng.choice([len(header), len(header), 0, 65_535])
    body = pickle.dumps(_Harm()) if rng.random() < 0.5 else rng.randbytes(rng.randrange(256))
    version, length = (1, struct.pack("<H", min(size, 65_535)))
    if rng.random() < 0.3:
        version, length = 2, struct.pack("<I", rng.choice([size, 0xFFFFFFFF]))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + body


def hostile_manifest(rng: random.Random) -> bytes:
    """Return a manifest.json that means harm."""
    whole = manifest()
    odd: list[Any] = [None, -1, 2**63, 1e308, "", "x" * 10_000, [], {}, [[]], True, "../../x", "*"]
    kind = rng.randrange(5)
    if kind == 0:
        return b"[" * rng.choice([1_000, 200_000])
    if kind == 1:
        return (
            b'{"version": 1e400, "task": ' + rng.choice([b"NaN", b"Infinity", b"1" * 5_000]) + b"}"
        )
    if kind == 2:
        whole["arrays"] = {"*": rng.choice([*_WAYS_OUT, "arrays/nothing.npz"])}
    elif kind == 3:
        whole[rng.choice(sorted(whole))] = rng.choice(odd)
    else:
        inner: dict[str, Any] = whole[rng.choice(["splits", "calibration", "preprocess"])]
        inner[rng.choice([*sorted(inner), "more"])] = rng.choice(odd)
    return json.dumps(whole).encode()


def hostile_dataset(rng: random.Random) -> bytes:
    """Return a dataset archive with one attack in its directory, its manifest or its arrays."""
    files = good_dataset()
    kind = rng.randrange(4)
    if kind == 0:
        return hostile_zip(files, rng)
    if kind == 1:
        files["manifest.json"] = hostile_manifest(rng)
    elif kind == 2:
        arrays = {f"{name}.npy": b"" for name in image_arrays()}
        for name in arrays:
            arrays[name] = hostile_npy(rng)
        files["arrays/data.npz"] = plain_zip(arrays)
    else:
        inner = {"train_x.npy": b"x", "test_x.npy": hostile_npy(rng)}
        files["arrays/data.npz"] = hostile_zip(inner, rng)
    return plain_zip(files)
