"""The house: imports point one way, and every room says what it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "service" / "tightfit_service"
MODULES = sorted(
    path
    for folder in (
        SERVICE,
        ROOT / "clients" / "python" / "tightfit",
        ROOT / "clients" / "runner" / "tightfit_runner",
    )
    for path in folder.rglob("*.py")
    if "v1" not in path.parts
)


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_one_sentence_on_what_it_holds(path: Path) -> None:
    first = path.read_text().split("\n", 1)[0]
    assert first.startswith('"""'), path
    assert len(first) > 20, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_named_after_nothing(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "common", "misc", "base"}


def test_the_server_loads_no_heavy_library() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "litert_torch", "ai_edge_litert", "jax")
    script = (
        "import sys, tightfit_service.bootstrap\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "sys.exit(', '.join(loaded) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
