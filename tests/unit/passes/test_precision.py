"""Tests of precision per node: what is offered, what it costs, and that the graph stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.networks import NETWORKS
from tightfit_service.application.ports import PassContext
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, NumberFormat, Runtime
from tightfit_service.domain.network import Alternative
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.precision import PrecisionPass, node_formats, rounding_errors

PASS = PrecisionPass()
ALL = tuple(NumberFormat)


def target(*formats: NumberFormat) -> HardwareSpec:
    return HardwareSpec(
        name="board", display_name="Board", core="cortex-m4", clock_mhz=100.0,
        memory=Memory(ram_bytes=1, flash_bytes=1), runtime=Runtime(name="tflm"),
        number_formats=formats,
    )  # fmt: skip


def graph_of(name: str) -> bytes:
    return NETWORKS[name](0).SerializeToString()


def samples_for(name: str, count: int = 24) -> Samples:
    model = NETWORKS[name](0)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    stored = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
    return Samples(stored=stored, labels=None)


def offered(name: str, *formats: NumberFormat, **options: Any) -> dict[str, list[Alternative]]:
    graph = graph_of(name)
    profile = OnnxGraphInspector().profile(graph)
    found = PASS.alternatives(graph, profile, target(*formats), **options)
    return {node: list(items) for node, items in found.items()}


def test_every_layer_is_offered_what_the_target_has() -> None:
    found = offered("residual", NumberFormat.INT4, NumberFormat.INT8, NumberFormat.INT16X8)
    assert set(found) == {"stem", "a.conv1", "a.conv2", "b.conv1", "b.conv2", "b.down", "fc"}
    for node, items in found.items():
        assert [item.label for item in items] == ["int16 activations", "int4 weights"]
        assert [item.parameters for item in items] == [
            {"number_format": "int16x8"}, {"number_format": "int4"}
        ]  # fmt: skip
        assert {item.node for item in items} == {node}
        assert {item.pass_name for item in items} == {"precision"}
        bits = [(op.weight_bits, op.activation_bits) for item in items for op in item.operators]
        assert bits == [(8, 16), (4, 8)]


def test_operators_differ_in_their_bits_only() -> None:
    graph = graph_of("depthwise")
    profile = OnnxGraphInspector().profile(graph)
    own = {op.node: op for op in profile.operators}
    for items in PASS.alternatives(graph, profile, target(*ALL)).values():
        for item in items:
            (operator,) = item.operators
            assert operator.macs == own[item.node].macs
            assert operator.fused == own[item.node].fused
            assert operator.weight_count == own[item.node].weight_count


@pytest.mark.parametrize("with_samples", [False, True])
@pytest.mark.parametrize("name", ["residual", "depthwise", "upsampling", "mlp"])
def test_errors_grow_as_bits_shrink(name: str, with_samples: bool) -> None:
    context = PassContext(calibration=samples_for(name)) if with_samples else None
    for items in offered(name, *ALL, context=context).values():
        errors = {item.parameters["number_format"]: item.error for item in items}
        assert errors["float32"] == 0.0
        assert 0.0 < errors["float16"] < errors["bfloat16"] < 1e-4
        assert errors["bfloat16"] < errors["int4"]
        assert errors["int16x8"] < 0.1 * errors["int4"]
        assert errors["int4"] < 0.1


def test_int8_outputs_cost_more_than_int16_outputs() -> None:
    graph, samples = graph_of("residual"), samples_for("residual")
    narrow = rounding_errors(graph, NumberFormat.INT8, calibration=samples)
    wide = rounding_errors(graph, NumberFormat.INT16X8, calibration=samples)
    assert narrow.keys() == wide.keys()
    assert all(narrow[node] > wide[node] for node in narrow)
    weights = rounding_errors(graph, NumberFormat.INT8)
    assert weights == rounding_errors(graph, NumberFormat.INT16X8)


def test_targets_without_int8_keep_their_first_format() -> None:
    found = offered("mlp", NumberFormat.FLOAT16, NumberFormat.FLOAT32)
    assert {item.label for items in found.values() for item in items} == {"float16"}


def test_the_graph_stays_as_it_is() -> None:
    graph = graph_of("mlp")
    parameters = {"nodes": {"fc1": {"number_format": "int4"}}}
    assert PASS.apply(graph, parameters, PassContext()) == graph
    assert node_formats(parameters) == {"fc1": NumberFormat.INT4}
    assert node_formats({}) == {}


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"bits": 4}, "parameters.bits"),
        ({"nodes": ["fc1"]}, "parameters.nodes"),
        ({"nodes": {"fc9": {"number_format": "int4"}}}, "parameters.nodes[fc9]"),
        ({"nodes": {"fc1": {}}}, "parameters.nodes[fc1].number_format"),
        ({"nodes": {"fc1": "int4"}}, "parameters.nodes[fc1].number_format"),
        ({"nodes": {"fc1": {"number_format": "int3"}}}, "parameters.nodes[fc1].number_format"),
        ({"nodes": {"fc1": {"number_format": 4}}}, "parameters.nodes[fc1].number_format"),
        (
            {"nodes": {"fc1": {"number_format": "int4", "rank": 2}}},
            "parameters.nodes[fc1].rank",
        ),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PASS.check(graph_of("mlp"), parameters)
    assert caught.value.field == field
    assert caught.value.remedy


def test_reasons_are_told() -> None:
    assert PASS.applies_to(graph_of("mlp"), target(*ALL)) == ()
    assert "one number format" in PASS.applies_to(graph_of("mlp"), target(NumberFormat.INT8))[0]
