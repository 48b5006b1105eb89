"""Damaged files are imported or refused, never anything else; in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tightfit_service

CASES = 540
ROOM = """
import random, sys
from fakes.damaged_models import damaged
from fakes.exporter_habits import HABITS
from fakes.networks import NETWORKS
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.structured_pruning import StructuredPruningPass

names = ("mlp", "split_branches", "channels_last_head", "squeeze_excite")
models = [NETWORKS[name](0) for name in names] + [make(0) for make in HABITS.values()]
pruning = StructuredPruningPass()
outcomes = {"imported": 0, "refused": 0}
for seed in range(int(sys.argv[1])):
    data = damaged(models[seed % len(models)], seed)
    try:
        graph = OnnxImporter().import_model(data).graph
    except InvalidModelError as error:
        assert error.field == "model" and error.remedy, (seed, error)
        outcomes["refused"] += 1
        continue
    outcomes["imported"] += 1
    if seed % 3:
        continue
    groups = pruning.space(graph).groups
    OnnxGraphInspector().profile(pruning.apply(graph, {g.group_id: [0] for g in groups}))
print(outcomes["imported"], outcomes["refused"])
"""


def test_damaged_models_are_imported_or_refused() -> None:
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
