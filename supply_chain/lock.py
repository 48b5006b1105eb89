"""Write requirements.lock: every distribution that the image installs, by version and by hash.

    python supply_chain/lock.py

Versions come from constraints.txt. PyTorch is resolved but left out: its build without CUDA comes from
PyTorch's own index, whose files have other hashes than those of PyPI; see SECURITY.md. Where that index
is not the place to look, UV_INDEX or UV_FIND_LINKS name another.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
IMAGE_EXTRAS = ("postgres",)
"""Extras of the service that the image has."""
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_BUILD = "+cpu"
HEADER = """\
# Written by `make lock`; do not edit. Versions are those of constraints.txt.
# pip install --no-deps --require-hashes -r requirements.lock
# PyTorch is not in it: SECURITY.md says why, and how the image pins it.
"""


def direct_requirements() -> list[str]:
    """Return what service and client ask for, the client itself aside."""
    service = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]
    extras = service["optional-dependencies"]
    lines = [*service["dependencies"], *client["dependencies"]]
    for extra in IMAGE_EXTRAS:
        lines += extras[extra]
    return sorted({line for line in lines if not line.startswith("tightfit==")})


def constraints() -> list[str]:
    """Return the constraints, with PyTorch's build without CUDA: the other brings gigabytes of it."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line + CPU_BUILD if line.startswith("torch==") else line for line in lines]


def main() -> None:
    """Resolve and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, limits, out = (Path(folder) / name for name in ("in.txt", "limits.txt", "out.txt"))
        wanted.write_text("\n".join(direct_requirements()))
        limits.write_text("\n".join(constraints()))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"),
                *("--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"),
                *("--no-emit-package", "torch", "--index-strategy", "first-index"),
                *(["--index", f"pytorch={PYTORCH_INDEX}"] if not _is_elsewhere() else []),
                *("--constraint", str(limits), "--output-file", str(out), str(wanted)),
            ],
            check=False,
        )
        if done.returncode:
            sys.exit(done.returncode)
        LOCK.write_text(HEADER + out.read_text())
    sys.stdout.write(f"{LOCK.name}: {LOCK.read_text().count('==')} distributions\n")


def _is_elsewhere() -> bool:
    import os

    return bool(os.environ.get("UV_INDEX") or os.environ.get("UV_FIND_LINKS"))


if __name__ == "__main__":
    main()
