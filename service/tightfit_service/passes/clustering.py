"""Clustering: the weights of a layer share a few values, so that the packed download is small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit_service.application.ports import ChangedLayer, PassContext
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.network import Alternative, NetworkProfile
from tightfit_service.graph.batch_norm import fold_batch_norms
from tightfit_service.graph.model_file import load_model, save_model
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

MOST_CLUSTERS = 256
DOWNLOAD_CLUSTERS = (64, 32, 16, 12, 8, 6)
"""Values per layer that a limit on the download is met with."""
_MOST_GROUPS = 4096
_MOST_ROUNDS = 100

_Values = npt.NDArray[np.float64]


class ClusteringPass:
    """Implements `application.ports.NodePass` and `DownloadPass`; stateless and deterministic.

    Parameters: `{"nodes": {node: {"clusters": 16, "groups": 1}}}`. The weights of a layer, or of each
    of `groups` runs of its rows (output channels; see `LayerWeight.rows`), are replaced by the
    means of at most `clusters` clusters, found by k-means from values that are spread evenly over
    the range: of the initialisations that Deep Compression (Han et al., ICLR 2016) compares, the one that
    keeps large weights, which matter most. Zeros stay zero and count as no cluster. Training afterwards keeps
    what is equal with `RecoverySettings.share_values`. BatchNorm is folded first: folded on export, it would
    scale equal values of different channels apart.

    Quantization to int8 per channel scales each channel on its own, which gives the values of a
    layer other integers in each of them; per tensor it does not.
    """

    name = "clustering"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return why shared values bring no speed and no flash; they always are for the download alone."""
        if not layer_weights(load_model(graph)):
            return ("the network has no convolution or dense layer with constant weights",)
        # TFLM has look-up tables for weights, on x86 and Xtensa, and they cost time:
        # tensorflow/tflite-micro, tensorflow/lite/micro/docs/compression.md
        reason = (
            "weights are stored and multiplied as before, whether or not they are equal; only the "
            "packed download file becomes smaller"
        )
        return (f"{target.runtime.name}: {reason}",)

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        """Check parameters against a graph without applying them.

        Raises:
            InvalidRequestError: An unknown key or node, or a number out of range; `field` is
                `parameters.nodes[<node>].<key>`.
        """
        _checked(layer_weights(load_model(graph)), parameters)

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        """Return the graph with BatchNorm folded and the weights of the chosen layers clustered.

        Raises:
            InvalidRequestError: As `check`.
        """
        del context
        result = fold_batch_norms(load_model(graph))
        for name, (clusters, groups) in _checked(layer_weights(result), parameters).items():
            # read again: another node may have clustered the same weight before
            weight = layer_weights(result)[name]
            replace_weight(result, weight, _clustered(weight.rows(), clusters, groups))
        return save_model(result)

    def alternatives(
        self,
        graph: bytes,
        profile: NetworkProfile,
        target: HardwareSpec,
        *,
        context: PassContext | None = None,
    ) -> Mapping[str, Sequence[Alternative]]:
        """Return none: no target that is known computes a clustered layer at less cost."""
        del graph, profile, target, context
        return {}

    def strengths(
        self, graph: bytes, target: HardwareSpec, number_format: NumberFormat
    ) -> Sequence[Mapping[str, Any]]:
        """Return parameters for the whole network, from the most clusters to the fewest.

        Layers too small to matter keep their values. Numbers of 4 bits have 16 values already, so
        nothing is offered for them.
        """
        del target
        names = largest_layers(layer_weights(load_model(graph)))
        if not names or number_format is NumberFormat.INT4:
            return ()
        return [
            {"nodes": {name: {"clusters": clusters} for name in names}}
            for clusters in DOWNLOAD_CLUSTERS
        ]

    def errors(
        self, graph: bytes, parameters: Mapping[str, Any], context: PassContext
    ) -> Mapping[str, float]:
        """Return the relative squared error of each chosen node's weight, in [0, 1].

        Raises:
            InvalidRequestError: As `check`.
        """
        del context
        weights = layer_weights(fold_batch_norms(load_model(graph)))
        return {
            name: relative_error(
                weights[name].rows(), _clustered(weights[name].rows(), clusters, groups)
            )
            for name, (clusters, groups) in _checked(weights, parameters).items()
        }

    def each_alone(
        self, graph: bytes, parameters: Mapping[str, Any], context: PassContext
    ) -> Iterator[ChangedLayer]:
        """Yield, for each chosen node, the graph with that node's weight clustered and no other.

        BatchNorm is folded in all of them.

        Raises:
            InvalidRequestError: As `check`.
        """
        after = load_model(self.apply(graph, parameters, context))
        return each_alone(fold_batch_norms(load_model(graph)), after, parameters.get("nodes", {}))


def _checked(
    weights: Mapping[str, LayerWeight], parameters: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """Return clusters and groups per node."""
    result = {}
    for name, choice in checked_nodes(weights, parameters).items():
        field = f"parameters.nodes[{name}]"
        for key in choice:
            if key not in {"clusters", "groups"}:
                raise refused(
                    f"unknown key {key!r}", f"{field}.{key}", "the keys are clusters and groups"
                )
        clusters = whole_number(choice, "clusters", field, low=1, high=MOST_CLUSTERS)
        rows = len(weights[name].rows())
        groups = whole_number(
            {"groups": 1, **choice}, "groups", field, low=1, high=min(rows, _MOST_GROUPS)
        )
        result[name] = clusters, groups
    return result


def _clustered(rows: Rows, clusters: int, groups: int) -> Rows:
    parts = []
    for part in np.array_split(rows, groups):
        result = np.zeros_like(part)
        alive = part != 0
        if alive.any():
            values = part[alive].astype(np.float64)
            means = k_means(values, clusters)
            edges = (means[1:] + means[:-1]) / 2
            result[alive] = means[np.searchsorted(edges, values)].astype(np.float32)
        parts.append(result)
    return np.concatenate(parts)


def k_means(values: _Values, count: int) -> _Values:
    """Return at most `count` cluster means of numbers in ascending order, by Lloyd's iteration.

    Starts with values spread evenly from the least to the greatest. A cluster that loses all its
    values goes on at the value that is farthest from its mean.
    """
    ordered = np.sort(values)
    different = np.unique(ordered)
    if len(different) <= count:
        return different
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    means = np.linspace(ordered[0], ordered[-1], count)
    for _ in range(_MOST_ROUNDS):
        ends = np.searchsorted(ordered, (means[1:] + means[:-1]) / 2, side="right")
        bounds = np.concatenate([[0], ends, [len(ordered)]])
        sizes = np.diff(bounds)
        updated = np.where(sizes > 0, np.diff(sums[bounds]) / np.maximum(sizes, 1), means)
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            distances = np.abs(ordered - np.repeat(updated, sizes))
            updated[empty[0]] = ordered[int(np.argmax(distances))]
        updated = np.sort(updated)
        if np.array_equal(updated, means):
            break
        means = updated
    return means
