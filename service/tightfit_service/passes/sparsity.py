"""Sparsity: weights set to zero one by one, in blocks of memory words, or N of every M."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from tightfit_service.application.ports import ChangedLayer, PassContext
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.network import Alternative, NetworkProfile
from tightfit_service.graph.model_file import copy_model, load_model, save_model
from tightfit_service.graph.structure import graph_inputs
from tightfit_service.passes.layer_weights import (
    LayerWeight,
    Rows,
    checked_nodes,
    each_alone,
    largest_layers,
    layer_weights,
    refused,
    relative_error,
    replace_weight,
    whole_number,
)
from tightfit_service.passes.observed_inputs import observed

PATTERNS = ("block", "n:m", "unstructured")
_KEYS = {
    "block": {"pattern", "block", "ratio"},
    "n:m": {"pattern", "n", "m"},
    "unstructured": {"pattern", "ratio"},
}
DOWNLOAD_RATIOS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.93)
"""Shares of zeros that a limit on the download is met with."""
_LARGEST_BLOCK = 1024
_LARGEST_M = 64

_NO_KERNELS: Mapping[str, str] = {
    # github.com/tensorflow/tflite-micro issues 491 and 2279: no DENSIFY operator, no sparse kernels
    "TFLM": "its kernels multiply zeros like any other weight",
    "CMSIS-NN": "its kernels multiply zeros like any other weight",
    # github.com/microsoft/onnxruntime issue 5578: sparse initializers are made dense on loading
    "ONNX Runtime": "it turns sparse weights into dense ones when it loads a model",
    # tensorflow/lite/delegates/xnnpack/README.md, "Sparse inference"
    "XNNPACK": (
        "its sparse kernels take float 1x1 convolutions with two thirds of zeros at least, in networks "
        "that begin with a 3x3 convolution of stride 2 and end in a mean, with weights stored "
        "sparse; exported files store them dense"
    ),
}
_UNKNOWN_KERNELS = "no sparse kernels of it are known"
_SIZE = (
    "zeros take the flash that other weights take; only the packed download file becomes smaller"
)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A checked choice for one node; `block` is (rows, elements), `kept` N of `group` M."""

    pattern: str
    ratio: float = 0.0
    block: tuple[int, int] = (1, 1)
    kept: int = 0
    group: int = 0


