"""What the last calibration of a target measured, found again by file."""

from __future__ import annotations

from collections import deque

from tightfit_service.domain.calibration import Calibration, Observation
from tightfit_service.domain.errors import InvalidRequestError, PreconditionError


class KeptMeasurements:
    """The measurements of an earlier calibration, each of which is taken once. Belongs to one calibration."""

    def __init__(self, earlier: Calibration) -> None:
        self._earlier = earlier
        self._left: dict[str, deque[int]] = {}
        for place, item in enumerate(earlier.observations):
            if item.file_digest:
                self._left.setdefault(item.file_digest, deque()).append(place)

    @property
    def runtime(self) -> str:
        """Name and version of what ran the networks."""
        return self._earlier.runtime_version

    def take(self, digest: str) -> Observation | None:
        """Return the next measurement of a file, or None where no further one is kept."""
        left = self._left.get(digest)
        return self._earlier.observations[left.popleft()] if left else None

    def check_runner(self, runner_id: str) -> None:
        """Refuse to mix the measurements of two devices.

        Raises:
            InvalidRequestError: Another runner made these.
        """
        if runner_id != self._earlier.runner:
            raise InvalidRequestError(
                f"{self._earlier.target_name} was last calibrated by the runner "
                f"{self._earlier.runner}, and what it measured does not hold for {runner_id}",
                field="keep_measurements",
                remedy=f"calibrate with the runner {self._earlier.runner}, or without keeping "
                "measurements",
            )

    def check_runtime(self, runtime: str) -> None:
        """Refuse to mix the measurements of two versions of a runtime.

        Raises:
            PreconditionError: Another one ran these networks.
        """
        if runtime != self.runtime:
            raise PreconditionError(
                f"{self._earlier.target_name} was last calibrated with {self.runtime}, and its "
                f"runner measures with {runtime} now",
                field="keep_measurements",
                remedy="calibrate without keeping measurements",
            )
