"""Diagnoses for tests that are about something else, or about what a caller makes of them."""

from __future__ import annotations

from fakes.clock import FakeClock
from tightfit_service.application.operations.diagnosis import Diagnosis


def no_checks() -> Diagnosis:
    """Return a diagnosis that looks at nothing."""
    return Diagnosis({}, clock=FakeClock())
