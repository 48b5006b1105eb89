"""What a device measured of the designed set, from which its emulator is corrected."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.measurement import OperatorTime
from tightfit_service.domain.network import NetworkProfile


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A network that the device measured.

    Attributes:
        label: Which kind of network of the designed set.
        number_format: That it was computed in.
        profile: Its work, in that number format.
        latency_ms: Of a run that nobody else on the device disturbed.
        operators: What the runtime says that each operator took; none where it does not tell.
        file_digest: SHA-256 of the file that was measured, in lower-case hex; empty where that is not known.
    """

    label: str
    number_format: NumberFormat
    profile: NetworkProfile
    latency_ms: float
    operators: tuple[OperatorTime, ...] = ()
    file_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class FitQuality:
    """How well the corrected emulator predicts a measured network that was left out of the fit.

    Attributes:
        number_format: Of the networks.
        count: Networks left out in turn, each with all others of its label where that is possible.
        median_error: Median absolute error, as a fraction of the measurement.
        p90_error: 90th percentile of it.
        within_10_percent: Share of networks within 10 % of their measurement.
        median_error_before: Median absolute error of the emulator as it came.
        coverage: Share of measurements inside the 90 % interval.
    """

    number_format: NumberFormat
    count: int
    median_error: float
    p90_error: float
    within_10_percent: float
    median_error_before: float
    coverage: float


@dataclass(frozen=True, kw_only=True)
class FitExamination:
    """What a first, long look at measured networks finds.

    Attributes:
        quality: Per number format, how well left-out networks are predicted.
        learned: What makes later fits to the same networks quick; only the fitter can read it.
    """

    quality: tuple[FitQuality, ...]
    learned: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A corrected emulator of a project's target: everything that it is made from."""

    project: str
    target_name: str
    runner: str
    runtime_name: str
    runtime_version: str
    create_time: datetime
    observations: tuple[Observation, ...]
    quality: tuple[FitQuality, ...] = ()
    learned: tuple[float, ...] = ()
    """See `FitExamination`."""
    skipped: tuple[str, ...] = ()
    """Networks of the set that have no measurement, each with the reason."""


@dataclass(frozen=True, kw_only=True)
class CalibrationProgress:
    """How far a calibration is; the last one has the result."""

    fraction: float
    message: str
    calibration: Calibration | None = None
