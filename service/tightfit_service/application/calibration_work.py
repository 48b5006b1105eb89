"""The unit of work that writes networks of the designed set as files for a target's runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    CalibrationNetworks,
    Exporter,
    GraphInspector,
    ModelImporter,
    ProgressCallback,
    QuantizationSettings,
    WorkHandler,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout
from tightfit_service.domain.errors import TightfitError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.domain.network import NetworkProfile

CALIBRATION_FILES = "calibration_files"
SAMPLE_COUNT = 8
"""Random inputs that activation ranges are taken from; only the speed of the files matters."""


@dataclass(frozen=True, kw_only=True)
class DesignedFile:
    """A network of the designed set as written; `problem` says why there is no file."""

    index: int
    label: str
    profile: NetworkProfile | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class CalibrationWork:
    """The handler with its ports; composed in the worker process."""

    networks: CalibrationNetworks
    importer: ModelImporter
    inspector: GraphInspector
    exporters: Mapping[ModelFormat, Exporter]

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {CALIBRATION_FILES: self.write}

    def write(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Write the networks of the payload's `indices` in its `format` and `number_format`.

        Outputs: the files, by index. Payload of the result: `files`, a list of `DesignedFile`.
        """
        del inputs
        indices = [int(index) for index in payload["indices"]]
        exporter = self.exporters[ModelFormat(payload["format"])]
        number_format = NumberFormat(payload["number_format"])
        written: list[DesignedFile] = []
        outputs: dict[str, Path] = {}
        for done, index in enumerate(indices):
            designed = self.networks.graph(index)
            on_progress(done / len(indices), f"writing network {index}: {designed.label}")
            try:
                file, profile = self._file(designed.graph, exporter, number_format)
            except TightfitError as error:
                # one that the runtime has no kernels for must not cost the whole set
                written.append(
                    DesignedFile(index=index, label=designed.label, problem=error.message)
                )
                continue
            path = output_dir / f"network-{index}"
            path.write_bytes(file)
            outputs[str(index)] = path
            written.append(DesignedFile(index=index, label=designed.label, profile=profile))
        return {"files": [to_plain(file) for file in written]}, outputs

    def _file(
        self, graph: bytes, exporter: Exporter, number_format: NumberFormat
    ) -> tuple[bytes, NetworkProfile]:
        model = self.importer.import_model(graph)
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
        return exported.data, self.inspector.profile(model.graph)
