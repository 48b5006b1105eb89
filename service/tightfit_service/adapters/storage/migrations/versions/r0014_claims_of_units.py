"""Which server computes which unit of work, so that the others wait for its result.

Only adds: a replica of the version before goes on while and after this runs; it claims nothing, and what
it computes others may compute as well.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.create_table(
        "unit_claims",
        sa.Column("project", sa.String(length=255), nullable=False),
        sa.Column("input_digest", sa.String(length=128), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project", "input_digest", name=op.f("pk_unit_claims")),
    )
    op.create_index(op.f("ix_unit_claims_expire_time"), "unit_claims", ["expire_time"])


def downgrade() -> None:
    """Undo the change."""
    op.drop_index(op.f("ix_unit_claims_expire_time"), "unit_claims")
    op.drop_table("unit_claims")
