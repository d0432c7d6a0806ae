"""Remember which moments are alike. Tasks with moments are looked at again in the background."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for table in ("moments", "repairs"):
        op.add_column(table, sa.Column("signature", sa.String(16), nullable=False, server_default=sa.text("''")))
        op.add_column(table, sa.Column("embedding", sa.LargeBinary))
    op.create_index("moments_alike", "moments", ["project_id", "signature"])
    op.execute(
        "INSERT INTO pending (kind, project_id, task_id, revision) "
        "SELECT DISTINCT 'review', project_id, 0, 'upgrade' FROM moments WHERE NOT EXISTS "
        "(SELECT 1 FROM pending WHERE kind = 'review' AND pending.project_id = moments.project_id AND task_id = 0)"
    )
