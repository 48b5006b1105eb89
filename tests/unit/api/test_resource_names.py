"""Resource names are built and parsed in pairs, and malformed ones are refused with the field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightfit_service.api import resource_names
from tightfit_service.domain.errors import InvalidRequestError

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,40}", fullmatch=True)
PATTERNS = [
    resource_names.PROJECT,
    resource_names.MODEL,
    resource_names.DATASET,
    resource_names.UPLOAD,
    resource_names.JOB,
    resource_names.TRIAL,
    resource_names.RUNNER,
    resource_names.HARDWARE_TARGET,
    resource_names.PROJECT_TARGET,
]


@given(pattern=st.sampled_from(PATTERNS), data=st.data())
def test_ids_come_back_from_names(pattern: resource_names.NamePattern, data: st.DataObject) -> None:
    ids = tuple(data.draw(IDS) for _ in range(pattern.template.count("{")))

    assert pattern.ids(pattern.name(*ids)) == ids


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model",
        "projects/p/models",
        "projects/p/models/",
        "projects//models/m",
        "projects/p/datasets/m",
        "projects/p/models/m/x",
        "/projects/p/models/m",
        "projects/p/models/../etc",
        "projects/p/models/..",
        "projects/p/models/a b",
        "projects/p/models/a\n",
        "projects/p/models/é",
        "projects/p/models/" + "m" * 129,
    ],
)
def test_refuses_malformed_names(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resource_names.MODEL.ids(name, field="job.spec.model")

    assert caught.value.field == "job.spec.model"
    assert "projects/{project}/models/{model}" in caught.value.remedy


@pytest.mark.parametrize("index", ["-1", "x", "1.5", "٣", "9999999"])
def test_refuses_trials_that_are_no_index(index: str) -> None:
    with pytest.raises(InvalidRequestError):
        resource_names.parse_trial(f"projects/p/jobs/j/trials/{index}")


def test_parses_trials() -> None:
    assert resource_names.parse_trial("projects/p/jobs/j/trials/12") == ("p", "j", 12)


@pytest.mark.parametrize("digest", ["0" * 63, "G" * 64, "A" * 64])
def test_refuses_artifacts_that_are_no_digest(digest: str) -> None:
    with pytest.raises(InvalidRequestError, match="sha-256"):
        resource_names.parse_artifact(f"projects/p/artifacts/{digest}")


def test_refuses_names_of_another_project() -> None:
    with pytest.raises(InvalidRequestError, match="project 'mine'") as caught:
        resource_names.parse_owned(
            resource_names.MODEL, "projects/other/models/m", project_id="mine", field="model"
        )

    assert caught.value.field == "model"
