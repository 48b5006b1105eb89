"""Low-rank factorization: a layer replaced by a chain of cheaper ones of nearly the same function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from tightfit_service.application.ports import PassContext
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import Alternative, NetworkProfile
from tightfit_service.graph.batch_norm import affine_of, foldable_batch_norms
from tightfit_service.graph.fusion import fused_graph
from tightfit_service.graph.model_file import copy_model, load_model, save_model, shown
from tightfit_service.graph.rebuilding import FreshNames, rebuilt
from tightfit_service.graph.structure import (
    Array,
    attribute,
    default_opset,
    initializers,
    replace_nodes,
    set_attribute,
    set_initializer,
    sorted_model_nodes,
)
from tightfit_service.passes.low_rank_chains import Chain, chain_of, chain_operators
from tightfit_service.passes.low_rank_factors import (
    InputMoments,
    Matrix,
    bias_shift,
    composed,
    energy_ranks,
    factorize,
    largest_ranks,
    relative_error,
)
from tightfit_service.passes.observed_inputs import Layer, observed_moments

METHODS = ("svd", "spatial", "tucker2")

_TOLERANCES = (0.003, 0.01, 0.03, 0.08, 0.16, 0.3)
"""Relative squared errors of a layer's output that ranks are offered for; beyond the last one,
training no longer brings the layer back better than a narrower one would be."""
_MOST_ALTERNATIVES = 5
_GEMM_WITHOUT_BIAS = 11
"""The operator set from which on a Gemm, such as the first of a chain, needs no bias."""
_FEWEST_CHANNELS = 2
"""Channels on either side with fewer of which a layer is not factorized: there is next to nothing to save."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Factorable:
    """A layer in the form that factors are found in.

    Attributes:
        weight: (out, in, *kernel) in float64, Gemm's transB resolved.
        scale: What a BatchNormalization behind multiplies each output with, (out,); ones without.
        has_bias: Whether a bias behind the layer can take the mean of what is left out.
    """

    node: NodeProto
    weight: Matrix
    scale: Matrix
    has_bias: bool

    @property
    def scaled(self) -> Matrix:
        """The weight with each output at the scale at which the network sees it."""
        return self.weight * self.scale.reshape(-1, *(1,) * (self.weight.ndim - 1))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that have a meaning here."""
        kernel = self.weight.shape[2:]
        methods = ["svd"]
        if len(kernel) == 2 and min(kernel) > 1:
            methods.append("spatial")
        if math.prod(kernel) > 1:
            methods.append("tucker2")
        return tuple(methods)


class LowRankPass:
    """Implements `application.ports.NodePass`; stateless and thread-safe.

    Parameters: `{"nodes": {node: {"method": "svd" | "spatial" | "tucker2", "rank": r}}}`, for tucker2
    `"rank": [r_in, r_out]`. Dense layers (Gemm, MatMul with a constant matrix) take svd; convolutions
    that are not grouped take svd (kernel into `rank` channels, then 1x1), tucker2 (1x1, kernel, 1x1),
    and in two dimensions spatial (k x 1, then 1 x k). Methods and sources: `low_rank_factors`.

    The last node of a chain keeps the name, the bias and what follows. With calibration samples the
    error of the outputs is minimised as they are seen, else that of the weights; a BatchNormalization
    behind the layer counts in both.
    """

    name = "low_rank"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return why the pass cannot help; empty when it can. Fewer products help on every target."""
        del target
        if _factorable(load_model(graph)):
            return ()
        return ("the network has no dense layer and no ungrouped convolution to factorize",)

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        """Check parameters against a graph without applying them.

        Raises:
            InvalidRequestError: An unknown key, node or method, a node that cannot be factorized so,
                or a rank below 1 or above full rank; `field` is `parameters.nodes[<node>].<key>`.
        """
        layers = _factorable(load_model(graph))
        for name, (method, ranks) in _checked(layers, parameters).items():
            full = largest_ranks(method, layers[name].weight.shape)
            if any(rank > most for rank, most in zip(ranks, full, strict=True)):
                raise InvalidRequestError(
                    f"rank {_said(ranks)} of node {shown(name)} is above full rank {_said(full)}",
                    field=f"parameters.nodes[{name}].rank",
                    remedy=f"give a rank of at most {_said(full)}",
                )

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        """Return the graph with the given layers factorized; names of nodes that stay do not change.

        Ranks above full rank, as they come about when structured pruning has made a layer narrower,
        are clipped; a layer left at full rank, or with a single channel on one side, stays as it is,
        since the chain would only cost more.

        Raises:
            InvalidModelError: Not a working graph.
            InvalidRequestError: As `check`, ranks above full rank excepted.
            WorkFailedError: The result is not a valid graph, which would be an error of this pass.
        """
        model = load_model(graph)
        replace_nodes(model.graph, sorted_model_nodes(model))
        layers = _factorable(model, fewest=1)
        wanted = _checked(layers, parameters)
        full = {name: largest_ranks(wanted[name][0], layers[name].weight.shape) for name in wanted}
        chosen = {
            name: (method, tuple(min(pair) for pair in zip(ranks, full[name], strict=True)))
            for name, (method, ranks) in wanted.items()
            if min(layers[name].weight.shape[:2]) >= _FEWEST_CHANNELS
            and any(rank <= most for rank, most in zip(ranks, full[name], strict=True))
        }
        moments = _moments(model, [layers[name] for name in chosen], context)
        result = copy_model(model)
        names = FreshNames(result)
        for name, (method, ranks) in chosen.items():
            _replace(result, names, layers[name], method, ranks, moments.get(name))
        return save_model(rebuilt(result, technique=self.name))

    def alternatives(
        self,
        graph: bytes,
        profile: NetworkProfile,
        target: HardwareSpec,
        *,
        context: PassContext | None = None,
    ) -> Mapping[str, Sequence[Alternative]]:
        """Return, per node that can gain, up to five chains from mildest to strongest.

        Ranks are multiples of the target's channel multiple; chains that do not need fewer
        multiply-accumulates and fewer weights than the node are left out.

        Args:
            graph: A working graph.
            profile: Its profile.
            target: The device.
            context: With calibration samples, errors are those of the outputs on them; without, those
                of the weights.
        """
        model = load_model(graph)
        layers = _factorable(model)
        moments = _moments(model, list(layers.values()), context or PassContext())
        operators = {operator.node: operator for operator in profile.operators}
        shapes = fused_graph(model).shapes
        found: dict[str, Sequence[Alternative]] = {}
        for name, layer in layers.items():
            operator = operators.get(name)
            source = shapes.get(layer.node.input[0])
            if operator is None or source is None:
                continue
            offers = []
            for method, ranks in _candidates(layer, target.channel_multiple, moments.get(name)):
                chain = chain_of(layer.node, layer.weight.shape, method, ranks)
                replaced = chain_operators(operator, chain, source)
                macs = sum(item.macs for item in replaced)
                weights = sum(item.weight_count for item in replaced)
                if macs < operator.macs and weights < operator.weight_count:
                    factors = factorize(method, layer.scaled, ranks, moments.get(name))
                    offers.append(
                        Alternative(
                            node=name,
                            pass_name=self.name,
                            label=f"{method} rank {_said(ranks)}",
                            parameters={
                                "method": method,
                                "rank": ranks[0] if len(ranks) == 1 else list(ranks),
                            },
                            operators=replaced,
                            error=relative_error(
                                layer.scaled, composed(factors), moments.get(name)
                            ),
                        )
                    )
            if offers := _best(offers):
                found[name] = offers
        return found


