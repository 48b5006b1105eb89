"""A network of the designed set that no file can be made of is named, and the others are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.records import make_target
from tightfit_service.application.ports import (
    DesignedNetwork,
    ExportedModel,
    ImportedModel,
    QuantizationSettings,
    TensorSignature,
)
from tightfit_service.application.units.kinds import UnitContext
from tightfit_service.application.work.calibration import (
    DESIGN,
    CalibrationFiles,
    CalibrationFilesTask,
    CalibrationWork,
)
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

PROFILE = NetworkProfile(operators=(), tensors={}, inputs=(), outputs=())
POOLING = Operator(
    node="pool", kind=OperatorKind.POOL, op_type="MaxPool", inputs=("x",), outputs=("y",)
)
OTHER_PROFILE = replace(PROFILE, operators=(POOLING,))


class Networks:
    def graph(self, index: int) -> DesignedNetwork:
        return DesignedNetwork(label=f"net {index}", graph=str(index).encode())


class Importer:
    def import_model(self, data: bytes) -> ImportedModel:
        signature = TensorSignature(name="input", shape=(-1, 3), dtype="float32")
        return ImportedModel(
            graph=data,
            inputs=(signature,),
            outputs=(signature,),
            opset=17,
            node_count=1,
            parameter_count=0,
            macs=0,
        )


class Inspector:
    """Finds a pooling in network 5 alone."""

    def profile(self, graph: bytes) -> NetworkProfile:
        return OTHER_PROFILE if graph == b"5" else PROFILE


class Exporter:
    """Writes all networks but those that it has an error for."""

    def __init__(self, errors: dict[bytes, Exception]) -> None:
        self.errors = errors

    def export(self, graph: bytes, *, settings: QuantizationSettings, **_: Any) -> ExportedModel:
        if graph in self.errors and settings.number_format is NumberFormat.INT8:
            raise self.errors[graph]
        return ExportedModel(
            data=b"file " + graph + f" in {settings.number_format}".encode(),
            format=ModelFormat.TFLITE,
            number_format=settings.number_format,
            parity={},
        )


def written(folder: Path, errors: dict[bytes, Exception]) -> tuple[CalibrationFiles, UnitContext]:
    work: Any = CalibrationWork
    context = UnitContext(inputs={}, output_dir=folder, on_progress=lambda _share, _note: None)
    task = CalibrationFilesTask(
        design=DESIGN,
        indices=(4, 5, 6),
        number_formats=(NumberFormat.INT8, NumberFormat.FLOAT32),
        target=make_target(),
    )
    handler = work(
        networks=Networks(),
        importer=Importer(),
        inspector=Inspector(),
        exporters={ModelFormat.TFLITE: Exporter(errors)},
    )
    return handler.write(task, context), context


def test_what_is_written_is_told_with_its_profile(tmp_path: Path) -> None:
    files, context = written(tmp_path, {})
    assert [(file.name, file.label, file.profile) for file in files.files] == [
        (f"{index}-{name}", f"net {index}", OTHER_PROFILE if index == 5 else PROFILE)
        for index in (4, 5, 6)
        for name in ("int8", "float32")
    ]
    assert {name: path.read_bytes() for name, path in context.outputs.items()} == {
        f"{index}-{name}": f"file {index} in {name}".encode()
        for index in (4, 5, 6)
        for name in ("int8", "float32")
    }


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            UnsupportedError("no kernel for Det", field="model", remedy="drop it"),
            "no kernel for Det",
        ),
        (ValueError("axis 3\nis out of bounds"), "ValueError: axis 3 is out of bounds"),
    ],
)
def test_a_network_that_cannot_be_written_is_named_and_the_others_are_written(
    tmp_path: Path, error: Exception, problem: str
) -> None:
    files, context = written(tmp_path, {b"5": error})
    assert [file.problem for file in files.files] == ["", "", problem, "", "", ""]
    assert files.files[2].profile is None
    assert set(context.outputs) == {file.name for file in files.files} - {"5-int8"}


def test_what_a_converter_says_at_length_is_told_in_short(tmp_path: Path) -> None:
    files, _ = written(tmp_path, {b"4": ValueError("a word and another " * 100)})
    assert files.files[0].problem.startswith("ValueError: a word")
    assert len(files.files[0].problem) <= 200


def test_a_fault_of_the_service_is_not_taken_for_one_of_a_network(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"):
        written(tmp_path, {b"5": OSError("the disk is full")})
