"""The documents of records: JSON in a column, read back as the values that they were made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from tightfit_service.application.plain import from_plain
from tightfit_service.domain.errors import TightfitError, UnreadableRecordError

T = TypeVar("T")

MAX_REASON_CHARACTERS = 300
"""Of what is said of a document: it may lack everything."""


@dataclass(frozen=True)
class DamagedDocument:
    """Stands for text in a database that is no JSON."""

    reason: str


def load_document(text: str) -> Any:
    """Return what a document says, or that it is damaged: one row must not fail a query of many."""
    try:
        return json.loads(text)
    except ValueError as error:
        return DamagedDocument(f"no JSON: {error}")


def read_document(kind: type[T], document: Any, *, of: str, remedy: str) -> T:
    """Return the value that a document was made of.

    Args:
        kind: The type of the value.
        document: As it comes out of the database.
        of: Whose document it is, for the error.
        remedy: What to do about one that cannot be read.

    Raises:
        UnreadableRecordError: It is damaged, or was written by another version of tightfit.
    """
    if isinstance(document, DamagedDocument):
        raise _unreadable(of, document.reason, remedy)
    try:
        return from_plain(kind, document)
    except TightfitError as error:
        raise _unreadable(of, error.message, remedy) from error


def document_value(document: Any, key: str) -> Any:
    """Return what a document says under a key; None where it does not, or cannot be read."""
    return document.get(key) if isinstance(document, dict) else None


def _unreadable(of: str, reason: str, remedy: str) -> UnreadableRecordError:
    return UnreadableRecordError(
        f"the record of {of} is damaged or of another version: {reason[:MAX_REASON_CHARACTERS]}",
        field="name",
        remedy=remedy,
    )