class SparsityPass:
    """Implements `application.ports.NodePass` and `DownloadPass`; stateless and thread-safe.

    Parameters: `{"nodes": {node: {"pattern": ...}}}` with

    - `"block"`: `"block": [rows, elements]` and `"ratio"`, the share of blocks that become zero. Blocks
      lie along the elements that a kernel reads one behind another (see `LayerWeight.rows`), such as
      [1, 4] for the 32-bit words of int8 weights; `word_block` gives a target's.
    - `"n:m"`: of every `"m"` elements in a row, the `"n"` most important stay (2:4; Mishra et al.,
      arXiv:2104.08378).
    - `"unstructured"`: `"ratio"`, the share of weights that become zero, wherever they are.

    Importance is a weight's magnitude, with calibration samples times the root mean square of the input
    that it is multiplied with (Wanda; Sun et al., ICLR 2024). Weights compete within their layer. A
    weight that several nodes read becomes sparse for all of them. Training afterwards keeps the
    zeros with `RecoverySettings.keep_zeros`.
    """

    name = "sparsity"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return why sparsity brings no speed and no flash there; it always is for the download alone."""
        if not layer_weights(load_model(graph)):
            return ("the network has no convolution or dense layer with constant weights",)
        return (f"{target.runtime.name}: {_reason(target)}", _SIZE)

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        """Check parameters against a graph without applying them.

        Raises:
            InvalidRequestError: An unknown key, node or pattern, or a value out of range; `field` is
                `parameters.nodes[<node>].<key>`.
        """
        _checked(layer_weights(load_model(graph)), parameters)

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        """Return the graph with the chosen weights at zero; nothing else changes.

        Raises:
            InvalidRequestError: As `check`.
        """
        model = load_model(graph)
        weights = layer_weights(model)
        choices = _checked(weights, parameters)
        levels = _input_levels(model, [weights[name] for name in choices], context)
        result = copy_model(model)
        for name, choice in choices.items():
            # read again: another node may have made the same weight sparse before
            weight = layer_weights(result)[name]
            rows = weight.rows()
            keep = _mask(_importance(weight, rows, levels.get(name)), rows != 0, choice)
            replace_weight(result, weight, np.where(keep, rows, np.float32(0)))
        return save_model(result)

    def alternatives(
        self,
        graph: bytes,
        profile: NetworkProfile,
        target: HardwareSpec,
        *,
        context: PassContext | None = None,
    ) -> Mapping[str, Sequence[Alternative]]:
        """Return none: on no target that is known, an exported file with zeros costs less.

        A solver that was offered them would pay accuracy for nothing; sparsity is for those who ask
        for a small download.
        """
        del graph, profile, target, context
        return {}

    def strengths(
        self, graph: bytes, target: HardwareSpec, number_format: NumberFormat
    ) -> Sequence[Mapping[str, Any]]:
        """Return parameters for the whole network, from the fewest zeros to the most.

        Zeros come in blocks of the target's memory word. Layers too small to matter stay dense.
        """
        block = list(word_block(target, number_format))
        names = largest_layers(layer_weights(load_model(graph)))
        if not names:
            return ()
        return [
            {
                "nodes": {
                    name: {"pattern": "block", "block": block, "ratio": ratio} for name in names
                }
            }
            for ratio in DOWNLOAD_RATIOS
        ]

    def errors(
        self, graph: bytes, parameters: Mapping[str, Any], context: PassContext
    ) -> Mapping[str, float]:
        """Return the relative squared error of each chosen node's weight, in [0, 1].

        Raises:
            InvalidRequestError: As `check`.
        """
        before = layer_weights(load_model(graph))
        after = layer_weights(load_model(self.apply(graph, parameters, context)))
        return {
            name: relative_error(before[name].value, after[name].value)
            for name in parameters.get("nodes", {})
        }

    def each_alone(
        self, graph: bytes, parameters: Mapping[str, Any], context: PassContext
    ) -> Iterator[ChangedLayer]:
        """Yield, for each chosen node, the graph with that node's weight made sparse and no other.

        Raises:
            InvalidRequestError: As `check`.
        """
        after = load_model(self.apply(graph, parameters, context))
        return each_alone(load_model(graph), after, parameters.get("nodes", {}))


def word_block(target: HardwareSpec, number_format: NumberFormat) -> tuple[int, int]:
    """Return the block of one memory access of the target: (1, weights in a word), at least (1, 1)."""
    bits = {
        NumberFormat.INT4: 4,
        NumberFormat.FLOAT16: 16,
        NumberFormat.BFLOAT16: 16,
        NumberFormat.FLOAT32: 32,
    }.get(number_format, 8)
    return 1, max(1, 8 * target.memory.word_bytes // bits)


def _reason(target: HardwareSpec) -> str:
    for name, reason in _NO_KERNELS.items():
        if name in target.runtime.name:
            return reason
    return _UNKNOWN_KERNELS


def _checked(
    weights: Mapping[str, LayerWeight], parameters: Mapping[str, Any]
) -> dict[str, _Choice]:
    return {
        name: _checked_choice(choice, f"parameters.nodes[{name}]")
        for name, choice in checked_nodes(weights, parameters).items()
    }


def _checked_choice(choice: Mapping[str, Any], field: str) -> _Choice:
    pattern = choice.get("pattern")
    if pattern not in PATTERNS:
        raise refused(
            f"pattern is {pattern!r}", f"{field}.pattern", "use " + ", ".join(map(repr, PATTERNS))
        )
    keys = _KEYS[pattern]
    for key in choice:
        if key not in keys:
            raise refused(
                f"{key!r} is no key of pattern {pattern!r}",
                f"{field}.{key}",
                "its keys are " + ", ".join(sorted(keys)),
            )
    if pattern == "n:m":
        group = whole_number(choice, "m", field, low=2, high=_LARGEST_M)
        kept = whole_number(choice, "n", field, low=1, high=group - 1)
        return _Choice(pattern=pattern, kept=kept, group=group)
    ratio = choice.get("ratio")
    is_number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    if ratio is None or not is_number or not 0 <= ratio < 1:
        raise refused(
            f"ratio is {ratio!r}", f"{field}.ratio", "give the share of zeros, at least 0, below 1"
        )
    if pattern == "unstructured":
        return _Choice(pattern=pattern, ratio=float(ratio))
    block = choice.get("block")
    if not isinstance(block, Sequence) or isinstance(block, str) or len(block) != 2:
        raise refused(f"block is {block!r}", f"{field}.block", "give [rows, elements]")
    sizes = {"block": block[0]}, {"block": block[1]}
    rows, elements = (whole_number(s, "block", field, low=1, high=_LARGEST_BLOCK) for s in sizes)
    return _Choice(pattern=pattern, ratio=float(ratio), block=(rows, elements))


def _mask(
    importance: npt.NDArray[np.float64], alive: npt.NDArray[np.bool_], choice: _Choice
) -> npt.NDArray[np.bool_]:
    """Return which elements stay; zeros never come before others."""
    importance = np.where(alive, importance, -1.0)
    if choice.pattern == "n:m":
        return _n_of_m(importance, choice.kept, choice.group)
    height, width = choice.block
    rows, columns = importance.shape
    starts = np.arange(0, rows, height), np.arange(0, columns, width)
    sums = np.add.reduceat(np.maximum(importance, 0) ** 2, starts[0], axis=0)
    sums = np.add.reduceat(sums, starts[1], axis=1)
    heights = np.diff(np.append(starts[0], rows))
    widths = np.diff(np.append(starts[1], columns))
    # blocks at the edge are smaller: what counts is how important their elements are
    means = sums / np.outer(heights, widths)
    count = math.floor(choice.ratio * means.size)
    keep = np.ones(means.size, dtype=bool)
    keep[np.argsort(means, axis=None, kind="stable")[:count]] = False
    spread = np.repeat(keep.reshape(means.shape), heights, axis=0)
    return np.repeat(spread, widths, axis=1)


def _n_of_m(importance: npt.NDArray[np.float64], kept: int, group: int) -> npt.NDArray[np.bool_]:
    rows, columns = importance.shape
    missing = -columns % group
    padded = np.pad(importance, ((0, 0), (0, missing)), constant_values=-2.0)
    grouped = padded.reshape(rows, -1, group)
    order = np.argsort(-grouped, axis=2, kind="stable")
    keep = np.zeros(grouped.shape, dtype=bool)
    np.put_along_axis(keep, order[:, :, :kept], values=True, axis=2)
    return keep.reshape(rows, -1)[:, :columns]


def _importance(
    weight: LayerWeight, rows: Rows, level: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """Return each weight's importance in the order of `rows`."""
    size = np.abs(rows).astype(np.float64)
    if level is None:
        return size
    shape = [1] * weight.value.ndim
    shape[0 if weight.input_axis is None else weight.input_axis] = -1
    spread = np.broadcast_to(level.reshape(shape), weight.value.shape)
    return np.asarray(size * weight.rows(spread))