def _factorable(model: ModelProto, *, fewest: int = _FEWEST_CHANNELS) -> dict[str, _Factorable]:
    """Return the layers that can be factorized, by node name, in topological order.

    Those with fewer channels than `fewest` on either side are left out.
    """
    values = initializers(model)
    norms = {source: norm for norm, source in foldable_batch_norms(model).items()}
    by_name = {node.name: node for node in model.graph.node}
    found = {}
    for node in sorted_model_nodes(model):
        weight = _weight_of(node, values)
        if weight is None or min(weight.shape[:2]) < fewest:
            continue
        if node.op_type == "Gemm" and default_opset(model) < _GEMM_WITHOUT_BIAS:
            continue
        scale = np.ones(len(weight))
        if node.name in norms:
            scale = np.abs(affine_of(by_name[norms[node.name]], values)[0])
            # outputs that the norm switches off still need a factor to be divided by
            scale = np.maximum(scale, 1e-3 * max(float(scale.max()), 1e-30))
        has_bias = node.name in norms or (
            node.op_type != "MatMul" and len(node.input) > 2 and bool(node.input[2])
        )
        found[node.name] = _Factorable(node=node, weight=weight, scale=scale, has_bias=has_bias)
    return found


def _weight_of(node: NodeProto, values: Mapping[str, Array]) -> Matrix | None:
    """Return a layer's weight as (out, in, *kernel), or None where it cannot be factorized."""
    if node.domain or len(node.input) < 2 or node.input[1] not in values:
        return None
    weight = values[node.input[1]]
    if weight.dtype != np.float32 or node.input[0] in values:
        return None
    if node.op_type == "Conv":
        return weight.astype(np.float64) if attribute(node, "group", 1) == 1 else None
    if weight.ndim != 2 or node.op_type not in {"Gemm", "MatMul"} or attribute(node, "transA", 0):
        return None
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]:
        bias = values.get(node.input[2])
        if bias is None or math.prod(bias.shape[:-1]) != 1:
            return None
    return (weight if attribute(node, "transB", 0) else weight.T).astype(np.float64)


