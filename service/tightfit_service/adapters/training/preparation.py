"""A student ready for training: BatchNorms inserted from data, inputs scaled; and the way back to a graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from tightfit_service.adapters.training.conditioning import (
    EPSILON,
    InsertedNorm,
    fold_inserted,
    input_layers,
    insert_batch_norms,
    output_axis,
)
from tightfit_service.adapters.training.module import GraphModule, build_module, write_back
from tightfit_service.adapters.training.reconstruction import reconstruct
from tightfit_service.application.samples import FloatArray

FILTER_NORM = 1.75
"""Length that filters in front of inserted BatchNorms are brought to: the learning rate then means the
same for networks whose inputs go to 255 and for those whose inputs go to 1, since only the relative
change of such a filter matters (van Laarhoven, 2017). The length is that of the filters of a ResNet-20
that was trained with BatchNorm."""

_USUAL_INPUT = (0.2, 5.0)
"""Root mean square of inputs that are left as they are."""

_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Student:
    """A module to train, and what was changed about its graph.

    Attributes:
        given: The graph as it came.
        graph: The graph that the module was built from, BatchNorms inserted.
        input_scale: Inputs are divided by it before they reach the module.
        scaled_weights: Weights that were multiplied by it in turn.
    """

    module: GraphModule
    given: bytes
    graph: bytes
    norms: tuple[InsertedNorm, ...]
    input_scale: float
    scaled_weights: tuple[str, ...]

    def finish(self) -> bytes:
        """Return the trained graph, everything that was inserted folded away."""
        module = self.module.to("cpu")
        with torch.no_grad():
            for name in self.scaled_weights:
                _held(module, name).div_(self.input_scale)
            graph = write_back(self.graph, module)
            for name in self.scaled_weights:
                _held(module, name).mul_(self.input_scale)
        return fold_inserted(graph, self.norms)


def prepare(graph: bytes, *, logits: str, inputs: FloatArray, with_norms: bool = True) -> Student:
    """Insert BatchNorms that change nothing on the given inputs and scale large or tiny inputs.

    Without `with_norms` the weights stay as they are, for a BatchNorm folded back scales each
    channel by itself.

    Raises:
        UnsupportedError: An operator has no rule.
    """
    weights = input_layers(graph)
    power = float(np.sqrt(np.mean(np.square(inputs, dtype=np.float64))))
    is_usual = _USUAL_INPUT[0] <= power <= _USUAL_INPUT[1] or power == 0.0
    scale = 1.0 if is_usual or not weights else power
    changed, norms = insert_batch_norms(graph, logits=logits) if with_norms else (graph, ())
    module = build_module(changed)
    scaled = weights if scale != 1.0 else ()
    with torch.no_grad():
        for name in scaled:
            _held(module, name).mul_(scale)
        own = channel_statistics(module, [n.raw for n in norms], inputs / np.float32(scale))
        for norm in norms:
            mean, variance = own[norm.raw]
            _set(module, norm, target=(mean, variance), running=(mean, variance))
    return Student(
        module=module,
        given=graph,
        graph=changed,
        norms=norms,
        input_scale=scale,
        scaled_weights=scaled,
    )


def resemble(student: Student, *, original: bytes, inputs: FloatArray, logits: str) -> bool:
    """Bring a pruned student closer to its original without training; return whether it could.

    Layers are recognised by their weights. Inserted BatchNorms get the mean and spread that their
    channels have in the original, and the weights of each layer are fitted to its outputs. The
    running statistics are left to the caller to recalibrate.
    """
    kept = kept_channels(student.given, original)
    if not kept:
        return False
    source_module = build_module(original)
    norms = [norm for norm in student.norms if norm.producer in kept]
    found = channel_statistics(source_module, [norm.tensor for norm in norms], inputs)
    with torch.no_grad():
        for norm in norms:
            mean, variance = (v[kept[norm.producer]] for v in found[norm.tensor])
            _held(student.module, norm.parameters[0]).copy_(torch.sqrt(variance + EPSILON))
            _held(student.module, norm.parameters[1]).copy_(mean)
    reconstruct(
        student.module,
        source_module,
        kept=kept,
        inputs=inputs,
        input_scale=student.input_scale,
        until=logits,
    )
    return True


def normalise_filters(student: Student) -> None:
    """Bring the filters in front of inserted BatchNorms to FILTER_NORM; the function stays the same."""
    with torch.no_grad():
        for norm in student.norms:
            _normalise_filters(student.module, norm)


def kept_channels(graph: bytes, original: bytes) -> dict[str, npt.NDArray[np.int64]]:
    """Return, per layer that is recognised, the channels of the original layer that it still makes."""
    before = _weights_by_node(original)
    kept = {}
    for node, (weight, axis) in _weights_by_node(graph).items():
        source = before.get(node)
        if source is not None and source[0].ndim == weight.ndim:
            rows = match_rows(weight, source[0], axis)
            if rows is not None:
                kept[node] = rows
    return kept


def match_rows(
    weight: npt.NDArray[np.float32], original: npt.NDArray[np.float32], axis: int
) -> npt.NDArray[np.int64] | None:
    """Return which channels of the original weight remain in a sliced one, or None where it is unclear.

    A channel is recognised by its values: slicing keeps them bit by bit and in order.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    sources = np.moveaxis(original, axis, 0).reshape(original.shape[axis], -1)
    if rows.shape == sources.shape:
        return np.arange(len(rows))
    values = [set(source.tolist()) for source in sources]
    found: list[int] = []
    for row in rows:
        wanted = set(row.tolist())
        start = found[-1] + 1 if found else 0
        match = next((k for k in range(start, len(values)) if wanted <= values[k]), None)
        if match is None:
            return None
        found.append(match)
    return np.asarray(found, dtype=np.int64)


