"""Which models teach besides the original, so that none is deleted or collected while a job needs it.

Only adds: a replica of the version before goes on while and after this runs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.create_table(
        "job_teachers",
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.job_id"],
            name=op.f("fk_job_teachers_job_id_jobs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "digest", name=op.f("pk_job_teachers")),
    )
    op.create_index(op.f("ix_job_teachers_digest"), "job_teachers", ["digest"])


def downgrade() -> None:
    """Undo the change."""
    op.drop_index(op.f("ix_job_teachers_digest"), "job_teachers")
    op.drop_table("job_teachers")
