"""Archives that cannot be taken in are refused by name, before torch sees or pickle reads anything."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from fakes.exported_programs import (
    archive_of,
    edited,
    exported,
    members,
    network,
    packed,
    saved_program,
)
from tightfit_service.adapters.formats.pt2_import import Pt2Importer
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.graph.model_file import ModelLimits

WEIGHTS = "data/weights/model_weights_config.json"


class NoUnpicklingError(Exception):
    """Something was unpickled."""


@pytest.fixture(autouse=True)
def _no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NoUnpicklingError

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(torch, "load", refuse)


@cache
def dense() -> bytes:
    return exported("dense")


def refused(data: bytes, limits: ModelLimits | None = None) -> InvalidModelError:
    chosen = Pt2Importer() if limits is None else Pt2Importer(limits=limits)
    with pytest.raises(InvalidModelError) as caught:
        chosen.import_model(data)
    assert caught.value.field == "model"
    assert caught.value.remedy
    return caught.value


def program(change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return the archive of the dense network with its graph module changed."""
    return edited(dense(), lambda document: change(document["graph_module"]))


def without(name: str) -> bytes:
    return packed({k: v for k, v in members(dense()).items() if k != name})


def added(name: str, content: bytes = b"x") -> bytes:
    return packed({**members(dense()), name: content})


def encrypted() -> bytes:
    raw = bytearray(dense())
    raw[raw.index(b"PK\x01\x02", raw.rindex(b"sample_inputs/model.pt")) + 8] |= 1
    return bytes(raw)


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        (lambda: b"no archive at all", "damaged or truncated", "torch.export.save"),
        (lambda: dense()[:-30], "damaged or truncated", "upload all of it"),
        (lambda: dense()[: len(dense()) // 2], "damaged or truncated", "upload all of it"),
        (lambda: dense().replace(b'"nodes"', b'"bodes"'), "damaged or truncated", "upload all"),
        (encrypted, "encrypted", "save it again"),
        (lambda: packed({"a": b"b"}), "did not write", "torch.export.save"),
        (lambda: packed({"net.onnx": b"b"}), "did not write", 'send "net/net.onnx"'),
        (lambda: packed({"w.npy": b"b"}), "NumPy archive", "torch.export.save"),
        (lambda: without("models/model.json"), "holds 0 programs", "save it again"),
        (lambda: added("models/other.json"), "holds 2 programs", "a file of its own"),
        (lambda: added("models/model.json", b"{"), "is no JSON", "save it again"),
        (lambda: added("models/model.json", b"[" * 100_000), "is no JSON", "save it again"),
        (lambda: added("models/model.json", b"[]"), "not what torch.export.save writes", "again"),
        (lambda: added("models/model.json", b"{}"), "not what torch.export.save writes", "again"),
        (lambda: added("byteorder", b"big"), "big-endian", "another"),
        (lambda: added("data/aotinductor/model/code.so"), "machine code", "save it again"),
        (lambda: added("serialized_exported_program.json"), "torch 2.7 or older", "torch 2.8"),
        (lambda: added("data/weights/model.pt"), "torch 2.7 or older", "torch 2.8"),
        (lambda: without(WEIGHTS), "has no", "save it again"),
        (lambda: without("data/weights/weight_0"), "has no", "save it again"),
    ],
)
def test_archives_of_other_kinds_are_refused(
    make: Callable[[], bytes], what: str, remedy: str
) -> None:
    error = refused(make())
    assert what in error.message
    assert remedy in error.remedy


def test_a_file_whose_members_stand_at_the_root_is_of_torch_2_7() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickle.dumps([]))
    assert "torch 2.7 or older" in refused(file.getvalue()).message


def test_a_member_that_stands_twice_is_refused() -> None:
    file = io.BytesIO(packed(members(dense())))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("net/models/model.json", "{}")
    assert "twice" in refused(file.getvalue()).message


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (ModelLimits(file_bytes=100), "more than the 100 allowed"),
        (ModelLimits(tensor_count=5), "more than 5 members"),
        (ModelLimits(tensor_elements=11), 'tensor "layer.weight" has 12 elements'),
        (ModelLimits(rank=1), "shape of layer.weight"),
        (ModelLimits(node_count=1), "more than 1 nodes"),
    ],
)
def test_what_exceeds_a_limit_is_refused(limits: ModelLimits, what: str) -> None:
    assert what in refused(dense(), limits).message


