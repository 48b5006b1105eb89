"""How large the files of results are, so that they count against the quota of their project.

Only adds: a replica of the version before goes on while and after this runs. The files of results that
are there already count nothing, as those that such a replica writes; they go when the results expire.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_INDEX = "ix_work_outputs_project_digest_size_bytes"


def upgrade() -> None:
    """Change the schema."""
    op.add_column("work_outputs", sa.Column("size_bytes", sa.BigInteger(), nullable=True))
    op.create_index(op.f(_INDEX), "work_outputs", ["project", "digest", "size_bytes"])


def downgrade() -> None:
    """Undo the change."""
    op.drop_index(op.f(_INDEX), "work_outputs")
    with op.batch_alter_table("work_outputs") as batch:
        batch.drop_column("size_bytes")
