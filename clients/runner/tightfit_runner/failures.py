"""Why there is no measurement: the kinds of the contract, as errors."""

from __future__ import annotations


class MeasurementError(Exception):
    """A model could not be measured.

    Attributes:
        kind: A value of `WorkFailure.Kind` without its prefix: `CRASHED`, `TIMED_OUT` and so on.
        message: What happened, with the runtime's own words.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class SettingsError(Exception):
    """The agent was started with what cannot be used; the message says what and what to do."""
