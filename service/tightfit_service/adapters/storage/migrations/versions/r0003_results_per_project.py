"""Cached results belong to projects.

What was cached before belongs to nobody that is known, so it is dropped; it is computed again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    _drop()
    _create("project", "input_digest")


def downgrade() -> None:
    """Undo the change."""
    _drop()
    _create("input_digest")


def _drop() -> None:
    op.drop_index(op.f("ix_work_outputs_digest"), "work_outputs")
    op.drop_table("work_outputs")
    op.drop_table("work_results")


def _create(*key: str) -> None:
    op.create_table(
        "work_results",
        *(_column(name) for name in key),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_work_results")),
    )
    op.create_table(
        "work_outputs",
        *(_column(name) for name in key),
        sa.Column("output_name", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            list(key),
            [f"work_results.{name}" for name in key],
            name=op.f(f"fk_work_outputs_{'_'.join(key)}_work_results"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(*key, "output_name", name=op.f("pk_work_outputs")),
    )
    op.create_index(op.f("ix_work_outputs_digest"), "work_outputs", ["digest"])


def _column(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=255 if name == "project" else 128), nullable=False)
