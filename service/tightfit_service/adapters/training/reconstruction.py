"""Layer-wise reconstruction: the weights that remain take over what the removed ones did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tightfit_service.adapters.training.module import GraphModule
from tightfit_service.adapters.training.node_view import NodeView, Value
from tightfit_service.adapters.training.spatial_operators import conv_window
from tightfit_service.application.samples import FloatArray

_ROWS = 16_384
"""Equations per layer: several times the unknowns of a filter in networks of this size."""

_RIDGE = 1e-2
"""Pull towards the weights as they are, relative to the mean square of the inputs."""

_CHUNK = 64
"""Images whose patches are in memory at once."""

_MAX_UNKNOWNS = 4096
"""Beyond it the normal equations take longer than training brings back what they do."""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer to fit: the channels of the original that it still makes, and whether a BatchNorm follows."""

    kept: npt.NDArray[np.int64]
    is_normalised: bool


def reconstruct(
    module: GraphModule,
    original: GraphModule,
    *,
    kept: Mapping[str, npt.NDArray[np.int64]],
    inputs: FloatArray,
    input_scale: float,
    until: str,
) -> int:
    """Fit each layer's weights by least squares to the original layer's outputs; return how many.

    Layers are fitted in order, each on what the fitted ones before it give, so errors do not add
    up (He et al., ICCV 2017, extended to all layers). BatchNorms run on batch statistics
    meanwhile: the caller recalibrates them.

    Args:
        module: The student; changed in place.
        original: What it was pruned from.
        kept: Per node the channels of the original that remain; from `match_rows`.
        inputs: Samples as the original takes them.
        input_scale: What the student's inputs are divided by.
        until: Tensor at which to stop, such as the logits.
    """
    layers = {
        view.name: _Layer(kept=kept[view.name], is_normalised=is_normalised)
        for view, is_normalised in module.weighted_nodes()
        if view.name in kept and _is_plain(view)
    }
    if not layers or len(inputs) < 2:
        return 0
    outputs = _Outputs(layers)
    was_training = module.training
    with torch.no_grad():
        original.eval().run_to([until], torch.from_numpy(inputs), before_node=outputs.record)
        module.train()
        scaled = torch.from_numpy(inputs / np.float32(input_scale))
        module.run_to([until], scaled, before_node=outputs.fit)
    module.train(was_training)
    return len(outputs.fitted)


class _Outputs:
    """What the original's layers give, and which layers were fitted to it.

    Its methods are called before each node of a run; a layer that runs more than once counts once.
    """

    def __init__(self, layers: Mapping[str, _Layer]) -> None:
        self._layers = layers
        self._wanted: dict[str, torch.Tensor] = {}
        self.fitted: set[str] = set()

    def record(self, view: NodeView, args: list[Value | None]) -> None:
        """Note what a layer of the original makes in the channels that remain."""
        if view.name not in self._layers or view.name in self._wanted:
            return
        x, weight = _operands(args)
        matrix = _matrix(view, weight)
        if matrix.shape[1] <= _MAX_UNKNOWNS:
            kept = self._layers[view.name].kept
            self._wanted[view.name] = (_rows(view, x, weight) @ matrix.T)[:, kept]

    def fit(self, view: NodeView, args: list[Value | None]) -> None:
        """Change a layer's weights so that its inputs, as they are now, give what was noted."""
        if view.name not in self._wanted or view.name in self.fitted:
            return
        x, weight = _operands(args)
        rows, target = _rows(view, x, weight), self._wanted[view.name]
        if rows.shape[0] != target.shape[0]:
            return
        bias = args[2] if len(args) > 2 else None
        _solve(
            rows,
            target,
            _matrix(view, weight),
            bias=bias if isinstance(bias, torch.Tensor) else None,
            is_free=self._layers[view.name].is_normalised,
        )
        self.fitted.add(view.name)


def _is_plain(view: NodeView) -> bool:
    """Return whether the layer is a matrix product of patches: no groups, no odd scaling."""
    if view.op_type == "Conv":
        return int(view.attribute("group", 1)) == 1 and len(view.constants[1].shape) == 4
    if view.op_type == "Gemm":
        return (
            not view.attribute("transA", 0)
            and view.attribute("alpha", 1.0) == 1.0
            and view.attribute("beta", 1.0) == 1.0
        )
    return view.op_type == "MatMul" and view.constants[1].ndim == 2


def _operands(args: list[Value | None]) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = args[0], args[1]
    assert isinstance(x, torch.Tensor)
    assert isinstance(weight, torch.Tensor)
    return x, weight


def _matrix(view: NodeView, weight: torch.Tensor) -> torch.Tensor:
    """Return a view of the weight with one row per output channel."""
    if view.op_type == "Conv":
        return weight.view(weight.shape[0], -1)
    is_turned = view.op_type == "Gemm" and view.attribute("transB", 0)
    return weight if is_turned else weight.t()


def _rows(view: NodeView, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return inputs of single outputs, one row each: the same places for the same input shape."""
    if view.op_type != "Conv":
        rows = x.reshape(-1, x.shape[-1])
        return rows[:: max(1, len(rows) // _ROWS)]
    kernel = list(weight.shape[2:])
    stride, dilation, before, after = conv_window(view, x, kernel)
    padded = functional.pad(x, [before[1], after[1], before[0], after[0]])
    sizes = [
        (padded.shape[2 + axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    random = np.random.default_rng(x.shape[0])
    parts = []
    for start in range(0, len(x), _CHUNK):
        places = random.permutation(sizes[0] * sizes[1])[: max(1, _ROWS // len(x))]
        # Only the chosen patches are gathered: there are many more, and few are needed.
        down, across = (
            torch.from_numpy(
                place[:, None] * stride[axis] + np.arange(kernel[axis]) * dilation[axis]
            )
            for axis, place in enumerate(np.divmod(places, sizes[1]))
        )
        chosen = padded[start : start + _CHUNK][:, :, down[:, :, None], across[:, None, :]]
        parts.append(chosen.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(parts)


def _solve(
    rows: torch.Tensor,
    target: torch.Tensor,
    matrix: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    is_free: bool,
) -> None:
    """Change the weight in place to the ridge solution around itself.

    The mean is left to the bias, or to the BatchNorm that follows (`is_free`); a layer with neither
    fits it by its weights.
    """
    has_bias = bias is not None and bias.shape == (matrix.shape[0],)
    x, y, w = rows.double(), target.double(), matrix.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    if has_bias or is_free:
        x, y = x - x_mean, y - y_mean
    gram = x.T @ x / len(x)
    if not torch.isfinite(gram).all():
        return  # nothing can be fitted to broken inputs; training will say so
    ridge = _RIDGE * gram.diagonal().mean().clamp(min=1e-12)
    gram.diagonal().add_(ridge)
    change = torch.linalg.solve(gram, x.T @ (y - x @ w.T) / len(x)).T
    fitted = w + change
    matrix.copy_(fitted.to(matrix.dtype))
    if has_bias and not is_free:
        assert bias is not None
        bias.add_((y_mean - fitted @ x_mean).to(bias.dtype))
