"""What an operator rule sees of a graph: one node, its static inputs, and the state of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tightfit_service.domain.errors import UnsupportedError

StaticArray = npt.NDArray[Any]
Value = torch.Tensor | StaticArray
"""Tensors carry data; arrays are known without data: constants that are no weights, and shapes."""
Arguments = Sequence[Value | None]
"""Inputs of a node by position; None for one that is left out."""


@dataclass(kw_only=True)
class RunState:
    """Whether BatchNorm uses and updates the statistics of the batch, and how fast.

    `momentum` is the weight of the newest batch in the running statistics.
    """

    training: bool = False
    momentum: float = 0.1


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """One node of the graph.

    Attributes:
        op_type: With its domain in front, where that is not ONNX's own.
        constants: Values of the inputs that are initializers, by position.
        output_count: Outputs that are asked for.
    """

    name: str
    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    constants: Mapping[int, StaticArray] = field(default_factory=dict)
    output_count: int = 1

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value, or the default where the node does not have it."""
        return self.attributes.get(name, default)

    def static(self, args: Arguments, position: int) -> StaticArray | None:
        """Return an input that must be known without data, or None where it is left out.

        Raises:
            UnsupportedError: The input depends on data.
        """
        if position >= len(args) or args[position] is None:
            return None
        value = args[position]
        if isinstance(value, np.ndarray):
            return value
        if position in self.constants:
            return self.constants[position]
        raise self.unsupported(f"input {position} depends on data")

    def integers(self, args: Arguments, position: int) -> list[int] | None:
        """Return a static input as a list of integers, or None where it is left out."""
        value = self.static(args, position)
        return None if value is None else [int(v) for v in np.atleast_1d(value)]

    def axes(self, args: Arguments, position: int) -> list[int] | None:
        """Return `axes`, an attribute in old opsets and an input in new ones."""
        given = self.attribute("axes")
        return list(given) if given is not None else self.integers(args, position)

    def unsupported(self, why: str) -> UnsupportedError:
        """Return the error for a form of the operator that has no rule."""
        return UnsupportedError(
            f"node '{self.name}' ({self.op_type}) cannot be trained: {why}",
            field="model",
            remedy="the model can still be quantized; rewrite this node to train it",
        )


Rule = Callable[[NodeView, Arguments, RunState], "Value | tuple[Value, ...]"]
"""Computes the outputs of a node from its inputs."""


def tensor(args: Arguments, position: int, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return an input as a tensor, on the device (and for floats in the type) of `like`."""
    value = args[position]
    assert value is not None
    if isinstance(value, torch.Tensor):
        return value
    result = torch.from_numpy(
        np.array(value)
    )  # a copy: initializers are read-only views of the file
    if like is not None:
        dtype = like.dtype if result.dtype.is_floating_point else result.dtype
        result = result.to(device=like.device, dtype=dtype)
    return result


def optional_tensor(
    args: Arguments, position: int, like: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Return an input as a tensor, or None where it is left out."""
    if position >= len(args) or args[position] is None:
        return None
    return tensor(args, position, like)
