"""The committed stubs are what the protos give, and every element of the contract is documented."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "protos" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stubs_are_up_to_date(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])

    assert generate.main() == 0
    assert capsys.readouterr().out == ""


def test_drift_names_what_differs_is_missing_or_is_left_over(
    generate: ModuleType, tmp_path: Path
) -> None:
    fresh, committed = tmp_path / "fresh", tmp_path / "committed"
    for folder in (fresh, committed):
        folder.mkdir()
        (folder / "same_pb2.py").write_text("1")
        (folder / "differs_pb2.pyi").write_text(folder.name)
    (fresh / "new_pb2.py").write_text("1")
    (committed / "old_pb2_grpc.py").write_text("1")
    (committed / "__init__.py").write_text("ours")

    assert generate.drift(fresh, committed) == ["differs_pb2.pyi", "new_pb2.py", "old_pb2_grpc.py"]


def test_every_method_lists_its_codes() -> None:
    for path in sorted((ROOT / "protos" / "tightfit" / "v1").glob("*.proto")):
        comment: list[str] = []
        for line in path.read_text("utf-8").splitlines():
            text = line.strip()
            if text.startswith("//"):
                comment.append(text)
            elif text.startswith("rpc "):
                assert any(words.startswith("// Codes: ") for words in comment), text
                comment = []
            else:
                comment = []


def test_the_readme_lists_every_file_and_every_method_that_is_not_there_yet() -> None:
    readme = (ROOT / "protos" / "README.md").read_text("utf-8")
    for path in sorted((ROOT / "protos" / "tightfit" / "v1").glob("*.proto")):
        assert f"`{path.name}`" in readme
        service = ""
        codes = ""
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("service "):
                service = line.split()[1]
            elif "Codes: " in line:
                codes = line
            elif line.strip().startswith("rpc ") and "NOT_IMPLEMENTED_YET" in codes:
                method = line.split()[1].partition("(")[0]
                assert f"`{service}.{method}`" in readme
                codes = ""
