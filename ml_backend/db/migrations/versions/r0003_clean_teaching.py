"""Remember the detector's class of each exemplar, and tracks that seem to show two objects one after the other.

Annotations of projects with exemplars are read again, which fills both in.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column(
        "exemplars", sa.Column("detector_class", sa.String(255), nullable=False, server_default=sa.text("''"))
    )
    op.create_table(
        "identity_jumps",
        sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("region_id", sa.String(64), primary_key=True),
        sa.Column("label", sa.String(255), nullable=False),
        sa.Column("frame", sa.Integer, nullable=False),
        sa.Column("untaught", sa.String(16), nullable=False),
    )
    op.execute(
        "INSERT INTO pending (kind, project_id, task_id, revision) "
        "SELECT DISTINCT 'learn', project_id, 0, 'upgrade' FROM exemplars WHERE task_id != 0 AND NOT EXISTS "
        "(SELECT 1 FROM pending WHERE kind = 'learn' AND pending.project_id = exemplars.project_id AND task_id = 0)"
    )
