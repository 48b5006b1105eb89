"""Roles from a file: what it says, what it may not say, and what happens when it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tightfit_service.adapters.access.policy_file import PolicyFile
from tightfit_service.domain.access import Grant, Role
from tightfit_service.domain.errors import InvalidRequestError

GOOD = """
groups:
  vision-team: {vision: submitter}
  ops: {"*": admin, vision: submitter}
certificates:
  runner-7.example: {vision: runner}
"""


def test_groups_and_certificates_have_roles(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    policy = PolicyFile(path)
    assert policy.roles_of_groups(["strangers", "vision-team", "ops"]) == (
        Grant("*", Role.ADMIN),
        Grant("vision", Role.SUBMITTER),
    )
    assert policy.roles_of_groups([]) == ()
    assert policy.roles_of_certificate(["unknown", "runner-7.example"]) == (
        "runner-7.example",
        (Grant("vision", Role.RUNNER),),
    )
    assert policy.roles_of_certificate(["unknown"]) == ("", ())


def test_a_new_policy_counts_and_a_broken_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    policy = PolicyFile(path, look_seconds=0)
    path.write_text("groups: {vision-team: {vision: owner}}")
    assert policy.roles_of_groups(["vision-team"]) == (Grant("vision", Role.SUBMITTER),)
    path.write_text("groups: {vision-team: {vision: viewer}}  # fewer rights")
    assert policy.roles_of_groups(["vision-team"]) == (Grant("vision", Role.VIEWER),)
    path.unlink()
    assert policy.roles_of_groups(["vision-team"]) == (Grant("vision", Role.VIEWER),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("groups: {a: {p: owner}}", "groups.a.p is 'owner'"),
        ("groups: {a: admin}", "groups.a has no mapping"),
        ("groups: [a]", "groups is no mapping"),
        ("users: {}", "other sections"),
        ("[", "no YAML"),
        ("!!python/object/apply:os.system [id]", "no YAML"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(content)
    with pytest.raises(InvalidRequestError, match=words):
        PolicyFile(path)
