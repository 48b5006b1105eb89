"""Writes that belong together: a first one that finds its row, and those that only follow where it did."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Delete,
    FromClause,
    Insert,
    Row,
    Select,
    Table,
    Update,
    bindparam,
    column,
    func,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite

from tightfit_service.adapters.storage.database import POSTGRESQL

_FOUND = "found_"
"""Begins the names of parameters that hold what the first write of a chain returned."""

Follow = Callable[[FromClause], Sequence[Insert | Update | Delete]]
"""Makes what follows from the rows that a first write returned."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A write that returns one row or none, and those that follow where there is one."""

    statements: tuple[Select[Any] | Insert | Update | Delete, ...]

    def run(self, connection: Connection, parameters: Mapping[str, Any]) -> Row[Any] | None:
        """Carry the writes out, and return what the first one returned.

        Args:
            connection: In a transaction, or on PostgreSQL one that commits by itself.
            parameters: Values of the parameters in the statements; none is named as a column is.
        """
        first, *following = self.statements
        row = connection.execute(first, parameters).first()
        if row is not None and following:
            found = {_FOUND + name: value for name, value in row._asdict().items()}
            for statement in following:
                connection.execute(statement, {**parameters, **found})
        return row


def make_chain(dialect: str, first: Insert | Update, follow: Follow) -> Chain:
    """Return a first write, which has a RETURNING clause, and what follows from it, as one.

    On PostgreSQL that is one statement, each write a common table expression (its manual, 7.8.4): one
    message there and back, and all or nothing even where the connection commits by itself. The writes
    see the database as it was before, and the first one only by what it returned; so no two may touch
    the same row. SQLite has no such expressions, and nothing to save: it lives in the process. There the
    statements run one by one, in the transaction of the caller.

    Args:
        dialect: Name of the database's.
        first: The first write.
        follow: Makes the others; what it is given has the columns that `first` returns.
    """
    found = first.cte("found")
    if dialect == POSTGRESQL:
        following = [one.cte(f"following_{number}") for number, one in enumerate(follow(found))]
        return Chain(statements=(select(found).add_cte(*following),))
    columns = [bindparam(_FOUND + one.name, type_=one.type).label(one.name) for one in found.c]
    return Chain(statements=(first, *follow(select(*columns).subquery("found"))))


def upsert(
    dialect: str,
    table: Table,
    values: Mapping[str, Any],
    *,
    replaced: Collection[str] = (),
    changes: Mapping[str, Any] | None = None,
    where: ColumnElement[bool] | None = None,
) -> Insert:
    """Return the insert of a row; where there is one with its key, that is changed.

    Args:
        dialect: Name of the database's.
        table: Where to.
        values: The row.
        replaced: Columns of an earlier row that take the values.
        changes: Columns of an earlier row that become something else.
        where: Which earlier row is changed; another stays as it is, and is not returned.
    """
    statement = _insert(dialect, table).values(**values)
    taken = {name: statement.excluded[name] for name in replaced}
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={**taken, **(changes or {})}, where=where
    )


def upsert_rows(dialect: str, table: Table, rows: Select[Any]) -> Insert:
    """Return the insert of what a query gives under the names of the table; it replaces equal keys."""
    names = [*rows.selected_columns.keys()]
    # SQLite would take ON CONFLICT for the condition of a join, were there no WHERE before it
    statement = _insert(dialect, table).from_select(names, rows.where(true()))
    keys = {one.name for one in table.primary_key}
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: statement.excluded[name] for name in names if name not in keys},
    )


def as_table(dialect: str, rows: ColumnElement[Any], columns: Sequence[Column[Any]]) -> FromClause:
    """Return rows as something to select from, as one parameter however many they are.

    A statement with a parameter for each value would be another text for each number of rows, which
    takes both ends long to make and to read.

    Args:
        dialect: Name of the database's.
        rows: Of type JSON: a list of values by name of column.
        columns: What there is in each row, and its type.
    """
    if dialect == POSTGRESQL:
        return (
            func.json_to_recordset(rows)
            .table_valued(*(column(one.name, one.type) for one in columns))
            .render_derived(with_types=True)
        )
    each = func.json_each(rows).table_valued("value")
    return select(
        *(
            func.json_extract(each.c["value"], f"$.{one.name}", type_=one.type).label(one.name)
            for one in columns
        )
    ).subquery()


def _insert(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    if dialect == POSTGRESQL:
        return postgresql.insert(table)
    return sqlite.insert(table)
