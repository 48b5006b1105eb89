"""What counts as installed."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from benchmarks.install_size import needed_by, size_of
from benchmarks.publish import ROOT, between, pages


def test_what_the_service_needs_counts_and_what_only_tests_need_does_not() -> None:
    needed = needed_by("tightfit-service")
    assert {"tightfit-service", "tightfit", "torch", "onnxruntime", "numpy", "typer"} <= set(needed)
    assert not {"pytest", "mypy", "ray", "openvino", "tightfit-runner"} & set(needed)


def test_the_files_of_a_distribution_are_summed_up() -> None:
    found = distribution("PyYAML")
    folder = Path(str(found.locate_file("yaml")))
    least = sum(path.stat().st_size for path in folder.glob("*.py"))
    assert least < size_of(found) < 100 * least


def test_the_size_stands_within_a_sentence() -> None:
    text = "takes <!-- size:begin -->x<!-- size:end --> in all"
    shown = between(text, "size", "2.1 GB", inline=True)
    assert shown == "takes <!-- size:begin -->2.1 GB<!-- size:end --> in all"
    readme = pages()[ROOT / "README.md"]
    assert "<!-- install-size:begin -->" in readme
