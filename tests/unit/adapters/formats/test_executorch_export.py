"""Tests of ExecuTorch programs: float32 and int8, several inputs, metadata, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fakes.networks import NETWORKS, Builder
from tightfit_service.adapters.evaluation.executorch_evaluator import (
    ExecutorchEvaluator,
    ExecutorchRunner,
)
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.executorch_export import ExecutorchExporter
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.errors import InvalidDatasetError, InvalidModelError, UnsupportedError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.passes.quantization import StaticQuantizationPass

EXPORTER = ExecutorchExporter(quantizer=StaticQuantizationPass())
INT8, FLOAT32 = NumberFormat.INT8, NumberFormat.FLOAT32
pytestmark = pytest.mark.slow
needs_executorch = pytest.mark.usefixtures("executorch_or_reason")


@pytest.fixture(scope="session")
def executorch_or_reason() -> None:
    pytest.importorskip("executorch", reason="the extra `executorch` is not installed")


def samples(*shape: int, count: int = 16) -> Samples:
    stored = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
    return Samples(stored=stored, labels=None)


def exported(
    network: str, number_format: NumberFormat, metadata: dict[str, str] | None = None
) -> tuple[ExportedModel, Samples]:
    model = NETWORKS[network](0)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    given = samples(*shape)
    settings = QuantizationSettings(number_format=number_format)
    found = EXPORTER.export(
        model.SerializeToString(), calibration=given, settings=settings, metadata=metadata or {}
    )
    return found, given


@needs_executorch
@pytest.mark.parametrize("network", ["mlp", "inception"])
def test_int8_programs_compute_what_the_quantized_graph_does(network: str) -> None:
    found, given = exported(network, INT8, {"tightfit.seed": "7"})
    onnx = OnnxExporter(quantizer=StaticQuantizationPass()).export(
        NETWORKS[network](0).SerializeToString(),
        calibration=given,
        settings=QuantizationSettings(),
        metadata={},
    )
    inputs = given.inputs(slice(0, 8))
    expected = OnnxRuntimeEvaluator().outputs(onnx.data, inputs)
    outputs = ExecutorchEvaluator().outputs(found.data, inputs)
    assert (found.format, found.number_format) == (ModelFormat.EXECUTORCH, INT8)
    assert np.mean((outputs - expected) ** 2) < 2e-3 * expected.var()
    assert ExecutorchRunner(found.data).value_of("tightfit_seed") == "7"


@needs_executorch
def test_weights_are_stored_in_eight_bits() -> None:
    builder = Builder()
    image = builder.input("input", (8, 6, 6))
    model = builder.model({builder.conv("wide", image, 8, 256): (256, 6, 6)})
    sizes = [
        len(
            EXPORTER.export(
                model.SerializeToString(),
                calibration=samples(8, 6, 6),
                settings=QuantizationSettings(number_format=number_format),
                metadata={},
            ).data
        )
        for number_format in (FLOAT32, INT8)
    ]
    assert sizes[1] < 0.5 * sizes[0]


@needs_executorch
def test_several_inputs_and_outputs_in_float() -> None:
    model = NETWORKS["several_outputs"](0)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        for value in model.graph.input
    }
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=(8, *shape)).astype(np.float32) for n, shape in shapes.items()}
    (first, stored), *others = arrays.items()
    given = Samples(
        stored=stored,
        labels=None,
        input_name=first,
        others={name: StoredInput(stored=values) for name, values in others},
    )
    found = EXPORTER.export(
        model.SerializeToString(),
        calibration=given,
        settings=QuantizationSettings(number_format=FLOAT32),
        metadata={},
    )
    assert found.parity["noise_ratio"] < 1e-9
    with pytest.raises(InvalidDatasetError, match="name an array"):
        ExecutorchEvaluator().outputs(found.data, {"unknown": stored, first: stored})


@needs_executorch
@pytest.mark.parametrize("number_format", [NumberFormat.INT4, NumberFormat.FLOAT16])
def test_other_number_formats_are_refused(number_format: NumberFormat) -> None:
    with pytest.raises(UnsupportedError, match=f"in {number_format} are not offered"):
        exported("mlp", number_format)


@needs_executorch
def test_damaged_files_are_refused() -> None:
    with pytest.raises(InvalidModelError, match="ExecuTorch cannot load"):
        ExecutorchEvaluator().outputs(b"no program" * 10, np.zeros((1, 6), dtype=np.float32))


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [item for item in sys.modules if item.split(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(UnsupportedError, match="not installed") as caught:
        exported("mlp", FLOAT32)
    assert "tightfit-service[executorch]" in str(caught.value)
