"""The tables of the database."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

predictions = sa.Table(
    "predictions",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("model_version", sa.String(255), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # gzip of the prediction's JSON
    sa.Column("bytes", sa.Integer, nullable=False),  # of the JSON before compression
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("project_id", sa.Integer),
    sa.Column("task_ids", sa.JSON, nullable=False),
    sa.Column("annotation_ids", sa.JSON, nullable=False),
    # pending: still to be handed to the queue; done: handed over; recorded: kept for retraining
    sa.Column("state", sa.String(16), nullable=False, index=True),
)

# Which task an annotation belongs to: events of deletions name the annotation only.
annotation_tasks = sa.Table(
    "annotation_tasks",
    metadata,
    sa.Column("annotation_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("task_id", sa.Integer, nullable=False),
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("mode", sa.String(32), nullable=False),  # empty: the setting's
    sa.Column("setup_mode", sa.String(32), nullable=False),  # what Label Studio's extra parameters said last
    sa.Column("prompts", sa.String(40), nullable=False),  # digest of the label config, as far as CLIP reads it
)

# Tracks of a video before they have labels, so that other labels need no other detection.
track_sets = sa.Table(
    "track_sets",
    metadata,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("task_id", sa.Integer, nullable=False),
    sa.Column("part", sa.Integer, nullable=False),  # number of the video within the task
    sa.Column("video", sa.String(40), nullable=False, index=True),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # gzip of the track set's JSON
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)

# What models saw in boxes: nothing is embedded twice.
embeddings = sa.Table(
    "embeddings",
    metadata,
    sa.Column("key", sa.String(40), primary_key=True),  # digest of video, model, frame and box
    sa.Column("video", sa.String(40), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("frame", sa.Integer, nullable=False),  # 0-based decoded frame
    sa.Column("x1", sa.Float, nullable=False),  # pixels of the displayed video
    sa.Column("y1", sa.Float, nullable=False),
    sa.Column("x2", sa.Float, nullable=False),
    sa.Column("y2", sa.Float, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),  # little-endian float16
    sa.Column("thumbnail", sa.LargeBinary, nullable=False),  # JPEG
    sa.Index("embeddings_of_video", "video", "model"),
)

# Views of annotated objects, by label; an empty label is background: tracks that a person left out.
exemplars = sa.Table(
    "exemplars",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("label", sa.String(255), nullable=False),
    sa.Column("task_id", sa.Integer, nullable=False),  # 0: imported from another project
    sa.Column("annotation_id", sa.Integer, nullable=False),
    sa.Column("region_id", sa.String(64), nullable=False),
    sa.Column("embedding", sa.String(40), nullable=False),
    sa.Column("origin", sa.String(128), nullable=False),  # where an imported one comes from
    sa.UniqueConstraint("project_id", "model", "task_id", "region_id", "embedding", name="exemplar_once"),
    sa.Index("exemplars_of_annotation", "annotation_id"),
)

# One row says that a project's annotations have been learned with a model; its digest is part of the version.
banks = sa.Table(
    "banks",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("digest", sa.String(40), nullable=False),  # of all exemplars; empty: there are none
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
)
