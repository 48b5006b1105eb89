"""Frame rates, batteries and what follows from them."""

from __future__ import annotations

from tightfit.v1 import hardware_pb2
from tightfit_service.api.codec.metrics import estimate_to_proto
from tightfit_service.domain.duty import DutyCycle, Usage


def usage_from_proto(request: hardware_pb2.EstimateModelRequest) -> Usage | None:
    """Return how the network is used, or None where the request does not say.

    Raises:
        InvalidRequestError: No frame rate, a figure out of range, or half a battery.
    """
    if not request.HasField("usage"):
        return None
    usage = request.usage
    return Usage(
        frames_per_second=usage.frames_per_second,
        battery_mah=usage.battery_mah,
        battery_v=usage.battery_v,
    )


def duty_to_proto(duty: DutyCycle) -> hardware_pb2.DutyCycle:
    """Return the figures at a frame rate."""
    message = hardware_pb2.DutyCycle(
        duty=estimate_to_proto(duty.duty),
        mean_power_mw=estimate_to_proto(duty.mean_power_mw),
        notes=duty.notes,
    )
    if duty.battery_hours is not None:
        message.battery_hours.CopyFrom(estimate_to_proto(duty.battery_hours))
    return message