def test_archives_that_unpack_to_too_much_are_refused_unpacked() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/archive_format", bytes(1 << 22))
    assert len(file.getvalue()) < 1 << 14
    error = refused(file.getvalue(), ModelLimits(file_bytes=1 << 20))
    assert "unpacks to 4194304 bytes" in error.message


class TestTensors:
    @staticmethod
    def weights(**changes: Any) -> bytes:
        def change(document: dict[str, Any]) -> None:
            entry = document["config"]["layer.weight"]
            for key, value in changes.items():
                (entry if key in entry else entry["tensor_meta"])[key] = value

        return edited(dense(), change, member=WEIGHTS)

    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"use_pickle": True}, "stored as a pickle"),
            ({"tensor_meta": None}, "stored as a pickle"),
            ({"path_name": "../../etc/passwd"}, "has no"),
            ({"path_name": "a b"}, "path of layer.weight"),
            ({"path_name": 3}, "path of layer.weight"),
            ({"dtype": 9}, "element type 9"),
            ({"dtype": "7"}, "element type"),
            ({"sizes": [{"as_int": 400}, {"as_int": 4}]}, "announces more elements"),
            ({"sizes": [{"as_int": 1 << 40}, {"as_int": 1 << 40}]}, "elements, more than"),
            ({"sizes": [{"as_int": -3}, {"as_int": 4}]}, "not what torch.export.save writes"),
            ({"sizes": [{"as_expr": {"expr_str": "x"}}]}, "not what torch.export.save writes"),
            ({"strides": [{"as_int": 1 << 30}, {"as_int": 1}]}, "announces more elements"),
            ({"storage_offset": {"as_int": 1}}, "announces more elements"),
            ({"strides": []}, "shape of layer.weight"),
        ],
    )
    def test_what_does_not_fit_its_bytes_is_refused(
        self, changes: dict[str, Any], what: str
    ) -> None:
        assert what in refused(self.weights(**changes)).message

    def test_names_that_are_code_are_refused(self) -> None:
        def change(document: dict[str, Any]) -> None:
            document["config"]["a;import os"] = document["config"].pop("layer.weight")

        assert "names are words" in refused(edited(dense(), change, member=WEIGHTS)).message

    def test_tensors_that_overlap_are_counted_each(self) -> None:
        def change(document: dict[str, Any]) -> None:
            entry = document["config"]["layer.weight"]
            for dims, step in (("sizes", 1 << 18), ("strides", 0)):
                entry["tensor_meta"][dims] = [{"as_int": step}]
            document["config"].update({f"w{index}": entry for index in range(9)})

        limits = ModelLimits(file_bytes=1 << 22)
        error = refused(edited(dense(), change, member=WEIGHTS), limits)
        assert "tensors of the .pt2 archive take" in error.message


