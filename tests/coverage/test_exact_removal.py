"""What index propagation says belongs together does: in every architecture, at the widths it predicts."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from architectures import ARCHITECTURES, FAST, Architecture
from architectures.exactness import with_copies
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.structured_pruning import StructuredPruningPass

pruning = StructuredPruningPass()
_CASES = [
    pytest.param(name, marks=pytest.mark.slow if name in FAST else pytest.mark.long)
    for name in ARCHITECTURES
]
_WITHOUT_RULE = {
    "caffe_alexnet": {"LRN has no pruning rule"},
    "cbam": {"Mul broadcasts it over other channels"},
    "crnn": {"Mul broadcasts it over other channels"},
    "detector_top_boxes": {"GatherElements has no pruning rule"},
    "spatial_transformer": {"GridSample has no pruning rule"},
}
"""Why some networks have channels, other than their outputs, that stay."""


@pytest.fixture(params=_CASES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def _run(graph: bytes, architecture: Architecture) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.normal(size=(2, *shape)).astype(np.float32)
        for value, shape in zip(session.get_inputs(), architecture.shapes, strict=True)
    }
    return [np.asarray(value) for value in session.run(None, feeds)]


def test_copies_that_nothing_reads_can_go(architecture: Architecture) -> None:
    graph, keep = with_copies(OnnxImporter().import_model(architecture.export()).graph)
    space = pruning.space(graph)
    assert keep
    reasons = {item.reason for item in space.frozen} - {"its channels are the model's output"}
    assert reasons == _WITHOUT_RULE.get(architecture.name, set())
    pruned = pruning.apply(graph, keep)
    expected, found = _run(graph, architecture), _run(pruned, architecture)
    for before, after in zip(expected, found, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * abs(before).max())
    kept = {group.group_id: group.unit_count for group in space.groups}
    kept.update({name: len(units) for name, units in keep.items()})
    profile = OnnxGraphInspector().profile(pruned)
    for operator in profile.operators:
        for widths, channels in (
            (space.input_widths, operator.in_channels),
            (space.output_widths, operator.out_channels),
        ):
            if operator.node in widths:
                assert widths[operator.node].channels(kept) == channels, operator
    for name, shape in profile.tensors.items():
        if name in space.tensor_widths:
            assert shape[1] == space.tensor_widths[name].channels(kept), name
