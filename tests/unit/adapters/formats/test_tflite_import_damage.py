"""Damaged TFLite files are imported or refused, never anything else; in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tightfit_service

CASES = 400
ROOM = """
import random, sys
from fakes.damaged_models import damaged_bytes
from fakes.tflite_operators import OPERATORS, detector, quantized_block
from tightfit_service.adapters.formats.tflite_import import TfliteImporter
from tightfit_service.domain.errors import InvalidModelError

NAMES = (
    "squeeze excite", "attention", "lstm", "dilated in blocks", "conv same", "split sizes",
    "strided slice shrunk", "bilinear", "transpose conv same", "dense on image",
    "half float weights", "pad",
)
ODD = (0, 1, 2, 3, -1, -2, 16, 64, 255, 65_536, 2**31 - 1, -(2**31))
models = [*(OPERATORS[name]() for name in NAMES), detector(), quantized_block()]


def damaged(data, rng):
    if rng.random() < 0.25:
        return damaged_bytes(data, rng)
    # Whole words, so that offsets, counts, sizes and indices are hit.
    raw = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        start = 4 * rng.randrange(len(raw) // 4)
        word = rng.choice((*ODD, rng.randrange(2**31)))
        raw[start : start + 4] = (word & 0xFFFFFFFF).to_bytes(4, "little")
    return bytes(raw)


outcomes = {"imported": 0, "refused": 0}
for seed in range(int(sys.argv[1])):
    try:
        TfliteImporter().import_model(damaged(models[seed % len(models)], random.Random(seed)))
    except InvalidModelError as error:
        assert error.field == "model" and error.remedy, (seed, error)
        outcomes["refused"] += 1
    else:
        outcomes["imported"] += 1
print(outcomes["imported"], outcomes["refused"])
"""


def test_damaged_files_are_imported_or_refused() -> None:
    service = Path(tightfit_service.__file__).parents[1]
    tests = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", ROOM, str(CASES)],
        env={"PYTHONPATH": f"{service}:{tests.parent}:{tests}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    imported, refused = map(int, done.stdout.split())
    assert imported + refused == CASES
    assert min(imported, refused) > CASES // 20
