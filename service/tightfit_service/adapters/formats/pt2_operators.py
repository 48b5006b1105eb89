"""Operators of torch.export programs: which are run, and what is refused about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.graph.model_file import invalid, shown

_ATEN = re.compile(r"torch\.ops\.aten\.[a-z_][a-z0-9_]*\.[A-Za-z0-9_]+", re.ASCII)
_SCALAR_TARGETS = re.compile(
    r"(_operator\.(add|sub|mul|floordiv|mod|neg|eq|ne|ge|gt|le|lt|and_|or_|not_)"
    r"|torch\.sym_(int|float|max|min|not|sum)|math\.(ceil|floor|trunc))"
)
_REFUSED_OPERATORS = re.compile(
    r"\.aten\.(from_file|set_|resize|_resize|_cuda|_local_scalar_dense|record_stream|_print|"
    r"rand|normal|bernoulli|multinomial|uniform|exponential|geometric|cauchy|log_normal|poisson)"
)
"""Operators that read files or lay memory out anew, and random ones: no network for a device has them."""
_MODES = {
    "batch_norm": ("training", "a BatchNorm"),
    "instance_norm": ("use_input_stats", "an InstanceNorm with statistics"),
    "dropout": ("train", "a Dropout"),
    "feature_dropout": ("train", "a Dropout"),
    "alpha_dropout": ("train", "a Dropout"),
    "lstm": ("train", "an LSTM"),
    "gru": ("train", "a GRU"),
    "rnn_tanh": ("train", "an RNN"),
    "rnn_relu": ("train", "an RNN"),
}
"""Operators with a switch for training, the switch's name, and what they are called."""
_CALL_EVAL = "call model.eval() before torch.export.export"


def check_operator(node: Mapping[str, Any]) -> str:
    """Return the name of a node's operator.

    Raises:
        InvalidModelError: torch would look up something else under it, or it is of no use here.
    """
    target, label = node["target"], shown(str(node.get("name")))
    if not isinstance(target, str) or not _is_known(target):
        raise invalid(
            f"node {label} is {shown(str(target))}, which is no operator of ATen",
            remedy="export the network without custom operators, control flow and autocast blocks",
        )
    if _REFUSED_OPERATORS.search(target):
        raise invalid(
            f"node {label} is {shown(target)}, which no network for a device has",
            remedy="export the network for inference, without random numbers and files",
        )
    return target


def _is_known(target: str) -> bool:
    """Whether torch's deserializer would find an operator under a name, and nothing else."""
    if not _ATEN.fullmatch(target):
        return bool(_SCALAR_TARGETS.fullmatch(target))
    operator, overload = target.split(".")[-2:]
    found = getattr(getattr(torch.ops.aten, operator, None), overload, None)
    return isinstance(found, torch._ops.OpOverload)  # noqa: SLF001 - it has no public name


def check_state(nodes: list[dict[str, Any]], inputs: list[Any], specs: list[Any]) -> None:
    """Refuse operators that write into parameters and buffers.

    Args:
        nodes: Of the program.
        inputs: Its inputs, parameters and buffers among them.
        specs: What each input is.

    Raises:
        InvalidModelError: Names what is written to.
    """
    kept = {
        argument["as_tensor"]["name"]: shown(
            next((text for text in detail.values() if isinstance(text, str)), kind)
        )
        for argument, spec in zip(inputs, specs, strict=True)
        for kind, detail in spec.items()
        if kind != "user_input"
    }
    for node in nodes:
        operator = node["target"].split(".")[-2]
        first = node["inputs"][0]["arg"] if node["inputs"] else {}
        name = first.get("as_tensor", {}).get("name")
        if operator.endswith("_") and not operator.endswith("__") and name in kept:
            raise writes(kept[name])


def check_mode(target: str, name: object, arguments: list[dict[str, Any]]) -> None:
    """Refuse an operator that is switched to training.

    Raises:
        InvalidModelError: Names the node.
    """
    operator = target.removeprefix("torch.ops.aten.").partition(".")[0].rstrip("_")
    if operator not in _MODES:
        return
    switch, what = _MODES[operator]
    if any(item["name"] == switch and item["arg"] == {"as_bool": True} for item in arguments):
        # LSTM and GRU only drop out between layers, which a rate of 0 turns off.
        rate = next((item["arg"] for item in arguments if item["name"] == "dropout"), None)
        if operator in {"lstm", "gru", "rnn_tanh", "rnn_relu"} and rate == {"as_float": 0.0}:
            return
        raise invalid(f"node {shown(str(name))} is {what} in training mode", remedy=_CALL_EVAL)


def writes(what: str) -> InvalidModelError:
    """Return the error for a program that keeps state."""
    return invalid(
        f"the program writes to {what} when it runs, as a network in training mode does",
        remedy=f"{_CALL_EVAL}; keep no state between calls",
    )
