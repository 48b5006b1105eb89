"""The page of targets is that of the catalogue, and its example can be used."""

from __future__ import annotations

import yaml
from benchmarks.targets_page import PAGE, page

from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run python benchmarks/targets_page.py"
    for spec in YamlTargetCatalogue().list():
        assert f"`{spec.name}`" in text


def test_the_example_of_the_page_is_a_target_with_little_assumed() -> None:
    example = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    spec = YamlTargetCatalogue().complete(yaml.safe_load(example))
    assert spec.accelerator is not None
    assert not {"clock_mhz", "runtime", "accelerator.macs_per_cycle"} & set(spec.assumed_fields)
