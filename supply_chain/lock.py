"""Write requirements.lock: every distribution that the image installs, by version and by hash.

    python supply_chain/lock.py            # requirements.lock, then requirements-EXTRA.lock of each extra
    python supply_chain/lock.py --extras   # only these

The image has what its default needs. What an extra needs besides is in a file of its own, which the build
installs where the extra is asked for: Ray, for one, is large, and widens what can be attacked.

Versions come from constraints.txt. PyTorch is resolved but left out: its build without CUDA comes from
PyTorch's own index, whose files have other hashes than those of PyPI; see SECURITY.md. Where that index
is not the place to look, UV_INDEX or UV_FIND_LINKS name another.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
IMAGE_EXTRAS = ("postgres",)
"""Extras of the service that the image has."""
LOCKED_EXTRAS = ("otel", "ray")
"""Those that the chart has values for, and that the image has where it is built so."""
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_BUILD = "+cpu"
HEADER = """\
# Written by `make lock`; do not edit. Versions are those of constraints.txt.
# pip install --no-deps --require-hashes -r requirements.lock
# PyTorch is not in it: SECURITY.md says why, and how the image pins it.
"""


EXTRA_HEADER = """\
# Written by `make lock`; do not edit. What the extra {extra} needs besides requirements.lock.
# pip install --no-deps --require-hashes -r requirements-{extra}.lock
"""


def direct_requirements() -> list[str]:
    """Return what service and client ask for, the client itself aside."""
    service = _project("pyproject.toml")
    client = _project("clients/python/pyproject.toml")
    lines = [*service["dependencies"], *client["dependencies"]]
    for extra in IMAGE_EXTRAS:
        lines += extra_requirements(extra)
    return sorted({line for line in lines if not line.startswith("tightfit==")})


def extra_requirements(extra: str) -> list[str]:
    """Return what the service asks for with an extra."""
    found: list[str] = _project("pyproject.toml")["optional-dependencies"][extra]
    return found


def lock_of(extra: str) -> Path:
    """Return the file of an extra."""
    return ROOT / f"requirements-{extra}.lock"


def without(text: str, known: str) -> str:
    """Return the blocks of a lock file whose distributions another one has not."""
    pinned = set(re.findall(r"^([\w.-]+)==", known, re.MULTILINE))
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)
    return "".join(block for block in blocks if block and block.split("==")[0] not in pinned)


def _project(path: str) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / path).read_text())["project"]
    return project


def constraints() -> list[str]:
    """Return the constraints, with PyTorch's build without CUDA: the other brings gigabytes of it."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line + CPU_BUILD if line.startswith("torch==") else line for line in lines]


def main() -> None:
    """Resolve and write the files."""
    if "--extras" not in sys.argv[1:]:
        index = [] if _is_elsewhere() else ["--index", f"pytorch={PYTORCH_INDEX}"]
        options = ["--no-emit-package", "torch", "--index-strategy", "first-index", *index]
        LOCK.write_text(HEADER + resolved(direct_requirements(), constraints(), options))
        _tell(LOCK)
    base = LOCK.read_text()
    # the versions of the image, so that nothing is wanted twice
    pins = re.findall(r"^[\w.-]+==[^ \\;]+", base, re.MULTILINE)
    limits = [line for line in constraints() if not line.startswith("torch==")]
    for extra in LOCKED_EXTRAS:
        found = resolved(extra_requirements(extra), [*limits, *pins], [])
        lock_of(extra).write_text(EXTRA_HEADER.format(extra=extra) + without(found, base))
        _tell(lock_of(extra))


def resolved(wanted: Sequence[str], limits: Sequence[str], options: Sequence[str]) -> str:
    """Return the lines of a lock file for requirements.

    Raises:
        SystemExit: They cannot be had together, or no index answers.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, bounds, out = (Path(folder) / name for name in ("in.txt", "limits.txt", "out.txt"))
        asked.write_text("\n".join(wanted))
        bounds.write_text("\n".join(limits))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"),
                *("--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"),
                *options,
                *("--constraint", str(bounds), "--output-file", str(out), str(asked)),
            ],
            check=False,
        )
        if done.returncode:
            sys.exit(done.returncode)
        return out.read_text()


def _tell(lock: Path) -> None:
    sys.stdout.write(f"{lock.name}: {lock.read_text().count('==')} distributions\n")


def _is_elsewhere() -> bool:
    import os

    return bool(os.environ.get("UV_INDEX") or os.environ.get("UV_FIND_LINKS"))


if __name__ == "__main__":
    main()
