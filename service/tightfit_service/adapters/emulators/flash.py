"""The flash that a network's constants take on a microcontroller."""

from __future__ import annotations

from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

OPERATOR_OVERHEAD_BYTES = 420
"""Flatbuffer bytes per operator: its tensors, their names and shapes. Mean of the MLPerf Tiny files."""
CHANNEL_OVERHEAD_BYTES = 40
"""Flatbuffer bytes per output channel quantised by itself: scale, zero point and range of weight and bias."""
BIAS_BYTES = 4
"""int32 in integer networks, float32 in others."""
CONSTANT_BYTES = 4


def constant_bytes(operator: Operator) -> int:
    """Return the bytes of an operator's weights and biases."""
    weights = -(-operator.weight_count * operator.weight_bits // 8)
    return weights + operator.bias_count * BIAS_BYTES


def flatbuffer_bytes(operator: Operator) -> int:
    """Return the bytes of a file that are there because of the operator, its constants included."""
    per_channel = operator.kind not in (OperatorKind.DENSE, OperatorKind.MATMUL)
    channels = operator.out_channels if operator.weight_count and per_channel else 0
    quantised = operator.weight_bits < 32
    overhead = OPERATOR_OVERHEAD_BYTES + (CHANNEL_OVERHEAD_BYTES * channels if quantised else 0)
    return constant_bytes(operator) + overhead


def other_constant_bytes(network: NetworkProfile) -> int:
    """Return the bytes of constants that belong to no operator."""
    return network.constant_count * CONSTANT_BYTES
