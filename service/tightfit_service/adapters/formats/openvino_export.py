"""Exporter of OpenVINO IR: from the ONNX file in its final number formats, reloaded in OpenVINO."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from tightfit_service.adapters.evaluation.openvino_evaluator import OpenvinoRunner, openvino
from tightfit_service.adapters.formats.file_set import join_files, split_files
from tightfit_service.adapters.formats.metadata import affordable
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.adapters.formats.onnx_export import comparison_feeds
from tightfit_service.application.ports import ExportedModel, Exporter, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.application.work.file_metadata import PREFIX
from tightfit_service.application.work.file_parity import check_outputs, noise_limit_of
from tightfit_service.domain.errors import InvalidModelError, ParityError, UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.graph.model_file import load_model

NETWORK_NAME, WEIGHTS_NAME = "model.xml", "model.bin"

_REFUSED = {
    NumberFormat.INT16X8: "its kernels compute in 8-bit integers or in float",
    NumberFormat.INT4: "its kernels take 4-bit weights with float activations only",
}
_SATURATION_NOTE = (
    "on x86 processors without VNNI, OpenVINO's int8 kernels saturate in sums of products "
    "and are less accurate than reported"
)

_LAYER = re.compile(r'(<layer id="(\d+)" name=")((\w+)_\d+)(" type="(\w+)")')

_SECTION = PREFIX.rstrip(".")
"""Of the file's `rt_info` that holds the metadata."""


class OpenvinoExporter:
    """Writes `model.xml` and `model.bin` (`ports.Exporter`), joined in one archive.

    The ONNX file is read by the runtime itself: `openvino.convert_model` reports its use to its
    makers, and nothing that runs here may do so.
    """

    def __init__(self, *, onnx: Exporter) -> None:
        """Keep the exporter of the file that is converted."""
        self._onnx = onnx

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
        """Export as ONNX, convert, reload in OpenVINO, compare with the graph.

        Raises:
            ParityError: The reloaded file does not compute what the graph does.
            UnsupportedError: OpenVINO is not installed, or does not have an operator.
            TightfitError: What the export as ONNX raises.
        """
        openvino()
        used = {settings.number_format, *settings.node_formats.values()}
        _check(used)
        exported = self._onnx.export(
            graph,
            calibration=calibration,
            settings=settings,
            metadata={},
            ranges=ranges,
            target=target,
        )
        files = _converted(exported.data, metadata)
        feeds = comparison_feeds(calibration, load_model(graph))
        try:
            runner = OpenvinoRunner(files[NETWORK_NAME], files[WEIGHTS_NAME], threads=1)
            found = runner.run(feeds)
            first = {name: values[:1] for name, values in feeds.items()}
            fast = OpenvinoRunner(
                files[NETWORK_NAME], files[WEIGHTS_NAME], threads=1, as_written=False
            )
            fast.run(first)
        except InvalidModelError as error:
            raise ParityError(
                "the exported file does not run in OpenVINO",
                field="model",
                remedy="export as ONNX, or in float32",
            ) from error
        limit = noise_limit_of(settings)
        return ExportedModel(
            data=join_files(files),
            format=ModelFormat.OPENVINO,
            number_format=settings.number_format,
            parity=check_outputs(
                run_feeds(graph, feeds),
                found,
                is_quantized=limit is not None,
                noise_limit=limit or 0.0,
            ),
            notes=(*exported.notes, *([_SATURATION_NOTE] if NumberFormat.INT8 in used else [])),
            format_notes=exported.format_notes,
            device_bytes=sum(len(data) for data in files.values()),
        )


def _check(used: AbstractSet[NumberFormat]) -> None:
    for number_format in sorted(used & _REFUSED.keys()):
        raise UnsupportedError(
            f"OpenVINO does not compute in {number_format}: {_REFUSED[number_format]}",
            field="quantization.number_format",
            remedy="use int8 or float16, or export as ONNX",
        )


def network_and_weights(data: bytes) -> tuple[bytes, bytes]:
    """Return both files of an archive that `OpenvinoExporter` wrote.

    Raises:
        InvalidModelError: Not such an archive.
    """
    files = split_files(data, (NETWORK_NAME, WEIGHTS_NAME))
    return files[NETWORK_NAME], files[WEIGHTS_NAME]


def _converted(data: bytes, metadata: Mapping[str, str]) -> dict[str, bytes]:
    module = openvino()
    try:
        model = module.Core().read_model(data)
    except (RuntimeError, ValueError) as error:
        raise UnsupportedError(
            f"OpenVINO cannot read the network: {str(error).strip().splitlines()[-1][:200]}",
            field="output_format",
            remedy="export as ONNX",
        ) from error
    for key, value in sorted(affordable(metadata, len(data)).items()):
        model.set_rt_info(value, [_SECTION, key.removeprefix(PREFIX)])
    with tempfile.TemporaryDirectory(prefix="tightfit-") as folder:
        network = Path(folder) / NETWORK_NAME
        module.save_model(model, str(network), compress_to_fp16=False)
        return {
            NETWORK_NAME: _renamed(network.read_text(encoding="utf-8"), data).encode(),
            WEIGHTS_NAME: network.with_name(WEIGHTS_NAME).read_bytes(),
        }


def _renamed(xml: str, source: bytes) -> str:
    """Return the network with layers that have no name in the source called by their place.

    OpenVINO numbers them through as long as the process lives; equal exports give equal files.
    """
    graph = load_model(source).graph
    own = {node.name for node in graph.node} | {name for node in graph.node for name in node.output}

    def renamed(found: re.Match[str]) -> str:
        before, place, name, stem, after, kind = found.groups()
        is_made_up = stem == kind or (stem, kind) == ("Constant", "Const")
        return f"{before}{stem}.{place}{after}" if is_made_up and name not in own else found[0]

    return _LAYER.sub(renamed, xml)
