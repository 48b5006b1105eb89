"""TFLite files compiled for Ethos-U: what is checked of them, told about them, and refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fakes.networks import NETWORKS
from fakes.tflite_files import TfliteBuilder
from tightfit_service.adapters.emulators.vela import VelaCompiler
from tightfit_service.adapters.evaluation.contained_evaluator import ContainedEvaluator
from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator, read_metadata
from tightfit_service.adapters.formats.file_set import split_files
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.vela_export import (
    COMPILED_NAME,
    SOURCE_NAME,
    VelaFileCompiler,
    check_compiled,
    source_in,
)
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidModelError, ParityError, UnsupportedError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat

CATALOGUE = YamlTargetCatalogue()
TARGET = CATALOGUE.get("cortex-m55-ethos-u55-128")
COMPILER = VelaFileCompiler(vela=VelaCompiler())
needs_vela = pytest.mark.skipif(
    not VelaCompiler.is_installed(), reason="the extra `ethos-u` is not installed"
)


def exported(**node_formats: NumberFormat) -> ExportedModel:
    model = NETWORKS["plain_cnn"](0)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    stored = np.random.default_rng(0).normal(size=(16, *shape)).astype(np.float32)
    return TfliteExporter().export(
        model.SerializeToString(),
        calibration=Samples(stored=stored, labels=None),
        settings=QuantizationSettings(node_formats=node_formats),
        metadata={"tightfit.seed": "7"},
    )


@pytest.fixture(scope="module")
def source() -> ExportedModel:
    return exported()


def compiled_by_hand(*, shape: tuple[int, ...] = (1, 4), scale: float = 0.5) -> bytes:
    """A file with one operator of Ethos-U, which nothing here executes."""
    builder = TfliteBuilder()
    given = builder.tensor([1, 4], dtype="int8", scale=0.25)
    output = builder.tensor(shape, dtype="int8", scale=scale)
    builder.operator("CUSTOM", [given], output)
    builder.model.operatorCodes[-1].customCode = b"ethos-u"
    return builder.build([given], [output])


@needs_vela
def test_the_compiled_file_lies_beside_the_one_it_was_made_of(source: ExportedModel) -> None:
    found = COMPILER.compile(source, TARGET)
    files = split_files(found.data, (COMPILED_NAME, SOURCE_NAME))
    compiled = files[COMPILED_NAME]
    assert files[SOURCE_NAME] == source_in(found.data) == source.data
    assert (found.format, found.number_format) == (ModelFormat.VELA, NumberFormat.INT8)
    assert found.device_bytes == len(compiled)
    assert found.parity == source.parity
    assert read_metadata(compiled) == read_metadata(source.data)
    assert read_metadata(compiled)["tightfit.seed"] == "7"
    names = [code.customCode for code in TfliteFile(compiled).model.operatorCodes]
    assert names == [b"ethos-u"]
    about_accuracy, about_figures = found.notes[-2:]
    assert "nothing here executes model_vela.tflite" in about_accuracy
    assert "ms on Ethos-U55-128" in about_figures
    assert not any("stay on" in note for note in found.notes)


@needs_vela
def test_equal_files_are_compiled_to_equal_ones(source: ExportedModel) -> None:
    assert COMPILER.compile(source, TARGET).data == COMPILER.compile(source, TARGET).data


@needs_vela
def test_it_is_evaluated_by_the_file_it_was_made_of(source: ExportedModel) -> None:
    found = COMPILER.compile(source, TARGET)
    evaluator = ContainedEvaluator(file_in=source_in, evaluator=LitertEvaluator())
    shape = NETWORKS["plain_cnn"](0).graph.input[0].type.tensor_type.shape.dim[1:]
    inputs = np.random.default_rng(2).normal(size=(3, *[dim.dim_value for dim in shape]))
    given = inputs.astype(np.float32)
    expected = LitertEvaluator().outputs(source.data, given)
    np.testing.assert_array_equal(evaluator.outputs(found.data, given), expected)


@needs_vela
def test_what_stays_on_the_core_and_what_does_not_fit_is_told() -> None:
    last = NETWORKS["plain_cnn"](0).graph.node[-1].name  # the Softmax
    small = replace(TARGET, memory=replace(TARGET.memory, flash_bytes=1024))
    notes = COMPILER.compile(exported(**{last: NumberFormat.FLOAT32}), small).notes
    (left,) = [note for note in notes if "stay on the cortex-m55" in note]
    assert "1 DEQUANTIZE, 1 SOFTMAX" in left
    assert notes[-1].endswith("and the flash has 1024")


@needs_vela
def test_a_file_that_nothing_of_runs_on_ethos_u_is_refused(source: ExportedModel) -> None:
    builder = TfliteBuilder()
    given = builder.tensor([1, 8, 8, 4])
    data = builder.build([given], [builder.conv(given, np.eye(4).reshape(4, 1, 1, 4))])
    with pytest.raises(UnsupportedError, match="no operator"):
        COMPILER.compile(replace(source, data=data), TARGET)


def test_other_targets_are_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    vela = VelaCompiler()
    with pytest.raises(UnsupportedError, match="raspberry-pi-4 has no Ethos-U") as caught:
        vela.check(CATALOGUE.get("raspberry-pi-4"))
    assert caught.value.field == "output_format"
    assert "cortex-m55-ethos-u55-128" in str(caught.value.remedy)
    assert TARGET.accelerator is not None
    odd = replace(TARGET.accelerator, macs_per_cycle={NumberFormat.INT8: 100})
    with pytest.raises(UnsupportedError, match="with 100 multiply-accumulates") as caught:
        vela.check(replace(TARGET, accelerator=odd))
    assert "32, 64, 128, 256" in str(caught.value.remedy)
    monkeypatch.setattr(VelaCompiler, "is_installed", staticmethod(lambda: False))
    with pytest.raises(UnsupportedError, match="not installed") as caught:
        vela.check(TARGET)
    assert "tightfit-service[ethos-u]" in str(caught.value.remedy)


def test_a_compiled_file_must_have_inputs_and_outputs_of_its_source() -> None:
    given = compiled_by_hand()
    assert check_compiled(given, given).operator_name(TfliteFile(given).graph.operators[0])
    with pytest.raises(ParityError, match=r"output 0 instead of INT8 \[1, 4\]"):
        check_compiled(given, compiled_by_hand(shape=(1, 5)))
    with pytest.raises(ParityError, match=r"of scale \[0.125\]"):
        check_compiled(given, compiled_by_hand(scale=0.125))
    with pytest.raises(ParityError, match="no TFLite file"):
        check_compiled(given, b"anything at all")
    with pytest.raises(ParityError, match="no TFLite file"):
        check_compiled(given, given[:40])


def test_a_compiled_file_must_have_something_for_ethos_u(source: ExportedModel) -> None:
    with pytest.raises(ParityError, match="no operator of Ethos-U"):
        check_compiled(source.data, source.data)


def test_other_archives_are_refused() -> None:
    with pytest.raises(InvalidModelError, match="archive"):
        source_in(b"no archive")
