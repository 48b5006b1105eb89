"""Which units of work killed their workers, so that they are given up after some tries.

Only adds: a replica of the version before goes on while and after this runs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.create_table(
        "unit_deaths",
        sa.Column("project", sa.String(length=255), nullable=False),
        sa.Column("input_digest", sa.String(length=128), nullable=False),
        sa.Column("death_count", sa.Integer(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("last_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project", "input_digest", name=op.f("pk_unit_deaths")),
    )
    op.create_index(op.f("ix_unit_deaths_last_time"), "unit_deaths", ["last_time"])


def downgrade() -> None:
    """Undo the change."""
    op.drop_index(op.f("ix_unit_deaths_last_time"), "unit_deaths")
    op.drop_table("unit_deaths")
