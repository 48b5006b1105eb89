"""Values that a float graph computes on samples, a few samples at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto

from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.graph.structure import graph_inputs, graph_outputs

_BATCH_VALUES = 16 << 20
"""Activation values held at once (64 MiB of float32); one sample is run at the least."""
_MAX_BATCH = 32
_ERRORS_ONLY = 3

Feeds = Mapping[str, FloatArray]


def activations(
    model: ModelProto, samples: Samples, *, names: Collection[str] | None = None
) -> Iterator[Mapping[str, npt.NDArray[np.float32]]]:
    """Yield the values of the float activations of a graph, inputs included.

    Args:
        model: With inferred shapes and a free batch, or one of 1.
        samples: What to run it on.
        names: Tensors to observe; all by default. Names that are no float activation are ignored.

    Raises:
        InvalidDatasetError: The samples have other inputs than the graph.
    """
    sizes = {
        name: size
        for name, size in _float_activations(model).items()
        if names is None or name in names
    }
    inputs = set(graph_inputs(model))
    observer = Observer(model, [name for name in sizes if name not in inputs])
    for feeds in input_batches(model, samples, values_per_sample=sum(sizes.values())):
        yield {**{n: v for n, v in feeds.items() if n in sizes}, **observer.run(feeds)}


def input_batches(
    model: ModelProto, samples: Samples, *, values_per_sample: int
) -> Iterator[Feeds]:
    """Yield what to feed a graph, so many samples at a time that memory stays bounded.

    Raises:
        InvalidDatasetError: The samples have other inputs than the graph.
    """
    size = max(1, min(_MAX_BATCH, _BATCH_VALUES // max(1, values_per_sample)))
    if _fixed_batch(model):
        size = 1
    for feeds, _ in samples.feed_batches(size, graph_inputs(model)):
        yield feeds


class Observer:
    """A graph loaded once, of which named tensors are read."""

    def __init__(self, model: ModelProto, names: Sequence[str]) -> None:
        """Load a copy of the model in which the named float tensors are outputs too."""
        observed = ModelProto()
        observed.CopyFrom(model)
        have = set(graph_outputs(model))
        observed.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in names
            if name not in have
        )
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = 1
        # Without VNNI, the fast int8 kernels of x86 saturate; see `onnxruntime_evaluator`.
        options.add_session_config_entry("session.x64quantprecision", "1")
        self._names = list(names)
        self._session = ort.InferenceSession(
            observed.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            # Up to 1.31 it moves pairs of opset 21 so that the graph is no longer valid.
            disabled_optimizers=["QDQPropagationTransformer"],
        )

    def run(self, feeds: Feeds) -> dict[str, npt.NDArray[np.float32]]:
        """Return the values of the named tensors for one batch."""
        if not self._names:
            return {}
        values = self._session.run(self._names, dict(feeds))
        return dict(zip(self._names, values, strict=True))


def _fixed_batch(model: ModelProto) -> bool:
    names = set(graph_inputs(model))
    return any(
        value.name in names
        and value.type.tensor_type.shape.dim
        and value.type.tensor_type.shape.dim[0].dim_value == 1
        for value in model.graph.input
    )


def _float_activations(model: ModelProto) -> dict[str, int]:
    """Return the float tensors that nodes pass on, with their values per sample."""
    infos = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    constants = {item.name for item in model.graph.initializer}
    produced = {name for node in model.graph.node for name in node.output}
    produced |= {info.name for info in model.graph.input}
    return {
        info.name: int(np.prod([max(1, d.dim_value) for d in info.type.tensor_type.shape.dim[1:]]))
        for info in infos
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        and info.name in produced
        and info.name not in constants
    }
