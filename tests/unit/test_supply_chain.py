"""What the image installs is pinned by hash, and an audit that looked nowhere does not pass for one."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"supply_chain_{name}", ROOT / f"supply_chain/{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


audit, lock, sbom = load("audit"), load("lock"), load("sbom")
LOCKED = (ROOT / "requirements.lock").read_text()
EXTRAS = {extra: lock.lock_of(extra).read_text() for extra in lock.LOCKED_EXTRAS}


def pins_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^ \\;]+)", text, re.MULTILINE))


PINS = pins_of(LOCKED)


def report(**vulns: list[dict[str, Any]] | None) -> str:
    return json.dumps(
        {
            "dependencies": [
                {"name": name, "skip_reason": "not found"}
                if found is None
                else {"name": name, "version": "1", "vulns": found}
                for name, found in vulns.items()
            ]
        }
    )


def test_every_locked_distribution_has_hashes_and_comes_from_an_index() -> None:
    blocks = re.split(r"\n(?=[\w.-]+==)", LOCKED)[1:]
    assert len(blocks) == len(PINS) > 50
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in LOCKED


@pytest.mark.parametrize("extra", EXTRAS)
def test_locks_of_extras_have_what_the_extra_needs_besides(extra: str) -> None:
    pins = pins_of(EXTRAS[extra])
    blocks = re.split(r"\n(?=[\w.-]+==)", EXTRAS[extra])[1:]
    assert len(blocks) == len(pins) > 0
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert not pins.keys() & PINS.keys()
    for line in lock.extra_requirements(extra):
        assert sbom.normalized(re.split(r"[\[<>=~! ]", line)[0]) in pins
    assert {f"{name}=={version}" for name, version in pins.items()} <= set(audit.locked())


def test_only_what_another_lock_has_not_is_kept() -> None:
    text = "a==1 \\\n    --hash=sha256:x\nb==2 ; sys_platform == 'win32' \\\n    --hash=sha256:y\n"
    assert lock.without(text, "a==1 \\\n") == text[text.index("b==2") :]
    assert lock.without(text, "ab==1\n") == text


@pytest.mark.parametrize("text", [LOCKED, *EXTRAS.values()])
def test_the_lock_has_the_versions_that_are_tested(text: str) -> None:
    tested = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    tested = {sbom.normalized(name): version for name, version in tested.items()}
    assert {
        name: (version, tested[name])
        for name, version in pins_of(text).items()
        if name in tested and tested[name] != version
    } == {}


def test_the_lock_has_all_that_is_asked_for_but_pytorch() -> None:
    asked = {
        sbom.normalized(re.split(r"[\[<>=~! ]", line)[0]) for line in lock.direct_requirements()
    }
    assert asked - PINS.keys() == {"torch"}
    assert not [name for name in PINS if name.startswith(("nvidia", "triton", "torch-"))]


def test_what_is_known_fails_the_audit() -> None:
    known = [{"id": "CVE-1", "fix_versions": ["2"]}]
    found = audit.read_report("pypi", report(a=known, b=[], c=None))
    code, words = audit.conclude([found], is_required=False)
    assert code == 1
    assert "VULNERABLE: a 1: CVE-1, fixed in 2" in words
    assert "NOT AUDITED: c" in words


def test_nothing_known_passes() -> None:
    code, words = audit.conclude([audit.read_report("pypi", report(a=[]))], is_required=True)
    assert (code, words) == (0, "1 distributions looked up at pypi\nnothing is known of them")


@pytest.mark.parametrize("answer", ["", "no JSON", report(a=None, b=None)])
def test_an_audit_that_looked_nowhere_says_so(answer: str) -> None:
    audits = [found for found in [audit.read_report("pypi", answer)] if found is not None]
    code, words = audit.conclude(audits, is_required=False)
    assert code == 0
    assert words.startswith("NOT AUDITED")
    assert audit.conclude(audits, is_required=True)[0] == 1


def test_the_bill_lists_what_the_image_has_and_nothing_of_the_workbench() -> None:
    bill = {
        "components": [
            {"name": "NumPy", "bom-ref": "numpy", "externalReferences": [{"url": "file:///x"}]},
            {"name": "pytest", "bom-ref": "pytest"},
        ],
        "dependencies": [{"ref": "numpy", "dependsOn": ["pytest"]}, {"ref": "pytest"}],
    }
    cut = sbom.only_wanted(bill, sbom.wanted_names(LOCKED))
    assert [item["name"] for item in cut["components"]] == ["NumPy"]
    assert cut["components"][0]["externalReferences"] == []
    assert cut["dependencies"] == [{"ref": "numpy", "dependsOn": []}]
