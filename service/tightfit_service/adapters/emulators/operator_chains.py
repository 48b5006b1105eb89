"""Operators that cost otherwise together, or where they stand, than each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind


@dataclass(frozen=True)
class Together:
    """Operators that cost otherwise together, or where they stand, than each by itself."""

    name: str
    operators: tuple[Operator, ...]


def operators_together(network: NetworkProfile) -> list[Together]:
    """Return the GELUs and swishes of a network that are several operators each, and residual sums.

    A sum behind a convolution costs next to nothing where the runtime lets the convolution add (ONNX
    Runtime does in float32). The activations are x / 2 * (1 + erf(x / sqrt(2))), with constant factors before
    or behind the product, and x * sigmoid(x). Inner tensors have one reader.
    """
    return list(_Chains(network).all())


class _Chains:
    """Look-ups along the tensors of a network."""

    def __init__(self, network: NetworkProfile) -> None:
        self._operators = network.operators
        self._outputs = frozenset(network.outputs)
        self._makers = {name: op for op in network.operators for name in op.outputs}
        readers: dict[str, list[Operator]] = {}
        for op in network.operators:
            for name in op.inputs:
                readers.setdefault(name, []).append(op)
        self._readers: Mapping[str, Sequence[Operator]] = readers

    def all(self) -> Iterator[Together]:
        for operator in self._operators:
            if operator.op_type == "Erf":
                scaled = self._makers.get(operator.inputs[0])
                plus = self._reader(operator, "Add")
                if scaled is None or plus is None or len(scaled.inputs) != 1:
                    continue
                found = self._product(plus, scaled.inputs[0])
                if found is not None:
                    yield Together("spelled Gelu", (scaled, operator, plus, *found))
            elif operator.op_type == "Sigmoid":
                product = self._reader(operator, "Mul")
                if product is not None and set(product.inputs) == {
                    operator.inputs[0],
                    operator.outputs[0],
                }:
                    yield Together("gated Sigmoid", (operator, product))
            elif operator.op_type == "Add" and any(map(self._ends_in, operator.inputs)):
                # an activation behind it is one more pass in some runtimes
                activation = " and activation" if operator.fused else ""
                yield Together(f"Add{activation} behind a convolution", (operator,))

    def _ends_in(self, name: str) -> bool:
        """Whether a tensor is what a convolution makes for one reader alone."""
        maker = self._makers.get(name)
        return (
            maker is not None
            and maker.kind in (OperatorKind.CONV, OperatorKind.DEPTHWISE_CONV)
            and len(self._readers[name]) == 1
            and name not in self._outputs
        )

    def _product(self, gate: Operator, source: str) -> tuple[Operator, ...] | None:
        """Return what multiplies a gate by the source, with a constant factor anywhere around."""
        factors: list[Operator] = []
        following = self._reader(gate, "Mul", "Div")
        if following is not None and len(following.inputs) == 1:
            factors.append(following)
            gate, following = following, self._reader(following, "Mul")
        if following is None or len(following.inputs) != 2:
            return None
        other = next(name for name in following.inputs if name not in gate.outputs)
        if other != source:
            before = self._makers.get(other)
            if before is None or before.inputs != (source,) or before.op_type not in ("Mul", "Div"):
                return None
            factors.append(before)
        behind = self._reader(following, "Mul", "Div")
        if not factors and behind is not None and len(behind.inputs) == 1:
            return (following, behind)
        return (*factors, following) if factors else None

    def _reader(self, operator: Operator, *op_types: str) -> Operator | None:
        name = operator.outputs[0]
        readers = self._readers.get(name, ())
        if len(readers) != 1 or name in self._outputs or readers[0].op_type not in op_types:
            return None
        return readers[0]
