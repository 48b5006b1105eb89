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

_EXPORTS = ("_opset11", "_opset13", "_opset20", "_dynamo", "_fixed_batch", "_softmax")
_OTHERWISE_EXPORTED = tuple(name for name in ARCHITECTURES if name.endswith(_EXPORTS))
"""What export changes shows in their graphs; what comes later is that of the network they are of."""
_OTHERS = tuple(
    name for name in ARCHITECTURES if name not in (*FAST, *_CONVERTED, *_OTHERWISE_EXPORTED)
)
_OF_GRAPHS = ("import", "profile", "space", "exact", "prune")


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
def test_way_but_for_the_conversion() -> None:
    """What every run of the tests sees; conversions have tests of their own."""
    _assert_as_known("mobilenet_v3", [step for step in STEPS if step not in _TFLITE])


@pytest.mark.long
@pytest.mark.parametrize("name", FAST)
def test_way_through_the_service(name: str) -> None:
    _assert_as_known(name, [step for step in STEPS if step != "back"])


@pytest.mark.long
@pytest.mark.parametrize("name", _CONVERTED)
def test_way_of_networks_with_something_of_their_own(name: str) -> None:
    _assert_as_known(name, STEPS)


@pytest.mark.long
@pytest.mark.parametrize("name", _OTHERS)
def test_way_of_every_other_architecture(name: str) -> None:
    _assert_as_known(name, [step for step in STEPS if step not in _TFLITE])


@pytest.mark.long
@pytest.mark.parametrize("name", _OTHERWISE_EXPORTED)
def test_way_of_networks_exported_otherwise(name: str) -> None:
    _assert_as_known(name, _OF_GRAPHS)


def test_known_gaps_name_architectures_and_steps() -> None:
    for name, step in KNOWN_GAPS:
        assert name in ARCHITECTURES
        assert name not in FAST or step == "back"  # which the fast tests leave out
        assert step in STEPS
