"""Write the software bill of materials of an environment, in CycloneDX 1.6 JSON.

    python supply_chain/sbom.py [--python /opt/tightfit/bin/python] [-o sbom.cdx.json]

Of the environment only what the image has is listed: the locked distributions, PyTorch, and tightfit
itself, so that a developer's environment gives the same bill as the image. Equal environments give equal
files.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
OWN = ("tightfit", "tightfit-service", "torch")


def normalized(name: str) -> str:
    """Return a distribution's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted_names(lock: str) -> set[str]:
    """Return the names in a lock file, and what is installed beside it."""
    return {normalized(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)} | {*OWN}


def only_wanted(bill: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    """Return the bill without components, and dependencies on them, that are not wanted."""
    kept = [item for item in bill.get("components", ()) if normalized(item["name"]) in wanted]
    for item in kept:
        # where it was built is nobody's business
        item["externalReferences"] = [
            link
            for link in item.get("externalReferences", ())
            if not link["url"].startswith("file:")
        ]
    references = {item["bom-ref"] for item in kept}
    dependencies = [
        {**item, "dependsOn": [name for name in item.get("dependsOn", ()) if name in references]}
        for item in bill.get("dependencies", ())
        if item["ref"] in references
    ]
    return {**bill, "components": kept, "dependencies": dependencies}


def main() -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description="Write a software bill of materials.")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "sbom.cdx.json")
    arguments = parser.parse_args()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cyclonedx_py", "environment", arguments.python),
            *("--spec-version", "1.6", "--output-format", "JSON", "--output-reproducible"),
            "--validate",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        return done.returncode
    wanted = wanted_names(LOCK.read_text())
    bill = only_wanted(json.loads(done.stdout), wanted)
    arguments.output.write_text(json.dumps(bill, indent=2, sort_keys=True) + "\n")
    sys.stdout.write(f"{arguments.output}: {len(bill['components'])} components\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
