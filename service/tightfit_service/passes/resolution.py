"""Smaller inputs: the network rebuilt for images of fewer pixels, its weights as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from tightfit_service.application.ports import PassContext
from tightfit_service.domain.errors import InvalidRequestError, WorkFailedError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import Variant
from tightfit_service.graph.input_size import (
    FixedSizeError,
    ImageInput,
    at_input_size,
    image_input,
    shrinking_inside,
    total_stride,
)
from tightfit_service.graph.model_file import load_model, save_model
from tightfit_service.graph.rebuilding import rebuilt
from tightfit_service.graph.structure import declared_shape, first_line

_SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2)
"""Shares of height and width offered; work falls with their square."""
_INSIDE = "inside"
_LEAST_PIXELS = 8
_FEWEST_SIZES = 2
_ERRORS_ONLY = 3


class ResolutionPass:
    """Implements `application.ports.NetworkPass`; stateless and thread-safe.

    Parameters: `{"height": h, "width": w, "inside": true}`, the size in pixels, at most that of the
    network as it is. With `inside` the network takes images of the size it always took, and shrinks
    them before its first layer: nothing changes for the device. Without it (the default) it takes the
    smaller images, which also saves RAM: samples have to be resized to the same size
    (`application.resampling.resize_samples`), and the device has to shrink its images so before it
    normalises them.

    Layers see objects smaller than those they were trained on (Touvron et al., "Fixing the train-test
    resolution discrepancy", NeurIPS 2019), so accuracy falls until the network is trained at the new
    size.
    """

    name = "resolution"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return why the pass cannot help; empty when it can. Fewer pixels help on every target."""
        del target
        model = load_model(graph)
        try:
            sizes = _sizes(model, image_input(model))
            if not sizes:
                return ("its images are too small to be made smaller",)
            at_input_size(model, *sizes[0])
        except FixedSizeError as error:
            return (f"the input cannot be made smaller: {error}",)
        return ()

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        """Check parameters against a graph without applying them.

        Raises:
            InvalidRequestError: An unknown key, a size out of range, or a network that is tied to its
                size; `field` is `parameters.<key>` or `parameters`.
        """
        _resized(load_model(graph), parameters)

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        """Return the graph for images of the given size; nodes keep their names.

        Raises:
            InvalidModelError: Not a working graph.
            InvalidRequestError: As `check`, or the network does not run at that size.
        """
        del context
        model = _resized(load_model(graph), parameters)
        try:
            data = save_model(rebuilt(model, technique=self.name))
            _run(data)
        except WorkFailedError as error:
            raise _tied(error.message) from error
        except _RUNTIME_ERRORS as error:
            raise _tied(first_line(error)) from error
        return data

    def variants(
        self, graph: bytes, target: HardwareSpec, *, context: PassContext | None = None
    ) -> Sequence[Variant]:
        """Return a few smaller sizes, the largest first, that the network's strides divide.

        All shrink inside: what a device has to feed is not the search's to change.
        """
        del target, context
        model = load_model(graph)
        try:
            sizes = _sizes(model, image_input(model))
        except FixedSizeError:
            return ()
        found = []
        for height, width in sizes:
            try:
                shrinking_inside(model, height, width)
            except FixedSizeError:
                continue
            found.append(
                Variant(
                    pass_name=self.name,
                    label=f"images shrunk to {height}x{width} inside",
                    parameters={"height": height, "width": width, _INSIDE: True},
                )
            )
        return tuple(found)


_STATE = ort.capi.onnxruntime_pybind11_state
_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    _STATE.Fail,
    _STATE.InvalidArgument,
    _STATE.InvalidGraph,
    _STATE.NotImplemented,
    _STATE.RuntimeException,
)


def _resized(model: ModelProto, parameters: Mapping[str, Any]) -> ModelProto:
    for key in parameters:
        if key not in {"height", "width", _INSIDE}:
            raise InvalidRequestError(
                f"unknown key {key!r}",
                field=f"parameters.{key}",
                remedy=f"the keys are `height`, `width` and `{_INSIDE}`",
            )
    if not isinstance(parameters.get(_INSIDE, False), bool):
        raise InvalidRequestError(
            f"{_INSIDE} is {parameters[_INSIDE]!r}, not true or false",
            field=f"parameters.{_INSIDE}",
            remedy="give true to let the network shrink its images itself",
        )
    try:
        found = image_input(model)
        sizes = [
            _size(parameters, "height", found.height),
            _size(parameters, "width", found.width),
        ]
        change = shrinking_inside if parameters.get(_INSIDE) else at_input_size
        return change(model, *sizes)
    except FixedSizeError as error:
        raise _tied(str(error)) from error


def _size(parameters: Mapping[str, Any], key: str, most: int) -> int:
    value = parameters.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidRequestError(
            f"{key} is {value!r}, outside [1, {most}] pixels",
            field=f"parameters.{key}",
            remedy=f"give a whole number of pixels up to the network's own {most}",
        )
    return value


def _tied(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the network cannot take images of that size: {reason}",
        field="parameters",
        remedy="leave the resolution as it is, or export the model with global pooling before its "
        "dense layers",
    )


def _sizes(model: ModelProto, found: ImageInput) -> list[tuple[int, int]]:
    """Return smaller sizes of about the same shape, multiples of the total stride, largest first.

    Where the stride is too coarse for a choice, as with 96 pixels and a stride of 32, halves of it do.
    """
    steps = total_stride(model)
    while True:
        sizes = dict.fromkeys(
            (_nearest(found.height * share, steps[0]), _nearest(found.width * share, steps[1]))
            for share in _SHARES
        )
        smaller = [
            size
            for size in sizes
            if min(size) >= _LEAST_PIXELS
            and size != (found.height, found.width)
            and size[0] <= found.height
            and size[1] <= found.width
        ]
        if len(smaller) >= _FEWEST_SIZES or max(steps) == 1:
            return smaller
        steps = (max(1, steps[0] // 2), max(1, steps[1] // 2))


def _nearest(size: float, step: int) -> int:
    return max(1, round(size / step)) * step


def _run(data: bytes) -> None:
    """Run the graph once on zeros: some sizes are wrong in ways that shape inference does not see."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    model = load_model(data)
    value = next(item for item in model.graph.input if item.name == session.get_inputs()[0].name)
    shape = [size if isinstance(size, int) else 1 for size in declared_shape(value) or ()]
    outputs = session.run(None, {value.name: np.zeros(shape, dtype=np.float32)})
    for declared, output in zip(model.graph.output, outputs, strict=True):
        wanted = (declared_shape(declared) or ())[1:]
        if any(
            isinstance(own, int) and own != got
            for own, got in zip(wanted, output.shape[1:], strict=True)
        ):
            raise ValueError(f"output {declared.name} would have the shape {output.shape[1:]}")
