"""Feature distillation: inner activations of a pruned network held against those of its original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tightfit_service.adapters.training.module import build_module
from tightfit_service.adapters.training.number_format import TrainingFormat
from tightfit_service.adapters.training.preparation import kept_channels
from tightfit_service.application.samples import FloatArray, IntArray
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.structure import Shape, sorted_model_nodes, tensor_shapes

_KEEPS_CHANNELS = frozenset(
    {
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "Elu",
        "HardSwish",
        "LeakyRelu",
        "MaxPool",
        "PRelu",
        "Relu",
    }
)
"""Operators whose output has the channels of their inputs, at the same places."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeaturePoint:
    """A tensor of both networks, and which channels (axis 1) of the original's the student has."""

    tensor: str
    kept: IntArray


def feature_points(graph: bytes, original: bytes) -> tuple[FeaturePoint, ...]:
    """Return where the two are compared: the last tensor of each resolution whose channels are known.

    In a residual network these are the ends of its stages. Channels are recognised by the weights
    that make them (`kept_channels`) and followed through what leaves them in place; tensors behind
    layers that were trained or decomposed in between are not recognised.
    """
    model = load_model(graph)
    shapes, whole = tensor_shapes(model), tensor_shapes(load_model(original))
    known: dict[str, IntArray] = {}
    by_layer = kept_channels(graph, original)
    ends: dict[Shape, FeaturePoint] = {}
    for node in sorted_model_nodes(model):
        output = node.output[0]
        if node.name in by_layer:
            known[output] = by_layer[node.name]
        elif node.op_type in _KEEPS_CHANNELS:
            sources = [known[name] for name in node.input if name in known]
            if not sources or any(s.tolist() != sources[0].tolist() for s in sources):
                continue
            known[output] = sources[0]
        if output in known and _is_same_place(output, known[output], shapes, whole):
            ends[shapes[output][2:]] = FeaturePoint(tensor=output, kept=known[output])
    return tuple(ends.values())


class FeatureGuide:
    """Runs the original beside the student and compares them at some points.

    The original answers anew in each step: its features are thousands of values per sample, so a
    cache of them would fill gigabytes, where one more forward pass costs about a third of a step
    of a network its size.
    """

    def __init__(
        self, *, points: Sequence[FeaturePoint], original: bytes, form: TrainingFormat
    ) -> None:
        """Load the original for the device and number format of the training."""
        self._points, self._form = points, form
        self._original = form.place(build_module(original)).eval()
        self.names = tuple(point.tensor for point in points)

    def loss(self, features: Sequence[torch.Tensor], inputs: FloatArray) -> torch.Tensor:
        """Return the squared error in units of the original's variance, the mean over points.

        Hints on inner layers come from FitNets (Romero et al., ICLR 2015); since channels that were
        kept have a counterpart in the original, no layers between the two are needed.
        """
        with torch.no_grad(), self._form.context():
            wanted = self._original.run_to(list(self.names), self._form.inputs(inputs))
        errors = []
        for point, own, whole in zip(self._points, features, wanted, strict=True):
            target = whole.float()[:, torch.from_numpy(point.kept).to(whole.device)]
            error = (own.float() - target).square().mean()
            errors.append(error / target.var().clamp(min=1e-8))
        return torch.stack(errors).mean()


def _is_same_place(
    tensor: str, kept: IntArray, shapes: Mapping[str, Shape], whole: Mapping[str, Shape]
) -> bool:
    own, source = shapes.get(tensor, ()), whole.get(tensor, ())
    return (
        len(own) == len(source) >= 3
        and own[1] == len(kept)
        and source[1] > int(kept.max())
        and own[2:] == source[2:]
        and max(own[2:]) > 1
    )
