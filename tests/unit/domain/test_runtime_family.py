"""Names of runtimes: spellings of one are one family."""

from __future__ import annotations

import pytest

from tightfit_service.domain.measurement import runtime_family


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("TensorFlow Lite XNNPACK", "litert"),
        ("TFLite", "litert"),
        ("ONNX Runtime", "onnxruntime"),
        ("TensorFlow Lite Micro", "tensorflow lite micro"),
        ("TFLite-Micro", "tflite-micro"),
        ("TensorFlow Lite for Microcontrollers", "tensorflow lite for microcontrollers"),
    ],
)
def test_runtimes_go_by_family(name: str, family: str) -> None:
    assert runtime_family(name) == family
