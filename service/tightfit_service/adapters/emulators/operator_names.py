"""What an operator is by its name, in the words of TFLite files, of Arm's Vela and of ONNX alike."""

from __future__ import annotations

from tightfit_service.domain.network import OperatorKind

_STEMS: tuple[tuple[OperatorKind, tuple[str, ...]], ...] = (
    (OperatorKind.SOFTMAX, ("softmax",)),
    (OperatorKind.DEPTHWISE_CONV, ("depthwiseconv",)),
    (OperatorKind.TRANSPOSED_CONV, ("transposeconv", "convtranspose")),
    (OperatorKind.CONV, ("conv",)),
    (OperatorKind.DENSE, ("fullyconnected", "gemm")),
    (OperatorKind.MATMUL, ("matmul",)),
    (OperatorKind.RECURRENT, ("lstm", "gru", "rnn", "svdf")),
    (OperatorKind.OTHER, ("quantize", "cast", "custom")),
    (OperatorKind.POOL, ("pool",)),
    (OperatorKind.GLOBAL_POOL, ("reduce", "mean")),
    (OperatorKind.NORMALIZATION, ("normalization", "l2norm", "lrn")),
    (OperatorKind.RESHAPE, ("expand", "reshape", "squeeze", "flatten", "identity", "memorycopy")),
    (OperatorKind.RESIZE, ("resize", "upsample")),
    (OperatorKind.TRANSPOSE, ("transpose", "tospace", "todepth", "tobatch")),
    (OperatorKind.PAD, ("pad",)),
    (OperatorKind.SLICE, ("slice", "split", "unpack", "gather")),
    (OperatorKind.CONCAT, ("concat", "pack")),
    (
        OperatorKind.ACTIVATION,
        (
            *(
                "relu",
                "elu",
                "sigmoid",
                "logistic",
                "tanh",
                "swish",
                "clip",
                "softplus",
                "softsign",
            ),
            *("mish", "erf", "exp", "log", "sqrt", "abs", "neg", "reciprocal", "square"),
        ),
    ),
    (OperatorKind.ELEMENTWISE, ("add", "sub", "mul", "div", "max", "min", "pow", "sum", "where")),
)
"""Parts of names; the first that occurs in a name decides, so that `Softmax` is no `Max`."""


def kind_of_name(name: str) -> OperatorKind:
    """Return the kind of an operator, such as `DEPTHWISE_CONV_2D`, `DepthwiseConv2D` or `Gemm`.

    A grouped ONNX `Conv` is a convolution here: the name does not tell.
    """
    plain = name.lower().replace("_", "")
    for kind, stems in _STEMS:
        if any(stem in plain for stem in stems):
            return kind
    return OperatorKind.OTHER