def _checked(
    layers: Mapping[str, _Factorable], parameters: Mapping[str, Any]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return method and ranks per node, each key checked; ranks may still be above full rank."""
    for key in parameters:
        if key != "nodes":
            raise _refused(f"unknown key {key!r}", f"parameters.{key}", "the only key is `nodes`")
    nodes = parameters.get("nodes", {})
    if not isinstance(nodes, Mapping):
        raise _refused("nodes is no mapping", "parameters.nodes", "map node names to choices")
    result = {}
    for name, choice in nodes.items():
        field = f"parameters.nodes[{name}]"
        if name not in layers:
            raise _refused(
                f"the graph has no layer {shown(str(name))} that could be factorized",
                field,
                "name a Gemm, a MatMul with a constant matrix or an ungrouped Conv",
            )
        if not isinstance(choice, Mapping) or set(choice) != {"method", "rank"}:
            raise _refused(
                "a choice has the keys `method` and `rank`", field, "give both and nothing else"
            )
        method, rank = choice["method"], choice["rank"]
        if method not in layers[name].methods:
            raise _refused(
                f"method {method!r} is not offered for node {shown(name)}",
                f"{field}.method",
                "use " + " or ".join(layers[name].methods),
            )
        result[name] = (method, _ranks(method, rank, f"{field}.rank"))
    return result


def _ranks(method: str, rank: Any, field: str) -> tuple[int, ...]:
    count = 2 if method == "tucker2" else 1
    ranks = tuple(rank) if isinstance(rank, Sequence) and not isinstance(rank, str) else (rank,)
    whole = all(isinstance(item, int) and not isinstance(item, bool) for item in ranks)
    if len(ranks) != count or not whole or min(ranks) < 1:
        wanted = "[r_in, r_out], two whole numbers" if count == 2 else "a whole number"
        raise _refused(f"rank is {rank!r}", field, f"give {wanted} of at least 1")
    return ranks


def _refused(message: str, field: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(message, field=field, remedy=remedy)


def _said(ranks: Sequence[int]) -> str:
    return "x".join(map(str, ranks))


def _moments(
    model: ModelProto, layers: Sequence[_Factorable], context: PassContext
) -> dict[str, InputMoments]:
    if context.calibration is None or not layers:
        return {}
    watched = [
        Layer(node=layer.node, weight=layer.weight, centred=layer.has_bias) for layer in layers
    ]
    return observed_moments(model, watched, context.calibration, seed=context.seed)


def _candidates(
    layer: _Factorable, multiple: int, moments: InputMoments | None
) -> list[tuple[str, tuple[int, ...]]]:
    """Return methods with ranks for a range of errors, each rank rounded up to the multiple."""
    found: dict[tuple[str, tuple[int, ...]], None] = {}
    for method in layer.methods:
        full = largest_ranks(method, layer.weight.shape)
        for least in energy_ranks(method, layer.scaled, _TOLERANCES, moments):
            ranks = tuple(-(-rank // multiple) * multiple for rank in least)
            if all(rank <= most for rank, most in zip(ranks, full, strict=True)):
                found[method, ranks] = None
    return list(found)


def _best(offers: Sequence[Alternative]) -> list[Alternative]:
    """Return offers of which none is both cheaper and better than another, mildest first, a handful."""
    kept: list[Alternative] = []
    least = math.inf
    for offer in sorted(offers, key=lambda item: (item.error, _macs(item))):
        if _macs(offer) < least and offer.error <= _TOLERANCES[-1]:
            kept.append(offer)
            least = _macs(offer)
    if len(kept) <= _MOST_ALTERNATIVES:
        return kept
    picks = np.linspace(0, len(kept) - 1, _MOST_ALTERNATIVES).round().astype(int)
    return [kept[index] for index in picks]


def _macs(offer: Alternative) -> int:
    return sum(operator.macs for operator in offer.operators)


def _replace(
    model: ModelProto,
    names: FreshNames,
    layer: _Factorable,
    method: str,
    ranks: tuple[int, ...],
    moments: InputMoments | None,
) -> None:
    """Put the chain in the layer's place, in place; nodes stay in topological order."""
    factors = factorize(method, layer.scaled, ranks, moments)
    shift = None
    if moments is not None and layer.has_bias:
        shift = bias_shift(layer.scaled, composed(factors), moments) / layer.scale
    factors[-1] = factors[-1] / layer.scale.reshape(-1, *(1,) * (factors[-1].ndim - 1))
    chain = chain_of(layer.node, layer.weight.shape, method, ranks)
    nodes = list(model.graph.node)
    position = next(i for i, node in enumerate(nodes) if node.name == layer.node.name)
    added = _chain_nodes(model, names, chain, factors, layer.node, shift)
    replace_nodes(model.graph, [*nodes[:position], *added, *nodes[position + 1 :]])


def _chain_nodes(
    model: ModelProto,
    names: FreshNames,
    chain: Chain,
    factors: Sequence[Matrix],
    original: NodeProto,
    shift: Matrix | None,
) -> list[NodeProto]:
    added: list[NodeProto] = []
    source = original.input[0]
    for link, factor in zip(chain.links, factors, strict=True):
        node = NodeProto()
        node.CopyFrom(link.node)
        weight = names.take(f"{link.node.name}.weight")
        values = factor.T if factor.ndim == 2 and not attribute(node, "transB", 0) else factor
        set_initializer(model, weight, values.astype(np.float32))
        node.input[:] = [source, weight, *node.input[2:]]
        if link is not chain.links[-1]:
            node.name = names.take(node.name)
            node.output[:] = [names.take(f"{link.node.name}_out")]
        added.append(node)
        source = node.output[0]
    if shift is not None:
        _shift_bias(model, names, added[-1], shift)
    return added


def _shift_bias(model: ModelProto, names: FreshNames, node: NodeProto, shift: Matrix) -> None:
    """Add to the bias of a chain's last node; one of its own is made where others share it."""
    values = initializers(model)
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    bias = values[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if beta != 1.0:
        set_attribute(node, "beta", 1.0)
    name = names.take(f"{node.name}.bias")
    shifted = beta * bias.reshape(-1).astype(np.float64) + alpha * shift
    set_initializer(model, name, shifted.astype(np.float32))
    node.input[:] = [*node.input[:2], name]
