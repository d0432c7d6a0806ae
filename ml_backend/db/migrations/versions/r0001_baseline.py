"""Baseline schema, frozen: later changes of ``ml_backend.db.tables`` do not affect it.

The release before migrations created the same tables, so existing ones are left unchanged.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

metadata = sa.MetaData()


sa.Table(
    "predictions",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("model_version", sa.String(255), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("predictions_of_version", "project_id", "model_version", "created_at"),
)

sa.Table(
    "past_versions",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model_version", sa.String(255), primary_key=True),
    sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
)

sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("project_id", sa.Integer),
    sa.Column("task_ids", sa.JSON, nullable=False),
    sa.Column("annotation_ids", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
)

sa.Table(
    "annotation_tasks",
    metadata,
    sa.Column("annotation_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("task_id", sa.Integer, nullable=False),
)

sa.Table(
    "projects",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("mode", sa.String(32), nullable=False),
    sa.Column("setup_mode", sa.String(32), nullable=False),
    sa.Column("prompts", sa.String(40), nullable=False),
)

sa.Table(
    "track_sets",
    metadata,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("task_id", sa.Integer, nullable=False),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("video", sa.String(40), nullable=False, index=True),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)

sa.Table(
    "embeddings",
    metadata,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("video", sa.String(40), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("frame", sa.Integer, nullable=False),
    sa.Column("x1", sa.Float, nullable=False),
    sa.Column("y1", sa.Float, nullable=False),
    sa.Column("x2", sa.Float, nullable=False),
    sa.Column("y2", sa.Float, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("thumbnail", sa.LargeBinary, nullable=False),
    sa.Index("embeddings_of_video", "video", "model"),
)

sa.Table(
    "exemplars",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("label", sa.String(255), nullable=False),
    sa.Column("task_id", sa.Integer, nullable=False),
    sa.Column("annotation_id", sa.Integer, nullable=False),
    sa.Column("region_id", sa.String(64), nullable=False),
    sa.Column("embedding", sa.String(40), nullable=False),
    sa.Column("origin", sa.String(128), nullable=False),
    sa.UniqueConstraint("project_id", "model", "task_id", "region_id", "embedding", name="exemplar_once"),
    sa.Index("exemplars_of_annotation", "annotation_id"),
)

sa.Table(
    "banks",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("digest", sa.String(40), nullable=False),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
)

sa.Table(
    "model_versions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("parent_id", sa.Integer),
    sa.Column("trigger", sa.String(255), nullable=False),
    sa.Column("detector", sa.String(64), nullable=False),
    sa.Column("start_sha256", sa.String(64), nullable=False),
    sa.Column("weights_sha256", sa.String(64), nullable=False),
    sa.Column("artifact", sa.String(255), nullable=False),
    sa.Column("dataset", sa.String(64), nullable=False),
    sa.Column("held_out", sa.String(64), nullable=False),
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("lineage", sa.JSON, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("history", sa.JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
    sa.UniqueConstraint("project_id", "number", name="version_once"),
)

sa.Table(
    "activations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("version_id", sa.Integer),
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
)

sa.Table(
    "unused_artifacts",
    metadata,
    sa.Column("artifact", sa.String(255), primary_key=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("weights_sha256", sa.String(64), nullable=False),
    sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False),
)

sa.Table(
    "task_scores",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("score", sa.Float, nullable=False),
)

sa.Table(
    "training_policies",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("policy", sa.JSON, nullable=False),
    sa.Column("setup_policy", sa.JSON, nullable=False),
)

sa.Table(
    "corrections",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("annotation_id", sa.Integer, nullable=False, index=True),
    sa.Column("model_version", sa.String(255), nullable=False),
    sa.Column("tracks", sa.Integer, nullable=False),
    sa.Column("accepted", sa.Integer, nullable=False),
    sa.Column("undecided", sa.Integer, nullable=False),
    sa.Column("moved", sa.Integer, nullable=False),
    sa.Column("relabelled", sa.Integer, nullable=False),
    sa.Column("deleted", sa.Integer, nullable=False),
    sa.Column("merged", sa.Integer, nullable=False),
    sa.Column("added", sa.Integer, nullable=False),
    sa.Column("hard", sa.JSON, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
)

sa.Table(
    "training_splits",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("video", sa.String(40), primary_key=True),
    sa.Column("part", sa.String(16), nullable=False),
    sa.Column("phase", sa.Integer, nullable=False),
    sa.Column("content", sa.String(64), nullable=False),
    sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
)


def upgrade() -> None:
    bind = op.get_bind()
    metadata.create_all(bind)
    for index in metadata.tables["predictions"].indexes:  # missing in some earlier releases
        index.create(bind, checkfirst=True)
