"""Calibrations outwards."""

from __future__ import annotations

from tightfit.v1 import hardware_pb2
from tightfit_service.api.codec import enums
from tightfit_service.domain.calibration import CalibrationProgress, FitQuality


def calibration_to_proto(
    step: CalibrationProgress, request: hardware_pb2.CalibrateHardwareTargetRequest
) -> hardware_pb2.CalibrateHardwareTargetResponse:
    """Return one message of a calibration's stream; names are those of the request."""
    response = hardware_pb2.CalibrateHardwareTargetResponse(
        fraction=step.fraction, message=step.message
    )
    found = step.calibration
    if found is not None:
        response.report.CopyFrom(
            hardware_pb2.CalibrationReport(
                hardware_target=request.hardware_target,
                runner=request.runner,
                runtime=found.runtime_version,
                quality=[_quality(item) for item in found.quality],
                skipped=found.skipped,
            )
        )
    return response


def _quality(item: FitQuality) -> hardware_pb2.CalibrationQuality:
    return hardware_pb2.CalibrationQuality(
        number_format=enums.NUMBER_FORMAT.to_proto(item.number_format),
        network_count=item.count,
        median_error_ratio=item.median_error,
        p90_error_ratio=item.p90_error,
        within_10_percent_ratio=item.within_10_percent,
        median_error_before_ratio=item.median_error_before,
        coverage_ratio=item.coverage,
    )
