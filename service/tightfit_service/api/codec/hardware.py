"""Hardware targets: complete ones outwards, and partial descriptions inwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from tightfit.v1 import hardware_pb2
from tightfit_service.api import resource_names
from tightfit_service.api.codec import enums
from tightfit_service.api.codec.times import timestamp_to_proto
from tightfit_service.application.use_cases import KnownTarget
from tightfit_service.domain.errors import InvalidTargetError
from tightfit_service.domain.hardware import Accelerator, HardwareSpec


def target_to_proto(target: KnownTarget) -> hardware_pb2.HardwareTarget:
    """Return a target of the catalogue or of a project."""
    target_id = target.spec.name
    return hardware_pb2.HardwareTarget(
        name=resource_names.PROJECT_TARGET.name(target.project, target_id)
        if target.project
        else resource_names.HARDWARE_TARGET.name(target_id),
        spec=spec_to_proto(target.spec),
        emulator=target.emulator,
        create_time=None if target.create_time is None else timestamp_to_proto(target.create_time),
    )


def spec_to_proto(spec: HardwareSpec) -> hardware_pb2.HardwareSpec:
    """Return a complete description."""
    memory, power = spec.memory, spec.power
    return hardware_pb2.HardwareSpec(
        name=spec.name,
        display_name=spec.display_name,
        core=spec.core,
        core_count=spec.core_count,
        clock_mhz=spec.clock_mhz,
        accelerator=None if spec.accelerator is None else _accelerator_to_proto(spec.accelerator),
        isa_features=spec.isa_features,
        number_formats=[enums.NUMBER_FORMAT.to_proto(f) for f in spec.number_formats],
        channel_multiple=spec.channel_multiple,
        output_format=enums.MODEL_FORMAT.to_proto(spec.output_format),
        memory=hardware_pb2.Memory(
            ram_bytes=memory.ram_bytes,
            flash_bytes=memory.flash_bytes,
            ram_bandwidth_mb_s=memory.ram_bandwidth_mb_s,
            cache_bytes=memory.cache_bytes,
            word_bytes=memory.word_bytes,
            flash_bandwidth_mb_s=memory.flash_bandwidth_mb_s,
            external_ram_bytes=memory.external_ram_bytes,
            external_ram_bandwidth_mb_s=memory.external_ram_bandwidth_mb_s,
            alignment_bytes=memory.alignment_bytes,
        ),
        runtime=hardware_pb2.Runtime(name=spec.runtime.name, version=spec.runtime.version),
        power=hardware_pb2.Power(
            active_mw=power.active_mw,
            accelerator_mw=power.accelerator_mw,
            idle_mw=power.idle_mw,
            sleep_mw=power.sleep_mw,
            supply_v=power.supply_v,
        ),
        isp_features=spec.isp_features,
        sources=spec.sources,
        assumed_fields=spec.assumed_fields,
    )


def _accelerator_to_proto(accelerator: Accelerator) -> hardware_pb2.Accelerator:
    return hardware_pb2.Accelerator(
        kind=accelerator.kind,
        name=accelerator.name,
        clock_mhz=accelerator.clock_mhz,
        macs_per_cycle={str(key): value for key, value in accelerator.macs_per_cycle.items()},
        tops={str(key): value for key, value in accelerator.tops.items()},
        memory_bytes=accelerator.memory_bytes,
        bandwidth_mb_s=accelerator.bandwidth_mb_s,
        transfer_mb_s=accelerator.transfer_mb_s,
        transfer_us=accelerator.transfer_us,
        operators=accelerator.operators,
        fallback=accelerator.fallback,
    )


def partial_from_proto(message: hardware_pb2.HardwareSpec) -> Mapping[str, Any]:
    """Return what a description says, in the keys of the catalogue's files; what is absent is left out.

    Raises:
        InvalidTargetError: No core, or a figure that is negative or no number.
        InvalidRequestError: An unknown format.
    """
    if not message.core:
        raise InvalidTargetError(
            "the description of the target names no core",
            field="target.core",
            remedy="give the core class, such as cortex-m7; the rest can be taken from it",
        )
    partial = _given(message, prefix="target.")
    partial.pop("assumed_fields", None)
    if message.number_formats:
        formats = enums.NUMBER_FORMAT.several(message.number_formats, field="target.number_formats")
        partial["number_formats"] = [str(value) for value in formats]
    if message.output_format:
        partial["output_format"] = str(
            enums.MODEL_FORMAT.from_proto(message.output_format, field="target.output_format")
        )
    return partial


def _given(message: Message, *, prefix: str) -> dict[str, Any]:
    """Return the fields that were sent, by name, nested messages as mappings."""
    given: dict[str, Any] = {}
    for field, value in message.ListFields():
        path = prefix + field.name
        if isinstance(value, Message):
            given[field.name] = _given(value, prefix=f"{path}.")
        elif isinstance(value, str):
            given[field.name] = value
        elif isinstance(value, Mapping):
            given[field.name] = dict(value)
        elif isinstance(value, (int, float)):
            if not (math.isfinite(value) and value >= 0):
                raise InvalidTargetError(
                    f"{field.name} is {value}",
                    field=path,
                    remedy="give the figure from the data sheet, in the stated unit",
                )
            given[field.name] = value
        else:
            given[field.name] = list(value)
    return given
