"""What is still to be done takes the place of the webhook events that asked for it.

What the release before had noted in Redis, or had not handed over, is not carried over task by task: all annotations
of the projects that it has heard of are read anew, and all tasks looked at where some were new, which does no harm.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "pending",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.String(32), nullable=False),
    )
    note = "INSERT INTO pending (kind, project_id, task_id, revision) SELECT DISTINCT "
    op.execute(note + "'learn', project_id, 0, 'upgrade' FROM events WHERE project_id IS NOT NULL")
    op.execute(note + "'refresh', project_id, 0, 'upgrade' FROM events WHERE project_id IS NOT NULL")
    new = "state = 'pending' AND action = 'TASKS_CREATED'"
    op.execute(note + f"'prepare', project_id, 0, 'upgrade' FROM events WHERE project_id IS NOT NULL AND {new}")
    op.drop_table("events")
