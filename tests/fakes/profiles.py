"""Small network profiles, as the graph room would derive them, built without any graph."""

from __future__ import annotations

import math

from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind


class ProfileBuilder:
    """Adds operators one by one; every method returns the name of the tensor written."""

    def __init__(self, *, channels: int = 3, size: tuple[int, ...] = (16, 16)) -> None:
        self.tensors: dict[str, tuple[int, ...]] = {"input": (1, channels, *size)}
        self.operators: list[Operator] = []

    def conv(self, source: str, out_channels: int, *, kernel: int = 3, stride: int = 1) -> str:
        _, channels, *size = self.tensors[source]
        out_size = tuple(-(-s // stride) for s in size)
        weights = out_channels * channels * kernel**2
        return self._add(
            source,
            kind=OperatorKind.CONV,
            op_type="Conv",
            out_channels=out_channels,
            out_size=out_size,
            kernel=(kernel, kernel),
            stride=(stride, stride),
            macs=weights * math.prod(out_size),
            weight_count=weights,
            bias_count=out_channels,
        )

    def depthwise(self, source: str, *, stride: int = 1) -> str:
        _, channels, *size = self.tensors[source]
        out_size = tuple(-(-s // stride) for s in size)
        return self._add(
            source,
            kind=OperatorKind.DEPTHWISE_CONV,
            op_type="Conv",
            out_channels=channels,
            out_size=out_size,
            kernel=(3, 3),
            stride=(stride, stride),
            groups=channels,
            macs=9 * channels * math.prod(out_size),
            weight_count=9 * channels,
            bias_count=channels,
        )

    def add(self, first: str, second: str) -> str:
        _, channels, *size = self.tensors[first]
        return self._add(
            first,
            second,
            kind=OperatorKind.ELEMENTWISE,
            op_type="Add",
            out_channels=channels,
            out_size=tuple(size),
        )

    def global_pool(self, source: str) -> str:
        channels = self.tensors[source][1]
        return self._add(
            source,
            kind=OperatorKind.GLOBAL_POOL,
            op_type="GlobalAveragePool",
            out_channels=channels,
            out_size=(1, 1),
        )

    def dense(self, source: str, out_channels: int) -> str:
        flat = math.prod(self.tensors[source])
        return self._add(
            source,
            kind=OperatorKind.DENSE,
            op_type="Gemm",
            in_channels=flat,
            in_size=(),
            out_channels=out_channels,
            out_size=(),
            macs=flat * out_channels,
            weight_count=flat * out_channels,
            bias_count=out_channels,
        )

    def other(self, source: str, *, kind: OperatorKind, op_type: str) -> str:
        _, channels, *size = self.tensors[source]
        return self._add(
            source, kind=kind, op_type=op_type, out_channels=channels, out_size=tuple(size)
        )

    def build(self, *outputs: str) -> NetworkProfile:
        return NetworkProfile(
            operators=tuple(self.operators),
            tensors=self.tensors,
            inputs=("input",),
            outputs=outputs or (self.operators[-1].outputs[0],),
        )

    def _add(
        self,
        *inputs: str,
        kind: OperatorKind,
        op_type: str,
        out_channels: int,
        out_size: tuple[int, ...],
        in_channels: int | None = None,
        in_size: tuple[int, ...] | None = None,
        kernel: tuple[int, ...] = (),
        stride: tuple[int, ...] = (),
        groups: int = 1,
        macs: int = 0,
        weight_count: int = 0,
        bias_count: int = 0,
    ) -> str:
        node = f"{op_type.lower()}_{len(self.operators)}"
        _, channels, *size = self.tensors[inputs[0]]
        output = f"{node}_out"
        self.tensors[output] = (1, out_channels, *out_size)
        self.operators.append(
            Operator(
                node=node,
                kind=kind,
                op_type=op_type,
                inputs=inputs,
                outputs=(output,),
                macs=macs,
                in_channels=channels if in_channels is None else in_channels,
                out_channels=out_channels,
                in_size=tuple(size) if in_size is None else in_size,
                out_size=out_size,
                kernel=kernel,
                stride=stride,
                groups=groups,
                weight_count=weight_count,
                bias_count=bias_count,
            )
        )
        return output


def residual_profile(*, width: int = 16) -> NetworkProfile:
    """A stem, a residual block, a strided depthwise-separable block, pooling, a classifier and Softmax."""
    net = ProfileBuilder()
    stem = net.conv("input", width)
    inside = net.conv(stem, width)
    block = net.add(net.conv(inside, width), stem)
    separable = net.conv(net.depthwise(block, stride=2), 2 * width, kernel=1)
    logits = net.dense(net.global_pool(separable), 10)
    return net.build(net.other(logits, kind=OperatorKind.SOFTMAX, op_type="Softmax"))


def chain_profile(*, width: int = 8, length: int = 4) -> NetworkProfile:
    """Convolutions in a row, all tensors of one size."""
    net = ProfileBuilder(channels=width)
    tensor = "input"
    for _ in range(length):
        tensor = net.conv(tensor, width)
    return net.build(tensor)
