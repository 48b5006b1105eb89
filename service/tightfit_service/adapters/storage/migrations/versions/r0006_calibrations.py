"""Emulators that projects corrected by measurements.

Only adds: a replica of the version before goes on while and after this runs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.create_table(
        "calibrations",
        sa.Column("project", sa.String(length=255), nullable=False),
        sa.Column("target_name", sa.String(length=255), nullable=False),
        sa.Column("runtime_name", sa.String(length=255), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint(
            "project", "target_name", "runtime_name", name=op.f("pk_calibrations")
        ),
    )


def downgrade() -> None:
    """Undo the change."""
    op.drop_table("calibrations")
