"""Keep suspicious moments, and what people decided about them. Existing tasks are looked at in the background."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "moments",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("project_id", sa.Integer, nullable=False),
        sa.Column("task_id", sa.Integer, nullable=False),
        sa.Column("video", sa.String(255), nullable=False),
        sa.Column("annotation_id", sa.Integer, nullable=False),
        sa.Column("author", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("label", sa.String(255), nullable=False),
        sa.Column("first", sa.Integer, nullable=False),
        sa.Column("last", sa.Integer, nullable=False),
        sa.Column("shown", sa.Integer, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("gain", sa.Float, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("repair", sa.JSON, nullable=False),
        sa.Column("regions", sa.JSON, nullable=False),
        sa.Column("clip", sa.String(64), nullable=False),
    )
    op.create_index("ix_moments_task_id", "moments", ["task_id"])
    op.create_index("moments_by_gain", "moments", ["project_id", "gain"])
    op.create_table(
        "repairs",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("project_id", sa.Integer, nullable=False),
        sa.Column("task_id", sa.Integer, nullable=False),
        sa.Column("moment_id", sa.String(16), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("annotation_id", sa.Integer, nullable=False),
        sa.Column("base_id", sa.Integer, nullable=False),
        sa.Column("written", sa.String(16), nullable=False),
        sa.Column("before", sa.JSON, nullable=False),
        sa.Column("after", sa.JSON, nullable=False),
        sa.Column("undone_by", sa.String(255), nullable=False),
        sa.Column("undone_at", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_repairs_project_id", "repairs", ["project_id"])
    op.create_index("ix_repairs_task_id", "repairs", ["task_id"])
    op.create_index("ix_repairs_moment_id", "repairs", ["moment_id"])
    op.execute(
        "INSERT INTO pending (kind, project_id, task_id, revision) SELECT 'review', project_id, 0, 'upgrade' "
        "FROM (SELECT project_id FROM predictions UNION SELECT project_id FROM annotation_tasks) AS known"
    )
