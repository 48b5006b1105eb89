"""Tests of OpenVINO IR: number formats, several inputs, metadata, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fakes.networks import NETWORKS
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.evaluation.openvino_evaluator import OpenvinoEvaluator
from tightfit_service.adapters.formats.file_set import join_files
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.openvino_export import (
    OpenvinoExporter,
    network_and_weights,
)
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.errors import InvalidDatasetError, InvalidModelError, UnsupportedError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.passes.quantization import StaticQuantizationPass

EXPORTER = OpenvinoExporter(onnx=OnnxExporter(quantizer=StaticQuantizationPass()))
EVALUATOR = OpenvinoEvaluator(split=network_and_weights)
needs_openvino = pytest.mark.usefixtures("openvino_or_reason")


@pytest.fixture(scope="session")
def openvino_or_reason() -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")


def samples() -> Samples:
    stored = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    return Samples(stored=stored, labels=None)


def exported(
    number_format: NumberFormat,
    *,
    network: str = "residual",
    metadata: dict[str, str] | None = None,
) -> ExportedModel:
    return EXPORTER.export(
        NETWORKS[network](0).SerializeToString(),
        calibration=samples(),
        settings=QuantizationSettings(number_format=number_format),
        metadata=metadata or {},
    )


@needs_openvino
@pytest.mark.parametrize(
    ("number_format", "noise"),
    [
        (NumberFormat.FLOAT32, 1e-9),
        (NumberFormat.FLOAT16, 1e-5),
        (NumberFormat.BFLOAT16, 1e-3),
        (NumberFormat.INT8, 1e-2),
    ],
)
def test_number_formats(number_format: NumberFormat, noise: float) -> None:
    found = exported(number_format)
    assert (found.format, found.number_format) == (ModelFormat.OPENVINO, number_format)
    assert found.parity["noise_ratio"] < noise
    assert any("VNNI" in note for note in found.notes) == (number_format is NumberFormat.INT8)
    xml, weights = network_and_weights(found.data)
    assert found.device_bytes == len(xml) + len(weights)


@needs_openvino
def test_it_computes_what_the_onnx_file_does() -> None:
    # on every processor, whatever its kernels saturate
    onnx = OnnxExporter(quantizer=StaticQuantizationPass()).export(
        NETWORKS["plain_cnn"](0).SerializeToString(),
        calibration=samples(),
        settings=QuantizationSettings(),
        metadata={},
    )
    inputs = samples().inputs(slice(0, 5))
    expected = OnnxRuntimeEvaluator().outputs(onnx.data, inputs)
    found = EVALUATOR.outputs(exported(NumberFormat.INT8, network="plain_cnn").data, inputs)
    assert np.mean((found - expected) ** 2) < 1e-3 * expected.var()


@needs_openvino
def test_metadata_travels_in_the_network() -> None:
    import openvino

    facts = {"tightfit.seed": "7", "tightfit.recipe": '{"steps": ["<&>"]}'}
    xml, weights = network_and_weights(exported(NumberFormat.FLOAT32, metadata=facts).data)
    model = openvino.Core().read_model(xml, weights)
    assert {
        key: model.get_rt_info(["tightfit", key]).astype(str) for key in ("seed", "recipe")
    } == {
        "seed": "7",
        "recipe": facts["tightfit.recipe"],
    }


@needs_openvino
def test_equal_exports_give_equal_files() -> None:
    assert exported(NumberFormat.INT8).data == exported(NumberFormat.INT8).data


@needs_openvino
def test_several_inputs() -> None:
    model = NETWORKS["several_outputs"](0)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        for value in model.graph.input
    }
    rng = np.random.default_rng(0)
    first, *others = [
        (name, rng.normal(size=(8, *shape)).astype(np.float32)) for name, shape in shapes.items()
    ]
    given = Samples(
        stored=first[1],
        labels=None,
        input_name=first[0],
        others={name: StoredInput(stored=values) for name, values in others},
    )
    found = EXPORTER.export(
        model.SerializeToString(),
        calibration=given,
        settings=QuantizationSettings(number_format=NumberFormat.FLOAT32),
        metadata={},
    )
    with pytest.raises(InvalidDatasetError, match="name"):
        EVALUATOR.outputs(found.data, {"image": first[1], "unknown": first[1]})
    assert EVALUATOR.outputs(found.data, given.feeds(slice(0, 3), list(shapes))).shape[0] == 3


@needs_openvino
@pytest.mark.parametrize("number_format", [NumberFormat.INT16X8, NumberFormat.INT4])
def test_formats_without_kernels_are_refused(number_format: NumberFormat) -> None:
    with pytest.raises(UnsupportedError, match=f"does not compute in {number_format}"):
        exported(number_format)


@needs_openvino
def test_damaged_files_are_refused() -> None:
    with pytest.raises(InvalidModelError, match="archive"):
        EVALUATOR.outputs(b"PK", samples().inputs(slice(0, 1)))
    damaged = join_files({"model.xml": b"<net", "model.bin": b""})
    with pytest.raises(InvalidModelError, match="OpenVINO cannot load"):
        EVALUATOR.outputs(damaged, samples().inputs(slice(0, 1)))


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnsupportedError, match="not installed") as caught:
        exported(NumberFormat.FLOAT32)
    assert "tightfit-service[openvino]" in str(caught.value)
