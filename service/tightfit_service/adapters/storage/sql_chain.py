"""Writes that belong together: a first one that finds its row, and those that only follow where it did."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Delete,
    FromClause,
    Insert,
    Row,
    Select,
    Table,
    Update,
    column,
    func,
    literal,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite

from tightfit_service.adapters.storage.database import POSTGRESQL

Follow = Callable[[FromClause], Sequence[Insert | Update | Delete]]
"""Makes what follows from the rows that a first write returned."""


def write_chain(connection: Connection, first: Insert | Update, follow: Follow) -> Row[Any] | None:
    """Carry out a write that returns one row or none, and where there is one what follows from it.

    On PostgreSQL all is one statement, each write a common table expression (its manual, 7.8.4): one
    message there and back, and all or nothing even where the connection commits by itself. The writes
    see the database as it was before, and the first one only by what it returned; so no two may touch
    the same row. SQLite has no such expressions, and nothing to save: it lives in the process. There the
    statements run one by one, in the transaction of the caller.

    Args:
        connection: In a transaction, or on PostgreSQL one that commits by itself.
        first: Has a RETURNING clause.
        follow: Makes the other writes; what it is given has the columns that `first` returns.

    Returns:
        What `first` returned.
    """
    if connection.dialect.name == POSTGRESQL:
        found = first.cte("found")
        following = [one.cte(f"following_{number}") for number, one in enumerate(follow(found))]
        return connection.execute(select(found).add_cte(*following)).first()
    row = connection.execute(first).first()
    if row is not None:
        values = [literal(value).label(name) for name, value in row._asdict().items()]
        for statement in follow(select(*values).subquery("found")):
            connection.execute(statement)
    return row


def upsert(
    connection: Connection,
    table: Table,
    values: Mapping[str, Any],
    *,
    replaced: Collection[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> Insert:
    """Return the insert of a row; where there is one with its key, that is changed.

    Args:
        connection: Says for which database.
        table: Where to.
        values: The row.
        replaced: Columns of an earlier row that take the values.
        changes: Columns of an earlier row that become something else.
    """
    statement = _insert(connection, table).values(**values)
    taken = {name: statement.excluded[name] for name in replaced}
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={**taken, **(changes or {})}
    )


def upsert_rows(connection: Connection, table: Table, rows: Select[Any]) -> Insert:
    """Return the insert of what a query gives under the names of the table; it replaces equal keys."""
    names = [*rows.selected_columns.keys()]
    # SQLite would take ON CONFLICT for the condition of a join, were there no WHERE before it
    statement = _insert(connection, table).from_select(names, rows.where(true()))
    keys = {one.name for one in table.primary_key}
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: statement.excluded[name] for name in names if name not in keys},
    )


def as_table(
    connection: Connection, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column[Any]]
) -> FromClause:
    """Return rows as something to select from, as one parameter however many they are.

    A statement with a parameter for each value would be another text for each number of rows, which
    takes both ends long to make and to read.

    Args:
        connection: Says for which database.
        rows: JSON values by name of column.
        columns: What there is in each row, and its type.
    """
    given = literal([*rows], JSON())
    if connection.dialect.name == POSTGRESQL:
        return (
            func.json_to_recordset(given)
            .table_valued(*(column(one.name, one.type) for one in columns))
            .render_derived(with_types=True)
        )
    each = func.json_each(given).table_valued("value")
    return select(
        *(
            func.json_extract(each.c["value"], f"$.{one.name}", type_=one.type).label(one.name)
            for one in columns
        )
    ).subquery()


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    if connection.dialect.name == POSTGRESQL:
        return postgresql.insert(table)
    return sqlite.insert(table)
