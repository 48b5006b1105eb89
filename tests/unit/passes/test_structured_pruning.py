"""Structured pruning removes exactly what it says: proven against networks with masked consumers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper

from architectures.exactness import with_copies
from fakes.exporter_habits import traced_flatten
from fakes.networks import NETWORKS, Builder, random_inputs
from fakes.odd_networks import ODD_NETWORKS, random_network
from tightfit_service.domain.errors import InvalidModelError, InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import PruningSpace
from tightfit_service.graph.channel_groups import unit_groups
from tightfit_service.graph.index_propagation import propagate
from tightfit_service.graph.model_file import load_model, save_model
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.graph.propagation_state import SliceRole
from tightfit_service.graph.structure import initializers, set_initializer
from tightfit_service.passes.structured_pruning import StructuredPruningPass

Keep = dict[str, list[int]]
ALL_NETWORKS = {**NETWORKS, **ODD_NETWORKS}
# What is left of the channels changes their mean and variance: only copies can be removed exactly.
NORMALISED = ("sequence",)
pruning = StructuredPruningPass()


def run(data: bytes, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def random_keep(space: PruningSpace, seed: int) -> Keep:
    rng = np.random.default_rng(seed)
    keep: Keep = {}
    for group in space.groups:
        count = int(rng.integers(1, group.unit_count + 1))
        keep[group.group_id] = sorted(rng.choice(group.unit_count, count, replace=False).tolist())
    return keep


def masked(data: bytes, keep: Mapping[str, Sequence[int]]) -> bytes:
    """Return the graph at full width in which nothing reads the removed units any more."""
    model = load_model(data)
    state = propagate(model)
    removed = [
        root
        for group in unit_groups(state).groups
        for root in np.delete(group.roots, list(keep[group.channels.group_id])).tolist()
    ]
    values = initializers(model)
    for item in state.slices:
        if item.role is SliceRole.INPUT:
            weight = np.moveaxis(values[item.parameter].copy(), item.axis, 0)
            weight[np.isin(state.classes.roots(item.labels), removed)] = 0
            values[item.parameter] = np.moveaxis(weight, 0, item.axis)
            set_initializer(model, item.parameter, values[item.parameter])
    return save_model(model)


def assert_exact(model: ModelProto, keep: Keep, *, seed: int = 0) -> None:
    data = model.SerializeToString()
    pruned = pruning.apply(data, keep)
    feeds = random_inputs(model, seed=seed)
    for expected, found in zip(run(masked(data, keep), feeds), run(pruned, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def assert_widths_hold(model: ModelProto, keep: Keep) -> None:
    data = model.SerializeToString()
    space = pruning.space(data)
    kept = {name: len(units) for name, units in keep.items()}
    profile = OnnxGraphInspector().profile(pruning.apply(data, keep))
    for operator in profile.operators:
        if operator.node in space.input_widths:
            width = space.input_widths[operator.node].channels(kept)
            assert operator.in_channels == width, operator
        if operator.node in space.output_widths:
            width = space.output_widths[operator.node].channels(kept)
            assert operator.out_channels == width, operator
    for name, shape in profile.tensors.items():
        if name in space.tensor_widths:
            assert shape[1] == space.tensor_widths[name].channels(kept), name


@pytest.mark.parametrize("network", ALL_NETWORKS.values(), ids=ALL_NETWORKS.keys())
class TestEveryNetwork:
    def test_pruned_equals_masked(self, network: Callable[[int], ModelProto]) -> None:
        model = network(0)
        space = pruning.space(model.SerializeToString())
        for seed in range(2 * (network.__name__ not in NORMALISED)):
            assert_exact(model, random_keep(space, seed), seed=seed)
        data, keep = with_copies(model.SerializeToString())
        feeds = random_inputs(model)
        for expected, found in zip(
            run(data, feeds), run(pruning.apply(data, keep), feeds), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())

    def test_one_unit_of_each_group_is_enough(self, network: Callable[[int], ModelProto]) -> None:
        model = network(1)
        space = pruning.space(model.SerializeToString())
        keep = {group.group_id: [group.unit_count - 1] for group in space.groups}
        if network.__name__ not in NORMALISED:
            assert_exact(model, keep)
        if network.__name__ != "attention":  # of one head left, channels are what its sizes tell
            assert_widths_hold(model, keep)

    def test_widths_are_those_of_the_pruned_graph(
        self, network: Callable[[int], ModelProto]
    ) -> None:
        model = network(2)
        assert_widths_hold(model, random_keep(pruning.space(model.SerializeToString()), 0))

    def test_space_names_nodes_of_the_profile_and_repeats(
        self, network: Callable[[int], ModelProto]
    ) -> None:
        data = network(0).SerializeToString()
        space = pruning.space(data)
        assert space == pruning.space(data)
        profile = OnnxGraphInspector().profile(data)
        nodes = {operator.node for operator in profile.operators}
        assert set(space.input_widths) | set(space.output_widths) <= nodes
        assert {item.node for item in space.frozen} <= {n.name for n in network(0).graph.node}
        groups = [group.group_id for group in space.groups]
        assert len(set(groups)) == len(groups)
        full = {group.group_id: group.unit_count for group in space.groups}
        for operator in profile.operators:
            if operator.node in space.output_widths:
                assert space.output_widths[operator.node].channels(full) == operator.out_channels

    def test_keeping_all_changes_no_output(self, network: Callable[[int], ModelProto]) -> None:
        model = network(0)
        data = model.SerializeToString()
        feeds = random_inputs(model)
        for before, after in zip(
            run(data, feeds), run(pruning.apply(data, {}), feeds), strict=True
        ):
            np.testing.assert_array_equal(before, after)


@given(seed=st.integers(0, 2**31), choice=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_random_networks_are_pruned_exactly(seed: int, choice: int) -> None:
    model = random_network(seed)
    keep = random_keep(pruning.space(model.SerializeToString()), choice)
    assert_exact(model, keep, seed=choice)
    assert_widths_hold(model, keep)


def groups_of(model: ModelProto) -> dict[str, int]:
    space = pruning.space(model.SerializeToString())
    return {group.group_id: group.unit_count for group in space.groups}


def reasons_of(model: ModelProto) -> dict[str, tuple[int, str]]:
    space = pruning.space(model.SerializeToString())
    return {item.node: (item.channel_count, item.reason) for item in space.frozen}


class TestSpace:
    def test_residual_stages_share_their_channels(self) -> None:
        assert groups_of(NETWORKS["residual"](0)) == {
            "stem": 8,
            "a.conv1": 6,
            "b.conv1": 10,
            "b.conv2": 12,
        }

    def test_a_unit_spans_the_stages_that_padded_shortcuts_join(self) -> None:
        space = pruning.space(NETWORKS["padded_shortcut"](0).SerializeToString())
        stem = space.groups[0]
        assert stem.group_id == "stem"
        assert stem.unit_count == 4
        assert stem.producers == ("stem", "s1.conv2", "s2.conv2")
        assert stem.consumers == ("s1.conv1", "s2.conv1", "fc")
        # what is left of 16 channels once 4 come from the stem and 4 from the first stage
        assert groups_of(NETWORKS["padded_shortcut"](0))["s2.conv2"] == 8

    def test_flatten_gives_each_channel_all_its_positions(self) -> None:
        space = pruning.space(NETWORKS["plain_cnn"](0).SerializeToString())
        (term,) = space.input_widths["fc1"].terms
        assert (term.group_id, term.multiplier) == ("conv2", 16)

    def test_channels_of_different_standing_form_groups_of_their_own(self) -> None:
        assert groups_of(NETWORKS["split_branches"](0)) == {
            "stem": 4,
            "stem#2": 6,
            "branch": 6,
            "mix": 8,
        }

    def test_groups_of_a_convolution_stay_equally_wide(self) -> None:
        assert groups_of(NETWORKS["channel_shuffle"](0)) == {"stem": 6, "group1": 3, "group2": 3}

    def test_shared_weights_are_pruned_once_for_all_users(self) -> None:
        model = ODD_NETWORKS["shared_weights"](0)
        pruned = load_model(pruning.apply(model.SerializeToString(), {"left.conv": [0, 2]}))
        shapes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
        assert shapes["shared.w"] == [2, 3, 3, 3]
        assert shapes["shared.b"] == [2]

    def test_a_head_of_attention_is_a_unit(self) -> None:
        space = pruning.space(ODD_NETWORKS["attention"](0).SerializeToString())
        heads = space.groups[0]
        assert (heads.group_id, heads.unit_count) == ("q", 2)
        assert heads.producers == ("q", "k", "v")
        assert heads.consumers == ("proj",)
        (term,) = space.input_widths["proj"].terms
        assert (term.group_id, term.multiplier) == ("q", 4)

    def test_hidden_units_leave_all_gates(self) -> None:
        model = ODD_NETWORKS["recurrent"](0)
        assert groups_of(model) == {"conv": 5, "lstm": 4, "fc1": 6}
        pruned = load_model(
            pruning.apply(model.SerializeToString(), {"lstm": [1], "conv": [0, 1, 2]})
        )
        shapes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
        assert (shapes["lstm.w"], shapes["lstm.r"]) == ([1, 4, 3], [1, 4, 1])


class TestFrozen:
    def test_output_channels_stay(self) -> None:
        reasons = reasons_of(NETWORKS["plain_cnn"](0))
        assert reasons == {"fc2": (4, "its channels are the model's output")}

    @pytest.mark.parametrize(
        ("network", "node", "count", "reason"),
        [
            ("unknown_operator", "conv2", 8, "LRN has no pruning rule"),
            ("spatial_attention", "gate", 1, "Mul broadcasts it over other channels"),
            ("batch_in_channels", "stem", 6, "its channels are folded into the batch dimension"),
            ("half_shared_weight", "conv", 4, 'its parameter "w" is used elsewhere as a whole'),
        ],
    )
    def test_reason_is_told(self, network: str, node: str, count: int, reason: str) -> None:
        assert reasons_of(ALL_NETWORKS[network](0))[node] == (count, reason)

    def test_computed_reshape_target_freezes(self) -> None:
        # the importer folds such chains; a graph that still has one must not be broken
        reasons = reasons_of(traced_flatten(0))
        assert reasons["conv1"] == (6, "Reshape to a computed shape has no pruning rule")

    def test_layer_with_one_channel_has_no_choice(self) -> None:
        b = Builder()
        x = b.conv("one", b.input("input", (3, 4, 4)), 3, 1)
        model = b.model({b.head(x, 1): (5,)})
        assert groups_of(model) == {}
        assert reasons_of(model)["one"][0] == 1


class TestApply:
    def test_result_is_smaller_and_names_stay(self) -> None:
        model = NETWORKS["residual"](0)
        data = model.SerializeToString()
        pruned = pruning.apply(data, {"stem": [1, 3, 4], "b.conv1": [0]})
        assert [n.name for n in load_model(pruned).graph.node] == [n.name for n in model.graph.node]
        before, after = (OnnxGraphInspector().profile(g) for g in (data, pruned))
        assert after.macs < before.macs
        assert after.weight_count < before.weight_count

    def test_same_choice_gives_same_bytes(self) -> None:
        data = NETWORKS["depthwise"](0).SerializeToString()
        keep = random_keep(pruning.space(data), 3)
        assert pruning.apply(data, keep) == pruning.apply(data, keep)

    def test_argument_is_left_alone_and_order_of_units_does_not_matter(self) -> None:
        data = NETWORKS["inception"](0).SerializeToString()
        assert pruning.apply(data, {"squeeze": [4, 0, 2]}) == pruning.apply(
            data, {"squeeze": [0, 2, 4, 4]}
        )

    def test_pruned_graph_can_be_pruned_again(self) -> None:
        model = NETWORKS["padded_shortcut"](0)
        data = model.SerializeToString()
        once = pruning.apply(data, random_keep(pruning.space(data), 0))
        space = pruning.space(once)
        again = pruning.apply(once, {g.group_id: [0] for g in space.groups})
        assert all(np.isfinite(value).all() for value in run(again, random_inputs(model)))

    @pytest.mark.parametrize(
        ("keep", "field"),
        [
            ({"nowhere": [0]}, "keep[nowhere]"),
            ({"stem": []}, "keep[stem]"),
            ({"stem": [8]}, "keep[stem]"),
            ({"stem": [-1]}, "keep[stem]"),
        ],
    )
    def test_bad_choice_is_refused(self, keep: Keep, field: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            pruning.apply(NETWORKS["residual"](0).SerializeToString(), keep)
        assert caught.value.field == field
        assert caught.value.remedy

    def test_no_graph_is_refused(self) -> None:
        with pytest.raises(InvalidModelError):
            pruning.space(b"no graph")


def test_operator_of_a_runtime_behind_pruned_layers() -> None:
    b = Builder()
    x = b.conv("one", b.input("input", (3, 4, 4)), 3, 4)
    x = b.conv("two", x, 4, 6)
    model = b.model({x: (6, 4, 4)})
    model.graph.node.append(
        helper.make_node("QuickGelu", [x], ["out"], name="act", domain="com.microsoft")
    )
    model.graph.output[0].name = "out"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert reasons_of(model)["two"] == (6, "QuickGelu has no pruning rule")
    assert_exact(model, {"one": [1, 2]})


def some_target() -> HardwareSpec:
    return HardwareSpec.__new__(HardwareSpec)


def test_applies_where_there_is_something_to_remove() -> None:
    data = NETWORKS["residual"](0).SerializeToString()
    assert pruning.applies_to(data, some_target()) == ()


def test_tells_why_it_cannot_help() -> None:
    data = ODD_NETWORKS["half_shared_weight"](0).SerializeToString()
    reasons = pruning.applies_to(data, some_target())
    assert reasons[0] == 'conv: its parameter "w" is used elsewhere as a whole'


def test_work_falls_as_widths_say() -> None:
    data = NETWORKS["mlp"](0).SerializeToString()
    profile = OnnxGraphInspector().profile(pruning.apply(data, {"fc1": [0, 1, 2], "fc2": [4]}))
    assert [op.macs for op in profile.operators if op.macs] == [6 * 3, 3 * 1, 1 * 3]
    assert math.isclose(profile.weight_count, 6 * 3 + 3 + 3)