def channel_statistics(
    module: GraphModule, tensors: list[str], inputs: FloatArray
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return mean and variance per channel (axis 1) of some tensors, the module in inference mode."""
    module.eval()
    sums: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    with torch.inference_mode():
        for start in range(0, len(inputs) if tensors else 0, _BATCH):
            batch = torch.from_numpy(inputs[start : start + _BATCH])
            for name, value in zip(tensors, module.run_to(tensors, batch), strict=True):
                rows = value.transpose(0, 1).flatten(1)
                spread, mean = torch.var_mean(rows, dim=1, correction=0)
                square = (spread.double() + mean.double().square()) * rows.shape[1]
                sums[name] = sums.get(name, 0.0) + mean.double() * rows.shape[1]
                squares[name] = squares.get(name, 0.0) + square
                counts[name] = counts.get(name, 0) + rows.shape[1]
    found = {}
    for name in tensors:
        mean = sums[name] / counts[name]
        variance = torch.clamp(squares[name] / counts[name] - mean.square(), min=0.0)
        found[name] = (mean.float().clone(), variance.float().clone())
    return found


def _set(
    module: GraphModule,
    norm: InsertedNorm,
    *,
    target: tuple[torch.Tensor, torch.Tensor],
    running: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Let a BatchNorm map the running statistics to the target ones."""
    scale, shift, mean, variance = (_held(module, name) for name in norm.parameters)
    scale.copy_(torch.sqrt(target[1] + EPSILON))
    shift.copy_(target[0])
    mean.copy_(running[0])
    variance.copy_(running[1])


def _normalise_filters(module: GraphModule, norm: InsertedNorm) -> None:
    """Bring the filters in front of a BatchNorm to FILTER_NORM, its running statistics following."""
    if norm.is_bias_shared:
        return  # the bias in front cannot be scaled along
    weight = _held(module, norm.weight)
    rows = weight.transpose(0, norm.channel_axis).flatten(1)
    factor = FILTER_NORM / torch.clamp(rows.norm(dim=1), min=1e-12)
    shape = [1] * weight.ndim
    shape[norm.channel_axis] = -1
    weight.mul_(factor.reshape(shape))
    if norm.bias and not norm.is_bias_after:
        _held(module, norm.bias).mul_(factor)
    scale, _, mean, variance = (_held(module, name) for name in norm.parameters)
    # the constant in the root does not scale along, so the slope makes up for it
    old = torch.sqrt(variance + EPSILON)
    mean.mul_(factor)
    variance.mul_(factor.square())
    scale.mul_(torch.sqrt(variance + EPSILON) / (old * factor))


def _held(module: GraphModule, name: str) -> torch.Tensor:
    value = module.value_of(name)
    assert value is not None
    return value


def _weights_by_node(graph: bytes) -> dict[str, tuple[npt.NDArray[np.float32], int]]:
    """Return the constant weight of every layer and the axis of its output channels."""
    model = onnx.load_model_from_string(graph)
    tensors = {t.name: t for t in model.graph.initializer}
    return {
        node.name: (numpy_helper.to_array(tensors[node.input[1]]), axis)
        for node in model.graph.node
        if (axis := output_axis(node)) is not None and node.input[1] in tensors
    }
