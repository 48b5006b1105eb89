"""Resource names: the only place of the client that builds or takes apart these strings."""

from __future__ import annotations

import re

from tightfit.errors import InvalidInputError

_DIGEST = re.compile(r"[0-9a-f]{64}")


def project_name(project: str) -> str:
    """Return `projects/{project}`."""
    return f"projects/{project}"


def job_name(job: str, *, project: str) -> str:
    """Return the full name of a job from its name or its last segment.

    Raises:
        InvalidInputError: Neither a job's name nor a single segment.
    """
    return _name_in_project("job", job, project=project)


def model_name(model: str, *, project: str) -> str:
    """Return the full name of a model from its name or its last segment.

    Raises:
        InvalidInputError: Neither a model's name nor a single segment.
    """
    return _name_in_project("model", model, project=project)


def dataset_name(dataset: str, *, project: str) -> str:
    """Return the full name of a dataset from its name or its last segment.

    Raises:
        InvalidInputError: Neither a dataset's name nor a single segment.
    """
    return _name_in_project("dataset", dataset, project=project)


def target_name(target: str, *, project: str = "") -> str:
    """Return the full name of a target from its name or its last segment.

    With a project the short name stands for the project's target, or else for the catalogue's.
    """
    if target.startswith(("hardwareTargets/", "projects/")):
        return target
    short = f"hardwareTargets/{target}"
    return f"{project_name(project)}/{short}" if project else short


def runner_name(runner: str, *, project: str) -> str:
    """Return the full name of a runner from its name or its last segment.

    Raises:
        InvalidInputError: Neither a runner's name nor a single segment.
    """
    return _name_in_project("runner", runner, project=project, known_by="name")


def _name_in_project(noun: str, name: str, *, project: str, known_by: str = "id") -> str:
    """Return the full name of a resource of a project from its name or its last segment."""
    if re.fullmatch(rf"projects/[^/]+/{noun}s/[^/]+", name):
        return name
    if not name or "/" in name:
        raise InvalidInputError(
            f"{name!r} is no {noun}",
            field=noun,
            remedy=f"give its {known_by} as `tightfit {noun}s list` shows it",
        )
    return f"{project_name(project)}/{noun}s/{name}"


def api_key_name(api_key: str) -> str:
    """Return the full name of an API key from its name or its id.

    Raises:
        InvalidInputError: Neither; a token is refused without being repeated.
    """
    short = api_key.removeprefix("apiKeys/")
    if not re.fullmatch(r"[0-9a-f]{16}", short):
        raise InvalidInputError(
            "that is no API key's id",
            field="key",
            remedy="give its id as `tightfit auth list` shows it, not the token",
        )
    return f"apiKeys/{short}"


def artifact_name(artifact: str, *, project: str) -> str:
    """Return the full name of an artifact from its name or its digest.

    Raises:
        InvalidInputError: Neither an artifact's name nor a sha-256 in hexadecimal.
    """
    if not _DIGEST.fullmatch(last_segment(artifact)):
        raise InvalidInputError(
            f"{artifact!r} is no artifact",
            field="artifact",
            remedy="give a sha-256 in lower-case hexadecimal",
        )
    return artifact if "/" in artifact else f"{project_name(project)}/artifacts/{artifact}"


def last_segment(name: str) -> str:
    """Return the last segment of a resource name."""
    return name.rpartition("/")[2]


def trial_index(name: str) -> int | None:
    """Return the index in a trial's name, or None for the empty name."""
    return int(last_segment(name)) if name else None
