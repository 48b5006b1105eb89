"""Exporter of C source for firmware: the TFLite file as an array, with a header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tightfit_service.adapters.formats.c_source import (
    HEADER_NAME,
    SOURCE_NAME,
    array_of,
    c_source,
)
from tightfit_service.adapters.formats.file_set import join_files, split_files
from tightfit_service.application.ports import (
    ExportedModel,
    Exporter,
    QuantizationSettings,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import ParityError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat


class CArrayExporter:
    """Writes `model.h` and `model.c` (`ports.Exporter`), joined in one archive.

    Metadata goes into the header, where it takes no flash; the file in the array has none but
    the layout of its inputs and outputs.
    """

    def __init__(self, *, tflite: Exporter) -> None:
        """Keep the exporter of the file in the array."""
        self._tflite = tflite

    def export(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        metadata: Mapping[str, str],
        ranges: Mapping[str, tuple[float, float]] | None = None,
        target: HardwareSpec | None = None,
    ) -> ExportedModel:
        """Export as TFLite, write as source, and read the array back.

        Raises:
            ParityError: The file in the array does not compute what the graph does.
            TightfitError: What the export as TFLite raises.
        """
        exported = self._tflite.export(
            graph,
            calibration=calibration,
            settings=settings,
            metadata={},
            ranges=ranges,
            target=target,
        )
        data = join_files(c_source(exported.data, metadata))
        if tflite_in(data) != exported.data:
            raise ParityError(
                "the array in the source is not the file that was written into it",
                field="model",
                remedy="export as TFLite",
            )
        return replace(
            exported, data=data, format=ModelFormat.C_ARRAY, device_bytes=len(exported.data)
        )


def tflite_in(data: bytes) -> bytes:
    """Return the TFLite file in an archive that `CArrayExporter` wrote.

    Raises:
        InvalidModelError: Not such an archive.
    """
    return array_of(split_files(data, (HEADER_NAME, SOURCE_NAME))[SOURCE_NAME])
