"""Leases of jobs, the order of the queue, and quotas of projects.

Only adds: a server of the version before goes on reading and writing while and after this runs. The
jobs that are running were left by a server that knew no leases; they get one that has run out.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_QUEUE = ["state", "project", "queue_rank", "create_time", "job_id"]


def upgrade() -> None:
    """Change the schema."""
    op.add_column(
        "jobs", sa.Column("queue_rank", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.create_index(op.f("ix_jobs_state_project_queue_rank_create_time_job_id"), "jobs", _QUEUE)
    op.create_table(
        "job_leases",
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("claim_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("losses", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.job_id"], name=op.f("fk_job_leases_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_leases")),
    )
    op.create_index(op.f("ix_job_leases_expire_time"), "job_leases", ["expire_time"])
    op.execute(
        "INSERT INTO job_leases (job_id, token, owner, expire_time, losses) "
        "SELECT job_id, 0, 'an earlier version', CURRENT_TIMESTAMP, '[]' FROM jobs "
        "WHERE state = 'running'"
    )
    op.create_table(
        "project_quotas",
        sa.Column("project", sa.String(length=255), nullable=False),
        sa.Column("running_jobs", sa.BigInteger(), nullable=True),
        sa.Column("queued_jobs", sa.BigInteger(), nullable=True),
        sa.Column("trials", sa.BigInteger(), nullable=True),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_project_quotas")),
    )


def downgrade() -> None:
    """Undo the change."""
    op.drop_table("project_quotas")
    op.drop_index(op.f("ix_job_leases_expire_time"), "job_leases")
    op.drop_table("job_leases")
    op.drop_index(op.f("ix_jobs_state_project_queue_rank_create_time_job_id"), "jobs")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("queue_rank")