def _input_levels(
    model: ModelProto, weights: Sequence[LayerWeight], context: PassContext
) -> dict[str, npt.NDArray[np.float64]]:
    """Return, per node, the root mean square of the inputs of each index of its input axis.

    Layers whose channels cannot be told apart so (grouped convolutions) are left out, and so is all
    without samples and for models of several inputs.
    """
    if context.calibration is None or not len(context.calibration):
        return {}
    if len(graph_inputs(model)) != 1 or not weights:
        return {}
    squares: dict[str, npt.NDArray[np.float64]] = {}
    names = [weight.node.input[0] for weight in weights]
    for values in observed(model, names, context.calibration):
        for weight in weights:
            seen = values[weight.node.input[0]].astype(np.float64)
            axis = 1 if weight.node.op_type in {"Conv", "ConvTranspose"} else seen.ndim - 1
            total = np.square(seen).mean(axis=tuple(i for i in range(seen.ndim) if i != axis))
            squares[weight.node.name] = squares.get(weight.node.name, 0.0) + total
    found = {}
    for weight in weights:
        level = np.sqrt(squares[weight.node.name])
        wanted = weight.value.shape[0 if weight.input_axis is None else weight.input_axis]
        if weight.input_axis is None and wanted % len(level) == 0:
            level = np.repeat(level, wanted // len(level))
        if len(level) == wanted:
            found[weight.node.name] = level
    return found
