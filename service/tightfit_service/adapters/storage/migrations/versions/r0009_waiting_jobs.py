"""Which running jobs only wait for a worker, so that they are not taken for what ends their replicas.

Only adds: a replica of the version before goes on while and after this runs. Its jobs count as working.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.add_column(
        "job_leases",
        sa.Column("only_waits", sa.Boolean(), server_default=sa.false(), nullable=False),
    )


def downgrade() -> None:
    """Undo the change."""
    with op.batch_alter_table("job_leases") as batch:
        batch.drop_column("only_waits")
