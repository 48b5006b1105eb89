"""Programs of torch.export come in as graphs that compute what torch computes."""

from __future__ import annotations

import logging
from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
import torch

from fakes.exported_programs import NETWORKS, exported, network, saved_program
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.onnx_import import BATCH_WAS_FIXED, OnnxImporter
from tightfit_service.adapters.formats.pt2_batch import batch_axis
from tightfit_service.adapters.formats.pt2_import import Pt2Importer
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.training.module import build_module, write_back
from tightfit_service.application.ports import ImportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidModelError, ParityError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

importer = Pt2Importer()
CASES = [
    ("residual", True),
    pytest.param("attention", False, marks=pytest.mark.long),
    ("two inputs", False),
    pytest.param("recurrent", False, marks=pytest.mark.long),
    ("two inputs", True),
]


@cache
def archive(name: str, *, is_free: bool) -> bytes:
    return exported(name, is_free=is_free)


@cache
def imported(name: str, *, is_free: bool) -> ImportedModel:
    return importer.import_model(archive(name, is_free=is_free))


def samples(name: str, count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.uniform(-1, 1, (count, *shape)).astype(np.float32) for shape in NETWORKS[name][1]]


def kinds(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


@pytest.mark.parametrize(("name", "is_free"), CASES)
def test_networks_compute_what_torch_computes(name: str, *, is_free: bool) -> None:
    model = imported(name, is_free=is_free)
    assert model.source_format is ModelFormat.PT2
    assert not model.is_quantized
    assert model.warnings == (() if is_free else (BATCH_WAS_FIXED,))
    assert {i.shape[0] for i in (*model.inputs, *model.outputs)} == {-1}
    inputs = samples(name)
    data = archive(name, is_free=is_free)
    assert importer.check_parity(data, model.graph, inputs) < 1e-5
    with torch.no_grad():
        expected = network(name)(*map(torch.from_numpy, inputs))
    expected = list(expected.values()) if isinstance(expected, dict) else [expected]
    found = build_module(model.graph).eval()(*map(torch.from_numpy, inputs))
    found = list(found) if isinstance(found, tuple) else [found]
    for want, got in zip(expected, found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class TestResidual:
    model = property(lambda _: imported("residual", is_free=True))

    def test_batch_norm_stays_for_training_and_dropout_goes(self) -> None:
        found = kinds(self.model.graph)
        assert found["BatchNormalization"] == 4
        assert found["Conv"] == 5
        assert set(found) == {
            "Conv",
            "BatchNormalization",
            "Relu",
            "Clip",
            "Add",
            "HardSwish",
            "ReduceMean",
            "Reshape",
            "Gemm",
        }

    def test_nodes_are_named_after_modules_and_inputs_after_arguments(self) -> None:
        assert [(item.name, item.shape) for item in self.model.inputs] == [("image", (-1, 3, 8, 8))]
        names = {node.name for node in onnx.load_from_string(self.model.graph).graph.node}
        assert {"stem.0/Conv", "stem.1/BatchNormalization", "depthwise.4/HardSwish"} <= names
        assert {"Relu", "Relu_2", "head/Gemm"} <= names

    def test_counts_are_those_of_the_network(self) -> None:
        net = network("residual")
        weights = sum(item.numel() for item in net.parameters())
        statistics = sum(b.numel() for n, b in net.named_buffers() if "running" in n)
        # A bias of zeros stands at each of the convolutions that have none.
        assert weights + statistics <= self.model.parameter_count <= weights + statistics + 64
        profile = OnnxGraphInspector().profile(self.model.graph)
        products = 64 * 27 * 8 + 2 * 64 * 9 * 96 + 16 * 9 * 8 + 16 * 8 * 16 + 16 * 5
        assert profile.macs == self.model.macs == products

    def test_channels_can_be_pruned(self) -> None:
        pruning = StructuredPruningPass()
        groups = pruning.space(self.model.graph).groups
        # The residual stream with the depthwise layer on it, the block's inside, the last features.
        assert len(groups) == 3
        pruned = pruning.apply(self.model.graph, {group.group_id: [*range(4)] for group in groups})
        assert OnnxImporter().import_model(pruned).macs < self.model.macs / 2

    def test_training_moves_weights_and_statistics(self) -> None:
        module = build_module(self.model.graph).train()
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        (inputs,) = samples("residual", 8)
        before = [mean.clone() for mean, _ in module.statistics()]
        assert len(before) == 4
        module(torch.from_numpy(inputs)).square().mean().backward()
        optimiser.step()
        assert all(
            not torch.equal(a, b) for a, (b, _) in zip(before, module.statistics(), strict=True)
        )
        trained = write_back(self.model.graph, module)
        with pytest.raises(ParityError, match="differs from the program's") as caught:
            importer.check_parity(archive("residual", is_free=True), trained, [inputs])
        # the very first layer was trained as well
        assert 'first node that differs is "stem.0/conv2d" (conv2d.default)' in caught.value.message

    @pytest.mark.parametrize(
        "exporter",
        [
            OnnxExporter(quantizer=StaticQuantizationPass()),
            pytest.param(TfliteExporter(), marks=pytest.mark.slow),
        ],
        ids=["onnx", "tflite"],
    )
    def test_int8_files_are_close(self, exporter: OnnxExporter | TfliteExporter) -> None:
        (stored,) = samples("residual", 32)
        found = exporter.export(
            self.model.graph,
            calibration=Samples(stored=stored, labels=None),
            settings=QuantizationSettings(),
            metadata={},
        )
        assert found.parity["noise_ratio"] < 0.02


def test_heads_of_attention_can_be_pruned() -> None:
    graph = imported("attention", is_free=False).graph
    pruning = StructuredPruningPass()
    groups = pruning.space(graph).groups
    assert groups
    pruned = pruning.apply(graph, {groups[0].group_id: [0]})
    before, after = (OnnxGraphInspector().profile(item).macs for item in (graph, pruned))
    assert after < before


@pytest.mark.slow
def test_recurrent_layers_stay_one_node_each() -> None:
    found = kinds(imported("recurrent", is_free=False).graph)
    assert (found["GRU"], found["LSTM"]) == (1, 1)


def test_inputs_are_in_the_order_of_forward() -> None:
    model = imported("two inputs", is_free=True)
    assert [item.name for item in model.inputs] == ["motion", "sound"]
    assert [item.shape for item in model.outputs] == [(-1, 3), (-1, 1)]
    data = archive("two inputs", is_free=True)
    with pytest.raises(InvalidModelError, match="has 2 inputs, 1 were given"):
        importer.check_parity(data, model.graph, samples("two inputs")[:1])


@pytest.mark.parametrize(
    ("source", "axis", "target", "expected"),
    [
        ((1, 16, 1, 1), 0, (1, 16), 0),
        ((1, 8, 4, 4), 0, (1, 2, 4, 4, 4), 0),
        ((5, 1, 8), 1, (5, 2, 4), 1),
        ((2, 5, 4), 0, (1, 2, 5, 4), 0),
        ((5, 1, 2, 4), 1, (5, 8), 0),
        ((5, 8), 0, (5, 1, 8), 1),
        ((1, 5, 8), 0, (5, 8), 0),
        ((5, 8), 0, (1, 5, 8), 0),
        ((1, 2, 2, 4, 4, 8), 0, (4, 16, 8), 0),
        ((4, 16, 8), 0, (1, 2, 2, 4, 4, 8), 0),
        ((5, 1, 8), 1, (5, 8), 0),
        ((2, 1, 6), 1, (12,), 0),
    ],
)
def test_the_batch_is_followed_through_views(
    source: tuple[int, ...], axis: int, target: tuple[int, ...], expected: int
) -> None:
    assert batch_axis(source, axis, target) == expected


@pytest.mark.parametrize(
    ("net", "inputs", "what", "remedy"),
    [
        (network("dense"), torch.rand(4, 4), 'input "x" is fixed at 4', "batch 1, or with a free"),
        (network("dense").double(), torch.rand(1, 4).double(), '"x" is float64', "model.float()"),
        (network("dense").half(), torch.rand(1, 4).half(), '"x" is float16', "model.float()"),
        (torch.nn.Embedding(9, 4), torch.ones(1, 4).long(), '"input" is int64', "model.float()"),
        (torch.nn.ReLU(), torch.tensor(1.0), "single number", "free batch"),
    ],
    ids=["batch 4", "float64", "float16", "int64", "scalar"],
)
def test_inputs_of_other_kinds_are_refused_by_name(
    net: torch.nn.Module, inputs: torch.Tensor, what: str, remedy: str
) -> None:
    with pytest.raises(InvalidModelError) as caught:
        importer.import_model(saved_program(net, (inputs,)))
    assert what in caught.value.message
    assert caught.value.field == "model"
    assert remedy in caught.value.remedy


def test_only_the_batch_may_be_free() -> None:
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    data = saved_program(torch.nn.ReLU(), (torch.rand(2, 5),), dynamic_shapes=(sizes,))
    with pytest.raises(InvalidModelError, match='axis 1 of input "input" is free'):
        importer.import_model(data)


def test_an_import_prints_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = exported("dense")
    capfd.readouterr()
    caplog.clear()
    importer.import_model(data)
    assert capfd.readouterr() == ("", "")
    assert [item for item in caplog.records if item.levelno >= logging.INFO] == []
