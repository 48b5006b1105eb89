"""The unit of work that writes networks of the designed set as files for a target's runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from textwrap import shorten

import numpy as np

from tightfit_service.application.plain import to_plain
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
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.domain.network import NetworkProfile

DESIGN = 5
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
    format: ModelFormat
    number_formats: tuple[NumberFormat, ...]
    measured: tuple[str, ...] = ()
    """Digests (`network_digest`), in order, of networks whose measurements are kept: no files are written of
    them."""


@dataclass(frozen=True, kw_only=True)
class DesignedFile:
    """A network of the designed set as written.

    There is no file where it was measured before, `measured_as` a network of that digest, nor where there is
    a problem, which says why.
    """

    index: int
    number_format: NumberFormat
    label: str
    profile: NetworkProfile | None = None
    problem: str = ""
    measured_as: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether its measurement is kept."""
        return bool(self.measured_as)

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
        exporter = self.exporters[task.format]
        measured = frozenset(task.measured)
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
                digest = network_digest(item.number_format, profile)
                if digest in measured:
                    written.append(replace(item, profile=profile, measured_as=digest))
                    continue
                try:
                    file = _file(model, exporter, item.number_format)
                except (TightfitError, ValueError) as error:
                    written.append(replace(item, problem=_problem(error)))
                    continue
                context.write(item.name, file, file_name=f"network-{item.name}")
                written.append(replace(item, profile=profile))
        return CalibrationFiles(files=tuple(written))


def network_digest(number_format: NumberFormat, profile: NetworkProfile) -> str:
    """Return what tells a network of the designed set from all others, in this version of the set or another.

    That is its work and its number format, which says the bits of weights and activations: those of the
    profile do not matter.
    """
    plain = to_plain(profile.at_precision(weight_bits=0, activation_bits=0))
    text = json.dumps([number_format, plain], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _file(model: ImportedModel, exporter: Exporter, number_format: NumberFormat) -> bytes:
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
    )
    return exported.data


def _problem(error: TightfitError | ValueError) -> str:
    """Return why a network could not be written: in tightfit's words, or as a converter put it."""
    if isinstance(error, TightfitError):
        return error.message
    return shorten(f"{type(error).__name__}: {error}", MOST_PROBLEM_CHARACTERS)
