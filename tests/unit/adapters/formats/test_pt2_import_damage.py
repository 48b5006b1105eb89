"""Damaged .pt2 files are imported or refused, never anything else; in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tightfit_service

CASES = 100
ROOM = """
import json, pickle, random, sys
import torch
from fakes.damaged_models import damaged_bytes
from fakes.exported_programs import exported, members, packed
from tightfit_service.adapters.formats.any_import import AnyImporter
from tightfit_service.adapters.formats.pt2_import import Pt2Importer
from tightfit_service.domain.errors import InvalidModelError, UnsupportedError
from tightfit_service.domain.hardware import ModelFormat

assert "onnxscript" not in sys.modules, "torch's exporters are loaded for other formats too"
ODD = (None, True, -1, 0, 1, 2, 3, 65_536, 2**40, 2**63, 1e300, "", "x", "s0", "__class__",
       "Symbol('s0')", [], {}, [[]], {"as_int": -1}, {"as_none": True}, {"as_tensor": {"name": "x"}})
models = [exported("dense"), exported("dense", is_free=False), exported("two inputs")]


class Unpickled(BaseException):
    pass


def refuse(*_, **__):
    raise Unpickled


pickle.load = pickle.loads = torch.load = pickle.Unpickler = pickle._Unpickler = refuse


def places(value):
    if isinstance(value, dict | list):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from places(item)


def damaged(data, rng):
    kind = rng.random()
    if kind < 0.15:
        return damaged_bytes(data, rng)
    files = members(data)
    name = rng.choice(sorted(files))
    if kind < 0.2:
        files.pop(name)
    elif kind < 0.25:
        files[rng.choice(sorted(files))] = files[name]
    elif kind < 0.3:
        files[name] = damaged_bytes(files[name], rng)
    else:
        name = rng.choice(("models/model.json", "data/weights/model_weights_config.json"))
        document = json.loads(files[name])
        for _ in range(rng.randrange(1, 6)):
            holder, key = rng.choice(list(places(document)) or [([0], 0)])
            if rng.random() < 0.2 and len(holder) > 1:
                del holder[key]
            elif rng.random() < 0.3:
                other, place = rng.choice(list(places(document)) or [([0], 0)])
                holder[key] = json.loads(json.dumps(other[place]))
            else:
                holder[key] = rng.choice(ODD)
        files[name] = json.dumps(document).encode()
    return packed(files)


importer = AnyImporter({ModelFormat.PT2: Pt2Importer()})
outcomes = {"imported": 0, "refused": 0}
for seed in range(int(sys.argv[1])):
    try:
        importer.import_model(damaged(models[seed % len(models)], random.Random(seed)))
    except (InvalidModelError, UnsupportedError) as error:
        assert error.field == "model" and error.remedy, (seed, error)
        outcomes["refused"] += 1
    else:
        outcomes["imported"] += 1
print(outcomes["imported"], outcomes["refused"])
"""


@pytest.mark.long
def test_damaged_files_are_imported_or_refused_and_never_unpickled() -> None:
    service = Path(tightfit_service.__file__).parents[1]
    tests = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", ROOM, str(CASES)],
        env={"PYTHONPATH": f"{service}:{tests.parent}:{tests}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    imported, refused = map(int, done.stdout.split())
    assert imported + refused == CASES
    assert min(imported, refused) >= CASES // 20
