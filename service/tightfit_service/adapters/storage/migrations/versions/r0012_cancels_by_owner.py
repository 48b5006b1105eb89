"""An index of the jobs that are to be cancelled, by who runs them.

Only adds: a replica of the version before goes on while and after this runs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_INDEX = "ix_job_leases_cancels"


def upgrade() -> None:
    """Change the schema."""
    asked = sa.text("cancel_requested")
    op.create_index(_INDEX, "job_leases", ["owner"], postgresql_where=asked, sqlite_where=asked)


def downgrade() -> None:
    """Undo the change."""
    op.drop_index(_INDEX, "job_leases")
