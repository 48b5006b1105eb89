"""Resource names of the API: the only place that builds or parses them.

Here and everywhere in the API `_id` is one segment of a name and `_name` a full path.
"""

from __future__ import annotations

import re

from tightfit_service.domain.errors import InvalidRequestError

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")


class NamePattern:
    """A pattern such as `projects/{project}/models/{model}`."""

    def __init__(self, template: str) -> None:
        self.template = template
        self._parts = template.split("/")

    def name(self, *ids: str) -> str:
        """Return the full name for the ids of the variables, in order."""
        given = iter(ids)
        return "/".join(next(given) if part.startswith("{") else part for part in self._parts)

    def ids(self, name: str, *, field: str = "name") -> tuple[str, ...]:
        """Return the ids in a full name, in order.

        Raises:
            InvalidRequestError: Empty, or not of this pattern.
        """
        if not name:
            raise InvalidRequestError(
                f"{field} is empty", field=field, remedy=f"give {self.template}"
            )
        parts = name.split("/")
        fits = len(parts) == len(self._parts) and all(
            _SEGMENT.fullmatch(part) if expected.startswith("{") else part == expected
            for part, expected in zip(parts, self._parts, strict=False)
        )
        if not fits:
            raise InvalidRequestError(
                f"{name[:200]!r} is not a resource name of the form {self.template}",
                field=field,
                remedy=f"give {self.template}; ids are letters, digits, dots, dashes, underscores",
            )
        return tuple(
            part
            for part, expected in zip(parts, self._parts, strict=True)
            if expected.startswith("{")
        )


PROJECT = NamePattern("projects/{project}")
MODEL = NamePattern("projects/{project}/models/{model}")
DATASET = NamePattern("projects/{project}/datasets/{dataset}")
UPLOAD = NamePattern("projects/{project}/uploads/{upload}")
ARTIFACT = NamePattern("projects/{project}/artifacts/{artifact}")
JOB = NamePattern("projects/{project}/jobs/{job}")
TRIAL = NamePattern("projects/{project}/jobs/{job}/trials/{trial}")
RUNNER = NamePattern("projects/{project}/runners/{runner}")
API_KEY = NamePattern("apiKeys/{api_key}")
HARDWARE_TARGET = NamePattern("hardwareTargets/{hardware_target}")
PROJECT_TARGET = NamePattern("projects/{project}/hardwareTargets/{hardware_target}")


def parse_project(name: str, *, field: str = "parent") -> str:
    """Return the project id. Raises InvalidRequestError."""
    (project_id,) = PROJECT.ids(name, field=field)
    return project_id


def parse_job(name: str, *, field: str = "name") -> tuple[str, str]:
    """Return the ids of project and job. Raises InvalidRequestError."""
    project_id, job_id = JOB.ids(name, field=field)
    return project_id, job_id


def parse_trial(name: str, *, field: str = "name") -> tuple[str, str, int]:
    """Return the ids of project and job, and the trial's index. Raises InvalidRequestError."""
    project_id, job_id, index = TRIAL.ids(name, field=field)
    if not (index.isascii() and index.isdigit() and len(index) <= 6):
        raise InvalidRequestError(
            f"{index!r} is not a trial of a job",
            field=field,
            remedy="trials are numbered from 0",
        )
    return project_id, job_id, int(index)


def parse_artifact(name: str, *, field: str = "name") -> tuple[str, str]:
    """Return the project id and the digest. Raises InvalidRequestError."""
    project_id, digest = ARTIFACT.ids(name, field=field)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise InvalidRequestError(
            f"{digest[:80]!r} is not a sha-256 in lower-case hexadecimal",
            field=field,
            remedy="take artifact names from a job's trials",
        )
    return project_id, digest


def parse_hardware_target(name: str, *, field: str = "name") -> tuple[str, str]:
    """Return the project id, "" where the name has none, and the target's id.

    Raises:
        InvalidRequestError: Of neither form.
    """
    if name.startswith("projects/"):
        project_id, target_id = PROJECT_TARGET.ids(name, field=field)
        return project_id, target_id
    (target_id,) = HARDWARE_TARGET.ids(name, field=field)
    return "", target_id


def parse_owned(pattern: NamePattern, name: str, *, project_id: str, field: str) -> str:
    """Return the last id of a name that must be of the given project.

    Raises:
        InvalidRequestError: Malformed, or of another project.
    """
    owner_id, resource_id = pattern.ids(name, field=field)
    if owner_id != project_id:
        raise InvalidRequestError(
            f"{name!r} is not of project {project_id!r}",
            field=field,
            remedy="a job and all that it uses are of one project",
        )
    return resource_id
