"""What LiteRT's kernels can do with integers, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit_service.domain.hardware import NumberFormat

EIGHT_BITS = frozenset({NumberFormat.INT8, NumberFormat.INT4})
"""Formats whose activations have 8 bits."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The integer kernels of one operator.

    Attributes:
        int8: First version of the operator that takes 8-bit activations, 0 where none does.
        int16: The same for 16-bit activations.
        int4: The same for 4-bit weights with 8-bit activations.
        scale: `free` (chosen for the output), `input` (input and output share one), `all` (so do
            all inputs), `unit` and `signed_unit` (fixed, `graph.quantized_tensors.FIXED_SCALES`).
        centred: Place of the input whose zero point is 0 in 8 bits (`graph.rounding.centred`), None
            where there is none.
    """

    int8: int
    int16: int
    int4: int = 0
    scale: str = "free"
    centred: int | None = None

    def version(self, number_format: NumberFormat) -> int:
        """Return the version for a format, 0 where there is no kernel."""
        if number_format is NumberFormat.INT16X8:
            return self.int16
        return self.int8 if number_format in EIGHT_BITS else 0


@dataclass(frozen=True, kw_only=True)
class WeightSlots:
    """Positions of a product's inputs, and the axis of output channels in its weight."""

    data: int
    weight: int
    bias: int
    axis: int


WEIGHTED: Mapping[str, WeightSlots] = {
    "CONV_2D": WeightSlots(data=0, weight=1, bias=2, axis=0),
    "DEPTHWISE_CONV_2D": WeightSlots(data=0, weight=1, bias=2, axis=3),
    "FULLY_CONNECTED": WeightSlots(data=0, weight=1, bias=2, axis=0),
    "TRANSPOSE_CONV": WeightSlots(data=2, weight=1, bias=3, axis=0),
}

KERNELS: Mapping[str, Kernel] = {
    "ABS": Kernel(int8=2, int16=3),
    "ADD": Kernel(int8=2, int16=3),
    "AVERAGE_POOL_2D": Kernel(int8=2, int16=3, scale="input"),
    "BATCH_MATMUL": Kernel(int8=2, int16=3, centred=1),
    "BATCH_TO_SPACE_ND": Kernel(int8=2, int16=4, scale="input"),
    "BROADCAST_TO": Kernel(int8=3, int16=3, scale="input"),
    "CONCATENATION": Kernel(int8=2, int16=3, scale="all"),
    "CONV_2D": Kernel(int8=3, int16=4, int4=7),
    "DEPTHWISE_CONV_2D": Kernel(int8=3, int16=5, int4=7),
    "DEPTH_TO_SPACE": Kernel(int8=2, int16=0, scale="input"),
    "DIV": Kernel(int8=1, int16=1),
    "ELU": Kernel(int8=1, int16=0),
    "EXP": Kernel(int8=2, int16=2),
    "EXPAND_DIMS": Kernel(int8=1, int16=1, scale="input"),
    "FULLY_CONNECTED": Kernel(int8=4, int16=7, int4=10),
    "GATHER": Kernel(int8=2, int16=4, scale="input"),
    "GATHER_ND": Kernel(int8=1, int16=3, scale="input"),
    "GELU": Kernel(int8=2, int16=2),
    "HARD_SWISH": Kernel(int8=1, int16=0),
    "L2_NORMALIZATION": Kernel(int8=2, int16=0, scale="signed_unit"),
    "LEAKY_RELU": Kernel(int8=1, int16=2),
    "LOG": Kernel(int8=2, int16=2),
    "LOGISTIC": Kernel(int8=2, int16=3, scale="unit"),
    "MAX_POOL_2D": Kernel(int8=2, int16=3, scale="input"),
    "MAXIMUM": Kernel(int8=2, int16=4, scale="all"),
    "MEAN": Kernel(int8=2, int16=3),
    "MINIMUM": Kernel(int8=2, int16=4, scale="all"),
    "MIRROR_PAD": Kernel(int8=2, int16=3, scale="input"),
    "MUL": Kernel(int8=2, int16=4),
    "PACK": Kernel(int8=2, int16=3, scale="all"),
    "PAD": Kernel(int8=2, int16=3, scale="input"),
    "PADV2": Kernel(int8=2, int16=3, scale="all"),
    "PRELU": Kernel(int8=1, int16=0),
    "REDUCE_MAX": Kernel(int8=2, int16=3, scale="input"),
    "REDUCE_MIN": Kernel(int8=2, int16=3, scale="input"),
    "REDUCE_PROD": Kernel(int8=2, int16=2),
    "RELU": Kernel(int8=2, int16=3),
    "RELU6": Kernel(int8=2, int16=3),
    "RELU_0_TO_1": Kernel(int8=1, int16=0),
    "RELU_N1_TO_1": Kernel(int8=1, int16=0),
    "RESHAPE": Kernel(int8=1, int16=1, scale="input"),
    "RESIZE_BILINEAR": Kernel(int8=2, int16=4, scale="input"),
    "RESIZE_NEAREST_NEIGHBOR": Kernel(int8=2, int16=4, scale="input"),
    "REVERSE_V2": Kernel(int8=3, int16=2, scale="input"),
    "RSQRT": Kernel(int8=2, int16=3),
    "SELECT_V2": Kernel(int8=1, int16=1, scale="all"),
    "SLICE": Kernel(int8=2, int16=4, scale="input"),
    "SOFTMAX": Kernel(int8=2, int16=3, scale="unit"),
    "SPACE_TO_BATCH_ND": Kernel(int8=2, int16=4, scale="input"),
    "SPACE_TO_DEPTH": Kernel(int8=2, int16=0, scale="input"),
    "SPLIT": Kernel(int8=2, int16=4, scale="input"),
    "SPLIT_V": Kernel(int8=2, int16=2, scale="input"),
    "SQRT": Kernel(int8=1, int16=1),
    "SQUARED_DIFFERENCE": Kernel(int8=2, int16=0),
    "SQUEEZE": Kernel(int8=1, int16=1, scale="input"),
    "STRIDED_SLICE": Kernel(int8=2, int16=2, scale="input"),
    "SUB": Kernel(int8=2, int16=5),
    "SUM": Kernel(int8=2, int16=2),
    "TANH": Kernel(int8=2, int16=3, scale="signed_unit"),
    "TILE": Kernel(int8=3, int16=3, scale="input"),
    "TRANSPOSE": Kernel(int8=2, int16=5, scale="input"),
    "TRANSPOSE_CONV": Kernel(int8=2, int16=3),
    "UNPACK": Kernel(int8=2, int16=4, scale="input"),
}
"""Versions are those of tensorflow/lite/tools/versioning/op_version.cc; that the kernels of LiteRT 2.3
compute what they should was tried out for each, and what did not has 0. Operators that are not here
stay in float."""
