"""Look up every locked distribution in the database of known vulnerabilities.

    python supply_chain/audit.py

Exit codes: 0 nothing is known, 1 something is. Where no source of advisories can be reached, or a mirror
of the index has none, pip-audit finds nothing in nothing: this says then, in so many words, that nothing
was audited, and does not fail, because a build without network must pass. With AUDIT_REQUIRED=1 it fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pypi", "osv")
"""Of advisories, in the order in which they are tried."""
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Audit:
    """What one source knows: how many were looked up, which were not, and what is known of which."""

    source: str
    audited: int
    skipped: Sequence[str]
    findings: Sequence[str]


def read_report(source: str, text: str) -> Audit | None:
    """Return what pip-audit's JSON says, None where it is none: the source could not be reached."""
    try:
        dependencies: Sequence[Mapping[str, Any]] = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    findings = [
        f"{item['name']} {item['version']}: {known['id']}, fixed in "
        f"{', '.join(known['fix_versions']) or 'no version yet'}"
        for item in dependencies
        for known in item.get("vulns", ())
    ]
    return Audit(
        source=source,
        audited=sum("vulns" in item for item in dependencies),
        skipped=[item["name"] for item in dependencies if "vulns" not in item],
        findings=findings,
    )


def conclude(audits: Sequence[Audit], *, is_required: bool) -> tuple[int, str]:
    """Return the exit code and the words for it."""
    best = max(audits, key=lambda audit: audit.audited, default=None)
    if best is None or not best.audited:
        code = 1 if is_required else 0
        return code, (
            "NOT AUDITED: no source of advisories could be reached "
            f"(tried {', '.join(SOURCES)}); run `make audit` where there is network"
        )
    lines = [f"{best.audited} distributions looked up at {best.source}"]
    if best.skipped:
        lines.append(f"NOT AUDITED: {', '.join(best.skipped)}")
    lines += [f"VULNERABLE: {finding}" for finding in best.findings] or ["nothing is known of them"]
    return (1 if best.findings else 0), "\n".join(lines)


def ask(source: str, requirements: Path) -> Audit | None:
    """Run pip-audit against one source."""
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip_audit", "--requirement", str(requirements)),
                *("--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"),
                *("--vulnerability-service", source),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None
    return read_report(source, done.stdout)


def locked() -> list[str]:
    """Return what the lock files name: those of the image, and of extras that it may have besides."""
    lines = [
        line
        for path in sorted(ROOT.glob("requirements*.lock"))
        for line in path.read_text().splitlines()
    ]
    return sorted({line.split(" ")[0] for line in lines if "==" in line})


def main() -> int:
    """Audit the lock files and PyTorch, which is pinned beside them."""
    pinned = [
        line.split("+")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    ]
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        # without hashes: PyTorch has none here, and pip-audit wants all or none
        requirements.write_text("\n".join([*locked(), *pinned]))
        audits = []
        for source in SOURCES:
            audit = ask(source, requirements)
            if audit is not None:
                audits.append(audit)
                if audit.audited:
                    break
    code, words = conclude(audits, is_required=os.environ.get("AUDIT_REQUIRED") == "1")
    sys.stdout.write(words + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
