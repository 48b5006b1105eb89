"""The unit of work that writes networks of the designed set as files for a target's runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from textwrap import shorten

import numpy as np

from tightfit_service.application.ports import (
    CalibrationNetworks,
    Exporter,
    GraphInspector,
    ImportedModel,
    ModelImporter,
    QuantizationSettings,
    WorkHandler,
)
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.domain.dataset import Layout
from tightfit_service.domain.errors import TightfitError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.network import NetworkProfile

DESIGN = 9
"""Version of the designed set; it rises with every change to its networks or to how they are written, so
that files of an earlier one are not taken for its own."""
SAMPLE_COUNT = 8
"""Random inputs that activation ranges are taken from; only the speed of the files matters."""
MOST_PROBLEM_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class CalibrationFilesTask:
    """Networks of a version of the designed set by their indices, and what they are to be written in.

    All number formats of a network are written together: a converter does most of its work once for them.
    """

    design: int
    indices: tuple[int, ...]
    number_formats: tuple[NumberFormat, ...]
    target: HardwareSpec


@dataclass(frozen=True, kw_only=True)
class DesignedFile:
    """A network of the designed set as written; a problem says why there is no file."""

    index: int
    number_format: NumberFormat
    label: str
    profile: NetworkProfile | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """What its file is called among the outputs of a unit."""
        return f"{self.index}-{self.number_format}"


@dataclass(frozen=True, kw_only=True)
class CalibrationFiles:
    """The networks that were asked for, in order, each in all its number formats."""

    files: tuple[DesignedFile, ...]


CALIBRATION_FILES = UnitKind("calibration_files", CalibrationFilesTask, CalibrationFiles)


@dataclass(frozen=True, kw_only=True)
class CalibrationWork:
    """The handler with its ports; composed in the worker process."""

    networks: CalibrationNetworks
    importer: ModelImporter
    inspector: GraphInspector
    exporters: Mapping[ModelFormat, Exporter]

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {CALIBRATION_FILES.name: CALIBRATION_FILES.handler(self.write)}

    def write(self, task: CalibrationFilesTask, context: UnitContext) -> CalibrationFiles:
        """Write networks of the designed set; the outputs are the files, by `DesignedFile.name`."""
        exporter = self.exporters[task.target.output_format]
        written: list[DesignedFile] = []
        for done, index in enumerate(task.indices):
            designed = self.networks.graph(index)
            share = done / len(task.indices)
            context.on_progress(share, f"writing network {index}: {designed.label}")
            found = [
                DesignedFile(index=index, number_format=number_format, label=designed.label)
                for number_format in task.number_formats
            ]
            # a network that the converter or the runtime cannot take must not cost the whole set
            try:
                model = self.importer.import_model(designed.graph)
                profile = self.inspector.profile(model.graph)
            except (TightfitError, ValueError) as error:
                written += [replace(item, problem=_problem(error)) for item in found]
                continue
            for item in found:
                try:
                    file = _file(model, exporter, item.number_format, task.target)
                except (TightfitError, ValueError) as error:
                    written.append(replace(item, problem=_problem(error)))
                    continue
                context.write(item.name, file, file_name=f"network-{item.name}")
                written.append(replace(item, profile=profile))
        return CalibrationFiles(files=tuple(written))


def _file(
    model: ImportedModel, exporter: Exporter, number_format: NumberFormat, target: HardwareSpec
) -> bytes:
    (signature,) = model.inputs
    stored = np.random.default_rng(0).normal(size=(SAMPLE_COUNT, *signature.shape[1:]))
    samples = Samples(
        stored=stored.astype(np.float32),
        labels=None,
        layout=Layout.ANY,
        model_layout=Layout.ANY,
        input_name=signature.name,
    )
    exported = exporter.export(
        model.graph,
        calibration=samples,
        settings=QuantizationSettings(number_format=number_format, method="minmax"),
        metadata={},
        target=target,
    )
    return exported.data


def _problem(error: TightfitError | ValueError) -> str:
    """Return why a network could not be written: in tightfit's words, or as a converter put it."""
    if isinstance(error, TightfitError):
        return error.message
    return shorten(f"{type(error).__name__}: {error}", MOST_PROBLEM_CHARACTERS)
