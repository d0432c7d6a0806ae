"""Replace stored webhook events by pending work.

Pending work of the previous release is not migrated task by task: all annotations of known projects are read again,
and all tasks of projects with new tasks are checked, which is harmless.
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
