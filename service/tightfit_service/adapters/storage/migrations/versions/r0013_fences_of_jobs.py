"""The token of whoever holds a job in the job's own row, so that one statement both checks and writes.

Only adds. A replica of the version before goes on while and after this runs; it does not know the column,
so on PostgreSQL a trigger keeps it in step with what such a replica writes to the leases. A SQLite file
has one server at a time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_POSTGRESQL = (
    """
    CREATE FUNCTION job_leases_hold() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        held integer := CASE WHEN NEW.expire_time IS NULL THEN NULL ELSE NEW.token END;
    BEGIN
        UPDATE jobs SET holder_token = held
        WHERE job_id = NEW.job_id AND holder_token IS DISTINCT FROM held;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER job_leases_begun AFTER INSERT ON job_leases
    FOR EACH ROW WHEN (NEW.expire_time IS NOT NULL) EXECUTE FUNCTION job_leases_hold()
    """,
    """
    CREATE TRIGGER job_leases_changed AFTER UPDATE ON job_leases
    FOR EACH ROW WHEN (
        OLD.token <> NEW.token OR (OLD.expire_time IS NULL) <> (NEW.expire_time IS NULL)
    ) EXECUTE FUNCTION job_leases_hold()
    """,
)


def upgrade() -> None:
    """Change the schema; jobs first, as every writer locks them before their leases."""
    op.add_column("jobs", sa.Column("holder_token", sa.Integer(), nullable=True))
    if op.get_bind().dialect.name != "sqlite":
        for statement in _POSTGRESQL:
            op.execute(statement)
    op.execute(
        "UPDATE jobs SET holder_token = (SELECT token FROM job_leases "
        "WHERE job_leases.job_id = jobs.job_id AND expire_time IS NOT NULL) WHERE state = 'running'"
    )


def downgrade() -> None:
    """Undo the change."""
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP TRIGGER job_leases_changed ON job_leases")
        op.execute("DROP TRIGGER job_leases_begun ON job_leases")
        op.execute("DROP FUNCTION job_leases_hold()")
    # not in a batch, which makes the table anew: SQLite would delete what refers to its rows
    op.drop_column("jobs", "holder_token")