class TestPrograms:
    @pytest.mark.parametrize(
        "text",
        [
            "__import__('os').system('true')",
            "Symbol('s0').__class__",
            "Symbol('s0', positive=print(1))",
            "(lambda: 0)()",
            "[s0 for s0 in ()]",
            "9**9**9",
            "Function('open')('f')",
            "Symbol('a; b')",
            "Integer(" * 300 + "1" + ")" * 300,
        ],
    )
    def test_expressions_that_are_no_arithmetic_never_reach_sympy(self, text: str) -> None:
        def change(document: dict[str, Any]) -> None:
            for size in document["graph"]["tensor_values"]["x"]["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

        message = refused(program(change)).message
        assert "plain arithmetic" in message or "an expression in models/model.json" in message

    @pytest.mark.parametrize(
        ("target", "what"),
        [
            ("os.system", "no operator of ATen"),
            ("builtins.eval", "no operator of ATen"),
            ("torch.ops.aten.linear.default\n", "no operator of ATen"),
            ("torch.ops.mylib.custom.default", "no operator of ATen"),
            ("torch.ops.higher_order.cond", "no operator of ATen"),
            ("torch.ops.aten.__class__.default", "no operator of ATen"),
            ("torch.ops.aten.from_file.default", "no network for a device has"),
            ("torch.ops.aten.rand_like.default", "no network for a device has"),
            ("torch.ops.aten.no_such_thing.default", "no operator of ATen"),
            (7, "no operator of ATen"),
        ],
    )
    def test_operators_other_than_those_of_networks_are_refused(
        self, target: object, what: str
    ) -> None:
        def change(document: dict[str, Any]) -> None:
            document["graph"]["nodes"][0]["target"] = target

        assert what in refused(program(change)).message

    def test_names_that_are_code_are_refused(self) -> None:
        def change(document: dict[str, Any]) -> None:
            document["graph"]["nodes"][0]["name"] = "a=print(1)#"

        assert "no name that torch gives" in refused(program(change)).message

    def test_guards_and_tree_specifications_are_left_out(self) -> None:
        """torch would run the first, and import what the second names."""

        def change(document: dict[str, Any]) -> None:
            document["guards_code"] = ["print('executed')"]
            call = document["graph_module"]["module_call_graph"][0]["signature"]
            call["in_spec"] = json.dumps(
                [1, {"type": "antigravity.X", "context": "", "children_spec": []}]
            )

        model = Pt2Importer().import_model(edited(dense(), change))
        assert model.node_count == 2
        assert "antigravity" not in sys.modules

    def test_custom_objects_are_refused(self) -> None:
        def change(document: dict[str, Any]) -> None:
            document["graph"]["nodes"][0]["inputs"][0]["arg"] = {
                "as_custom_obj": {"name": "obj", "class_fqn": "__torch__.X"}
            }

        assert "a custom object" in refused(program(change)).message

    @pytest.mark.parametrize(
        ("key", "value", "what"),
        [
            ("schema_version", {"major": 99, "minor": 0}, "in schema 99"),
            ("opset_version", {"aten": 99_999}, "operators of version 99999"),
            ("verifiers", ["EDGE"], "another dialect"),
            ("range_constraints", {"s0": {"min_val": "1", "max_val": 2}}, "not what torch"),
        ],
    )
    def test_other_versions_are_refused_by_name(self, key: str, value: object, what: str) -> None:
        error = refused(edited(dense(), lambda document: document.update({key: value})))
        assert what in error.message


class Stateful(nn.Module):
    """Counts its calls."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x + self.calls


class Branching(nn.Module):
    """Chooses by a value at run time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))  # type: ignore[no-any-return]  # torch.cond is untyped


class Noisy(nn.Module):
    """Adds noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


@torch.library.custom_op("tightfit_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """Double a tensor in an operator of our own."""
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    """Calls an operator of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return twice(x)  # type: ignore[no-any-return]  # so is what custom_op returns


class Numbers(nn.Module):
    """Returns a number beside its tensor."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return x + 1, 3


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        (lambda: network("residual").train(), "training mode", "model.eval()"),
        (lambda: nn.Dropout().train(), "a Dropout in training mode", "model.eval()"),
        (Stateful, 'writes to "calls"', "keep no state"),
        (Branching, "torch.ops.higher_order.cond", "control flow"),
        (Noisy, "no network for a device has", "random numbers"),
        (Custom, "tightfit_tests", "custom operators"),
        (Numbers, "an output of the program is no tensor", "tensors only"),
    ],
)
def test_networks_that_no_device_runs_are_refused(
    make: Callable[[], nn.Module], what: str, remedy: str
) -> None:
    shape = (3, 8, 8) if what == "training mode" else (4,)
    error = refused(archive_of(make(), shape, is_free=False))
    assert what in error.message
    assert remedy in error.remedy


def test_a_network_without_weights_in_memory_is_refused() -> None:
    with torch.device("meta"):
        net = nn.Linear(4, 3)
        data = saved_program(net, (torch.rand(1, 4),))
    assert "meta device" in refused(data).message
