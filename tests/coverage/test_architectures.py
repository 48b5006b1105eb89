"""Every architecture goes through import, pruning, training and export; gaps are named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from architectures import ARCHITECTURES, FAST
from architectures.checks import STEPS, check
from architectures.gaps import KNOWN_GAPS

_TFLITE = {"tflite", "back"}
"""Steps that convert to TFLite, which takes most of the time of all."""
_CONVERTED = (
    "detector_decoded",
    "spatial_transformer",
    "keras_mobilenet",
    "caffe_alexnet",
    "mobilevit",
    "convnext",
    "crnn",
    "raw_audio",
    "resnet_group_norm",
    "two_inputs",
    "gru_streaming",
    "pixel_shuffle",
    "round_trips",
)
"""Networks whose files show what those of the others do not; benchmarks/coverage.py converts all."""


def _assert_as_known(name: str, steps: Sequence[str]) -> None:
    report = check(ARCHITECTURES[name], steps)
    failed = {
        step: report.outcomes[step].reason for step in steps if not report.outcomes[step].works
    }
    known = {step for architecture, step in KNOWN_GAPS if architecture == name} & set(steps)
    unknown = {step: reason for step, reason in failed.items() if step not in known}
    assert not unknown
    assert known <= failed.keys(), "these steps work now: take them off the list of known gaps"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_way_through_the_service(name: str) -> None:
    _assert_as_known(name, [step for step in STEPS if step != "back"])


@pytest.mark.long
@pytest.mark.parametrize("name", _CONVERTED)
def test_way_of_networks_with_something_of_their_own(name: str) -> None:
    _assert_as_known(name, STEPS)


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in (*FAST, *_CONVERTED)])
def test_way_of_every_other_architecture(name: str) -> None:
    _assert_as_known(name, [step for step in STEPS if step not in _TFLITE])


def test_known_gaps_name_architectures_and_steps() -> None:
    for name, step in KNOWN_GAPS:
        assert name in ARCHITECTURES
        assert name not in FAST or step == "back"  # which the fast tests leave out
        assert step in STEPS
