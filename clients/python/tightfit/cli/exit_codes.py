"""What a build can act on: the exit codes of the command."""

from __future__ import annotations

from tightfit import errors

OK = 0
"""The result fits (`compress`), or the command did what it should."""
DIFFERENT = 1
"""Two recipes differ (`recipe diff`)."""
NOT_SOUND = 1
"""Something in the deployment does not work (`doctor`)."""
USAGE = 2
"""An option, a file or a name cannot be used."""
BUDGET_NOT_MET = 3
"""No model that meets the budget was found (`compress`), or can be by estimate (`check`)."""
NOT_AS_SIGNED = 3
"""A result is not what was signed (`verify`)."""
JOB_FAILED = 4
"""The job failed or was cancelled by someone else, or the server broke."""
UNAVAILABLE = 5
"""The server cannot be reached, or has no room."""
INTERRUPTED = 130
"""Ctrl-C."""


def code_for_error(error: errors.TightfitError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, (errors.UnavailableError, errors.ResourceExhaustedError)):
        return UNAVAILABLE
    if isinstance(error, (errors.ServerError, errors.IntegrityError, errors.CancelledError)):
        return JOB_FAILED
    return USAGE


def code_for_state(state: str) -> int:
    """Return the exit code for the final state of a job, as `result.json` spells it."""
    return {"SUCCEEDED": OK, "INFEASIBLE": BUDGET_NOT_MET}.get(state, JOB_FAILED)
