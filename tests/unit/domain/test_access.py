"""Roles, grants, and tokens of API keys."""

from __future__ import annotations

import re

import pytest

from tightfit_service.domain.access import (
    ALL_PROJECTS,
    ANONYMOUS,
    Grant,
    Principal,
    Role,
    hash_secret,
    new_token,
    split_token,
)
from tightfit_service.domain.errors import InvalidCredentialsError, PermissionDeniedError


def _with(*grants: tuple[str, Role]) -> Principal:
    return Principal(name="key:1", grants=tuple(Grant(*grant) for grant in grants))


@pytest.mark.parametrize(
    ("role", "included"),
    [
        (Role.VIEWER, {Role.VIEWER}),
        (Role.SUBMITTER, {Role.VIEWER, Role.SUBMITTER}),
        (Role.ADMIN, set(Role)),
        (Role.RUNNER, {Role.RUNNER}),
    ],
)
def test_what_a_role_includes(role: Role, included: set[Role]) -> None:
    assert role.included == included


def test_a_role_is_needed_in_all_projects_that_are_touched() -> None:
    principal = _with(("a", Role.SUBMITTER), ("b", Role.VIEWER))
    principal.require({Role.SUBMITTER}, ["a"])
    principal.require({Role.VIEWER}, ["a", "b"])
    principal.require({Role.SUBMITTER}, [])
    for roles, projects in (
        ({Role.SUBMITTER}, ["a", "b"]),
        ({Role.VIEWER}, ["c"]),
        ({Role.VIEWER}, [ALL_PROJECTS]),
        ({Role.ADMIN}, []),
        (set(), ["a"]),
    ):
        if roles:
            with pytest.raises(PermissionDeniedError) as caught:
                principal.require(roles, projects)
            assert caught.value.remedy
        else:
            assert not principal.has(roles, "a")


def test_a_grant_for_all_projects_counts_in_each() -> None:
    principal = _with((ALL_PROJECTS, Role.VIEWER))
    principal.require({Role.VIEWER}, ["anything", ALL_PROJECTS])
    with pytest.raises(PermissionDeniedError):
        principal.require({Role.SUBMITTER}, ["anything"])
    ANONYMOUS.require({Role.ADMIN}, [ALL_PROJECTS])


def test_a_refusal_repeats_little_of_what_was_sent() -> None:
    with pytest.raises(PermissionDeniedError) as caught:
        _with(("a", Role.VIEWER)).require({Role.VIEWER}, ["x" * 9_000])
    assert len(str(caught.value)) < 1_000


def test_tokens_are_fresh_and_can_be_taken_apart() -> None:
    tokens = {new_token() for _ in range(200)}
    assert len({token for token, _, _ in tokens}) == 200
    for token, key_id, secret in tokens:
        assert re.fullmatch(r"tf_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", token)
        assert split_token(token) == (key_id, secret)
    assert hash_secret("a") != hash_secret("b")


@pytest.mark.parametrize("token", ["", "tf_", "tf_12_ab", "tf_" + "0" * 16 + "_" + "ä" * 43])
def test_other_texts_are_no_tokens_and_are_not_repeated(token: str) -> None:
    with pytest.raises(InvalidCredentialsError) as caught:
        split_token(token + "hunter2")
    assert "hunter2" not in str(caught.value)
