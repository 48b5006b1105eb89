"""The first schema: jobs, trials, events, cached results, assets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.create_table(
        "assets",
        sa.Column("project", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("asset_id", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("display_name", sa.String(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("description", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("project", "kind", "asset_id", name=op.f("pk_assets")),
    )
    op.create_index(op.f("ix_assets_digest"), "assets", ["digest"])

    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("project", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_id", sa.String(length=255), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("last_sequence", sa.Integer(), nullable=False),
        sa.Column("model_digest", sa.String(length=64), nullable=False),
        sa.Column("dataset_digest", sa.String(length=64), nullable=True),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("project", "request_id", name=op.f("uq_jobs_project_request_id")),
    )
    op.create_index(
        op.f("ix_jobs_project_create_time_job_id"), "jobs", ["project", "create_time", "job_id"]
    )
    op.create_index(op.f("ix_jobs_state_create_time"), "jobs", ["state", "create_time"])

    op.create_table(
        "work_results",
        sa.Column("input_digest", sa.String(length=128), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("input_digest", name=op.f("pk_work_results")),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.job_id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "sequence", name=op.f("pk_job_events")),
    )
    op.create_table(
        "trial_artifacts",
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("trial_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("artifact_name", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.job_id"],
            name=op.f("fk_trial_artifacts_job_id_jobs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "job_id", "trial_index", "artifact_name", name=op.f("pk_trial_artifacts")
        ),
    )
    op.create_index(op.f("ix_trial_artifacts_digest"), "trial_artifacts", ["digest"])

    op.create_table(
        "trials",
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("trial_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("input_digest", sa.String(length=128), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.job_id"], name=op.f("fk_trials_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "trial_index", name=op.f("pk_trials")),
    )
    op.create_index(op.f("ix_trials_input_digest"), "trials", ["input_digest"])

    op.create_table(
        "work_outputs",
        sa.Column("input_digest", sa.String(length=128), nullable=False),
        sa.Column("output_name", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["input_digest"],
            ["work_results.input_digest"],
            name=op.f("fk_work_outputs_input_digest_work_results"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("input_digest", "output_name", name=op.f("pk_work_outputs")),
    )
    op.create_index(op.f("ix_work_outputs_digest"), "work_outputs", ["digest"])


def downgrade() -> None:
    """Undo the change."""
    op.drop_index(op.f("ix_work_outputs_digest"), "work_outputs")

    op.drop_table("work_outputs")
    op.drop_index(op.f("ix_trials_input_digest"), "trials")

    op.drop_table("trials")
    op.drop_index(op.f("ix_trial_artifacts_digest"), "trial_artifacts")

    op.drop_table("trial_artifacts")
    op.drop_table("job_events")
    op.drop_table("work_results")
    op.drop_index(op.f("ix_jobs_state_create_time"), "jobs")
    op.drop_index(op.f("ix_jobs_project_create_time_job_id"), "jobs")

    op.drop_table("jobs")
    op.drop_index(op.f("ix_assets_digest"), "assets")

    op.drop_table("assets")
