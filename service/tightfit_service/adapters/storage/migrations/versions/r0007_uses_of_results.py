"""When a cached result was last used, so that those that nobody asks for can be forgotten.

Only adds: a replica of the version before goes on while and after this runs. What is there already
counts as used now, when results are next expired.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.add_column("work_results", sa.Column("use_time", sa.DateTime(timezone=True), nullable=True))
    op.create_index(op.f("ix_work_results_use_time"), "work_results", ["use_time"])


def downgrade() -> None:
    """Undo the change."""
    op.drop_index(op.f("ix_work_results_use_time"), "work_results")
    with op.batch_alter_table("work_results") as batch:
        batch.drop_column("use_time")
