"""Programs of torch.export rebuilt from checked data.

What torch's deserializer would evaluate or write into Python code (symbolic expressions, guards,
names, tree specifications, custom objects) is checked against narrow grammars or replaced, before
torch sees any of it: it calls `sympify` on expressions, imports the modules that a tree
specification names, and generates code from names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._export.serde.schema import SCHEMA_VERSION
from torch._export.serde.serialize import SerializedArtifact, deserialize
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tightfit_service.adapters.formats.pt2_archive import (
    DTYPES,
    NAME,
    Pt2Archive,
    StoredTensor,
    malformed,
)
from tightfit_service.adapters.formats.pt2_operators import (
    check_mode,
    check_operator,
    check_state,
    writes,
)
from tightfit_service.adapters.formats.pt2_values import (
    bound,
    clean_value,
    clean_values,
    identifier,
    integer,
    symbol,
)
from tightfit_service.graph.model_file import ModelLimits, invalid, shown

_DIALECTS = {"ATEN", "TRAINING"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A program ready to run or to be translated; it is called with its tensor inputs by position.

    Attributes:
        input_names: Of each input, as `forward()` calls them.
        input_shapes: Of each input; None stands for a free axis.
        device: What it was exported on, where that was not a CPU; else empty.
    """

    exported: ExportedProgram
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int | None, ...], ...]
    device: str

    @property
    def is_for_one_sample(self) -> bool:
        """Whether axis 0 of every input has the fixed size 1."""
        return all(shape[:1] == (1,) for shape in self.input_shapes)


def build_program(archive: Pt2Archive, *, limits: ModelLimits) -> Program:
    """Check what an archive says and let torch rebuild the program from it.

    Raises:
        InvalidModelError: Another version of torch, a network in training mode, parts that this
            service does not run, or data that torch.export did not write.
        Exception: What torch raises on a program that contradicts itself.
    """
    raw = archive.program
    try:
        _check_version(raw)
        document = _document(raw, limits)
        _check_sizes(document["graph_module"]["graph"]["tensor_values"], limits)
        names, shapes = _inputs_of_user(document)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise malformed("models/model.json") from error
    devices = {
        *(item.device for item in (*archive.weights.values(), *archive.constants.values())),
        *_devices(raw),
    } - {"cpu"}
    artifact = SerializedArtifact(
        json.dumps(document).encode(),
        {name: _tensor(item) for name, item in archive.weights.items()},  # type: ignore[arg-type]
        {name: _tensor(item) for name, item in archive.constants.items()},  # type: ignore[arg-type]
        b"",
    )
    return Program(
        exported=deserialize(artifact),
        input_names=names,
        input_shapes=shapes,
        device=", ".join(sorted(devices)),
    )


def _check_version(raw: Mapping[str, Any]) -> None:
    writer = str(raw.get("torch_version", "an unknown version"))[:40]
    major = raw["schema_version"]["major"]
    if major != SCHEMA_VERSION[0]:
        raise invalid(
            f"the .pt2 file was written by torch {writer} in schema {major!r:.20}; torch "
            f"{torch.__version__} here reads schema {SCHEMA_VERSION[0]}",
            remedy=f"export the network with torch {torch.__version__.split('+')[0]}",
        )
    newest = torch._C._get_max_operator_version()  # noqa: SLF001 - torch offers no public name for it
    aten = raw["opset_version"].get("aten", newest)
    if not isinstance(aten, int) or aten > newest:
        raise invalid(
            f"the .pt2 file was written by torch {writer} with operators of version {aten!r:.20}; "
            f"torch {torch.__version__} here knows version {newest}",
            remedy=f"export the network with torch {torch.__version__.split('+')[0]}",
        )


