"""The house: imports point one way, and every room says what it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_module_opens_with_one_sentence_on_what_it_holds() -> None:
    firsts = {_named(path): path.read_text().split("\n", 1)[0] for path in MODULES}
    assert len(firsts) > 500
    silent = [
        name for name, first in firsts.items() if not first.startswith('"""') or len(first) <= 20
    ]
    assert silent == []


def test_no_module_is_named_after_nothing() -> None:
    empty = {"utils", "helpers", "common", "misc", "base"}
    assert [_named(path) for path in MODULES if path.stem in empty] == []


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


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
