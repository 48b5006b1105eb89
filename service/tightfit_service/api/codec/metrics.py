"""Estimates, metrics and violations."""

from __future__ import annotations

from tightfit.v1 import metrics_pb2
from tightfit_service.api.codec import enums
from tightfit_service.domain.cost import CostEstimate, OperatorCost
from tightfit_service.domain.measurement import Measurement
from tightfit_service.domain.quantities import Interval
from tightfit_service.domain.trial import Metrics, Violation


def estimate_to_proto(interval: Interval) -> metrics_pb2.Estimate:
    """Return an estimated figure."""
    return metrics_pb2.Estimate(value=interval.value, low=interval.low, high=interval.high)


def cost_to_proto(cost: CostEstimate) -> metrics_pb2.CostEstimate:
    """Return the cost of a network."""
    return metrics_pb2.CostEstimate(
        estimated_latency_ms=estimate_to_proto(cost.latency_ms),
        estimated_energy_mj=estimate_to_proto(cost.energy_mj),
        estimated_peak_ram_bytes=estimate_to_proto(cost.peak_ram_bytes),
        flash_bytes=estimate_to_proto(cost.flash_bytes),
        macs=cost.macs,
        layers=[_operator_to_proto(layer) for layer in cost.layers],
        peak_node=cost.peak_node,
        provenance=cost.provenance,
        confidence=cost.confidence,
        warnings=cost.warnings,
    )


def metrics_to_proto(metrics: Metrics) -> metrics_pb2.Metrics:
    """Return the metrics; accuracies that are not known are absent."""
    message = metrics_pb2.Metrics(
        cost=cost_to_proto(metrics.cost),
        file_bytes=metrics.file_bytes,
        download_bytes=metrics.download_bytes,
    )
    if (accuracy := metrics.accuracy) is not None:
        message.accuracy = accuracy.value
        message.accuracy_low = accuracy.low
        message.accuracy_high = accuracy.high
        message.accuracy_sample_count = accuracy.sample_count
    if (selection := metrics.selection_accuracy) is not None:
        message.selection_accuracy = selection.value
        message.selection_accuracy_low = selection.low
        message.selection_accuracy_high = selection.high
        message.selection_accuracy_sample_count = selection.sample_count
    if metrics.measured is not None:
        message.measured.CopyFrom(_measured_to_proto(metrics.measured))
    return message


def violation_to_proto(violation: Violation) -> metrics_pb2.Violation:
    """Return a limit that is missed."""
    return metrics_pb2.Violation(
        quantity=enums.QUANTITY.to_proto(violation.quantity),
        limit=violation.limit,
        actual=violation.actual,
    )


def _measured_to_proto(measured: Measurement) -> metrics_pb2.MeasuredCost:
    energy = measured.energy
    return metrics_pb2.MeasuredCost(
        measured_latency_ms_p50=measured.measured_latency_ms_p50,
        measured_latency_ms_p90=measured.measured_latency_ms_p90,
        measured_latency_ms_p99=measured.measured_latency_ms_p99,
        measured_energy_mj=None if energy is None else energy.energy_mj,
        measured_peak_ram_bytes=measured.measured_peak_ram_bytes,
        run_count=measured.run_count,
        settled=measured.settled,
        noise_ratio=measured.noise_ratio,
        throttled=measured.throttled,
        runner=measured.runner,
        runtime=f"{measured.runtime_name} {measured.runtime_version}".strip(),
    )


def _operator_to_proto(layer: OperatorCost) -> metrics_pb2.OperatorCost:
    return metrics_pb2.OperatorCost(
        node=layer.node,
        op_type=layer.op_type,
        macs=layer.macs,
        estimated_latency_ms=layer.latency_ms,
        estimated_energy_mj=layer.energy_mj,
        weight_bytes=layer.weight_bytes,
        provenance=layer.provenance,
    )