def _document(raw: Mapping[str, Any], limits: ModelLimits) -> dict[str, Any]:
    """Return the program as torch's schema has it, with nothing in it that could be executed."""
    module = raw["graph_module"]
    graph = module["graph"]
    if len(graph["nodes"]) > limits.node_count:
        raise invalid(
            f"the model has more than {limits.node_count} nodes",
            remedy="send a smaller or simplified model",
        )
    inputs, input_specs = _inputs(graph["inputs"], module["signature"]["input_specs"])
    outputs, output_specs = _outputs(graph["outputs"], module["signature"]["output_specs"])
    dialects = set(raw.get("verifiers") or [])
    if not dialects <= _DIALECTS:
        raise invalid(
            "the program is in another dialect than torch.export.export returns",
            remedy="send what torch.export.export returned, not a lowered program",
        )
    nodes = [_node(node) for node in graph["nodes"]]
    check_state(nodes, inputs, input_specs)
    clean_graph = {
        "inputs": inputs,
        "outputs": outputs,
        "nodes": nodes,
        "tensor_values": clean_values(graph["tensor_values"]),
        "sym_int_values": clean_values(graph.get("sym_int_values") or {}),
        "sym_bool_values": clean_values(graph.get("sym_bool_values") or {}),
        "sym_float_values": clean_values(graph.get("sym_float_values") or {}),
        "is_single_tensor_return": False,
        "custom_obj_values": {},
    }
    count = sum("user_input" in spec for spec in input_specs)
    arguments = pytree.tree_structure(((0,) * count, {}))
    results = pytree.tree_structure((0,) * len(outputs))
    call: dict[str, Any] = {
        "inputs": [],
        "outputs": [],
        "in_spec": pytree.treespec_dumps(arguments),
        "out_spec": pytree.treespec_dumps(results),
        "forward_arg_names": None,
    }
    return {
        "graph_module": {
            "graph": clean_graph,
            "signature": {"input_specs": input_specs, "output_specs": output_specs},
            "module_call_graph": [{"fqn": "", "signature": call}],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": int(raw["opset_version"].get("aten", 10))},
        "range_constraints": {
            symbol(name): {"min_val": bound(item["min_val"]), "max_val": bound(item["max_val"])}
            for name, item in raw["range_constraints"].items()
        },
        "schema_version": {key: integer(raw["schema_version"][key]) for key in ("major", "minor")},
        "verifiers": sorted(dialects),
        "torch_version": str(raw.get("torch_version", ""))[:40],
        "guards_code": [],
    }


def _inputs(
    arguments: list[dict[str, Any]], specs: list[dict[str, Any]]
) -> tuple[list[Any], list[Any]]:
    """Return inputs and what they are; constants among them are dropped, for the graph holds them."""
    kept, kept_specs = [], []
    for argument, spec in zip(arguments, specs, strict=True):
        ((kind, detail),) = spec.items()
        if kind == "constant_input":
            continue
        if kind not in {"user_input", "parameter", "buffer", "tensor_constant"}:
            raise invalid(
                f"the program has an input of kind {shown(kind)}",
                remedy="export a network whose inputs, parameters and buffers are plain tensors",
            )
        if set(argument) != {"as_tensor"}:
            raise invalid(
                "an input of the program is no tensor",
                remedy="export the network with tensors as its inputs",
            )
        for key in ("parameter_name", "buffer_name", "tensor_constant_name"):
            if key in detail and not NAME.fullmatch(detail[key]):
                raise malformed("signature")
        kept.append(clean_value(argument))
        kept_specs.append(clean_value(spec))
    return kept, kept_specs


def _outputs(
    arguments: list[dict[str, Any]], specs: list[dict[str, Any]]
) -> tuple[list[Any], list[Any]]:
    kept, kept_specs = [], []
    for argument, spec in zip(arguments, specs, strict=True):
        ((kind, detail),) = spec.items()
        if kind != "user_output":
            name = shown(str(detail.get("buffer_name") or detail.get("user_input_name") or kind))
            raise writes(name)
        if set(argument) == {"as_none"}:
            continue
        if set(argument) != {"as_tensor"}:
            raise invalid(
                "an output of the program is no tensor",
                remedy="let forward() return tensors only",
            )
        kept.append(clean_value(argument))
        kept_specs.append(clean_value(spec))
    return kept, kept_specs


def _node(node: Mapping[str, Any]) -> dict[str, Any]:
    target, name = check_operator(node), node.get("name")
    arguments = [
        {
            "name": identifier(item["name"]),
            "arg": clean_value(item["arg"]),
            "kind": item.get("kind"),
        }
        for item in node["inputs"]
    ]
    check_mode(target, name, arguments)
    scopes = node.get("metadata", {}).get("nn_module_stack")
    return {
        "target": target,
        "inputs": arguments,
        "outputs": [clean_value(item) for item in node["outputs"]],
        "metadata": {"nn_module_stack": scopes} if _is_scope(scopes) else {},
        "is_hop_single_tensor_return": None,
        "name": None if name is None else identifier(name),
    }


def _is_scope(text: object) -> bool:
    return (
        isinstance(text, str)
        and len(text) < 10_000
        and all(item.count(",") == 2 for item in text.split(";"))
        and not set("()[]") & set(text)
    )


def _devices(value: Any) -> Iterator[str]:
    """Yield the kinds of all devices that a program names."""
    pending = [value["graph_module"]["graph"]]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if set(item) == {"type", "index"}:
                yield str(item["type"])[:20]
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _inputs_of_user(
    document: Mapping[str, Any],
) -> tuple[tuple[str, ...], tuple[tuple[int | None, ...], ...]]:
    """Return names and shapes of the inputs that are no parameters; None stands for a free axis."""
    module = document["graph_module"]
    values = module["graph"]["tensor_values"]
    names = tuple(
        argument["as_tensor"]["name"]
        for argument, spec in zip(
            module["graph"]["inputs"], module["signature"]["input_specs"], strict=True
        )
        if "user_input" in spec
    )
    shapes = []
    for name in names:
        dtype = DTYPES.get(values[name]["dtype"], ("unknown", 0))[0]
        if dtype != "float32":
            raise invalid(
                f"input {shown(name)} is {dtype}; inputs are float32",
                remedy="export the network in float32: model.float().eval()",
            )
        shapes.append(tuple(size.get("as_int") for size in values[name]["sizes"]))
        _check_axes(name, shapes[-1])
    return names, tuple(shapes)


def _check_axes(name: str, shape: tuple[int | None, ...]) -> None:
    if not shape or shape[0] not in {None, 1}:
        raise invalid(
            f"the batch (axis 0) of input {shown(name)} is fixed at {shape[0]}"
            if shape
            else f"input {shown(name)} is a single number, without a batch axis",
            remedy="export the network with an example of batch 1, or with a free batch: "
            'dynamic_shapes=({0: torch.export.Dim("batch")},)',
        )
    free = [axis for axis, size in enumerate(shape) if axis and size is None]
    if free:
        raise invalid(
            f"axis {free[0]} of input {shown(name)} is free; only the batch may be free",
            remedy="export the network with fixed sizes behind the batch",
        )


def _check_sizes(values: Mapping[str, Any], limits: ModelLimits) -> None:
    """Refuse tensors that would not fit, before anything allocates them."""
    for name, value in values.items():
        elements = math.prod(abs(size.get("as_int", 1)) for size in value["sizes"])
        if elements > limits.tensor_elements:
            raise invalid(
                f"tensor {shown(name)} has {elements} elements, more than {limits.tensor_elements}",
                remedy="send a smaller model",
            )


def _tensor(stored: StoredTensor) -> torch.Tensor:
    dtype = getattr(torch, stored.dtype)
    if not stored.data:
        flat = torch.zeros(stored.sizes, dtype=dtype)
    else:
        flat = torch.frombuffer(bytearray(stored.data), dtype=dtype)
        flat = torch.as_strided(flat, stored.sizes, stored.strides)
    return torch.nn.Parameter(flat, requires_grad=False) if stored.is_parameter else flat
