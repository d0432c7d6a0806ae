"""The tables of the database. A change needs a migration: see ml_backend.db.migrations."""

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
    sa.Index("predictions_of_version", "project_id", "model_version", "created_at"),
)

# Model versions of predictions that were removed, since newer ones have taken their place.
past_versions = sa.Table(
    "past_versions",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model_version", sa.String(255), primary_key=True),
    sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),  # the last of them
)

# What is still to be done for a project, by kind: see ml_backend.jobs.queue. Redis may forget its jobs: they are made
# again from here.
pending = sa.Table(
    "pending",
    metadata,
    sa.Column("kind", sa.String(16), primary_key=True),  # learn, refresh, prepare or train
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),  # 0: the whole project
    # Another one with each request: whoever has done what an older one asked for does not strike off a newer one.
    sa.Column("revision", sa.String(32), nullable=False),
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

# The registry: every training run is a version, also those that came to nothing.
model_versions = sa.Table(
    "model_versions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # v1, v2, ... within the project
    sa.Column("state", sa.String(16), nullable=False, index=True),  # see ml_backend.training.registry
    sa.Column("owner", sa.String(64), nullable=False),  # whoever works on it; empty once it is over
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("parent_id", sa.Integer),  # the version whose weights it started from; none: the detector of the settings
    sa.Column("trigger", sa.String(255), nullable=False),  # who or what asked for it
    sa.Column("detector", sa.String(64), nullable=False),  # name of the network, which all its descendants keep
    sa.Column("start_sha256", sa.String(64), nullable=False),  # of the weights it started from; empty: from scratch
    sa.Column("weights_sha256", sa.String(64), nullable=False),
    sa.Column("artifact", sa.String(255), nullable=False),  # the weights' file; empty: none yet, or removed since
    sa.Column("dataset", sa.String(64), nullable=False),  # digests
    sa.Column("held_out", sa.String(64), nullable=False),
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("lineage", sa.JSON, nullable=False),  # annotation by task, and what was made of them
    sa.Column("config", sa.JSON, nullable=False),  # arguments of the training
    sa.Column("metrics", sa.JSON, nullable=False),  # of candidate and incumbent on the held-out part
    sa.Column("history", sa.JSON, nullable=False),  # epoch by epoch
    sa.Column("reason", sa.Text, nullable=False),  # why it was promoted, refused, or failed
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
    sa.UniqueConstraint("project_id", "number", name="version_once"),
)

# Which version a project uses: the last row counts, the others are its history.
activations = sa.Table(
    "activations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("version_id", sa.Integer),  # none: the detector of the settings
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
)

# Files of weights that no version has any more, until they are gone.
unused_artifacts = sa.Table(
    "unused_artifacts",
    metadata,
    sa.Column("artifact", sa.String(255), primary_key=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("weights_sha256", sa.String(64), nullable=False),
    sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False),
)

# How sure the newest prediction of a task is: what is least sure is renewed first.
task_scores = sa.Table(
    "task_scores",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("score", sa.Float, nullable=False),
)

# When a project retrains, where it differs from the default.
training_policies = sa.Table(
    "training_policies",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("policy", sa.JSON, nullable=False),
    sa.Column("setup_policy", sa.JSON, nullable=False),  # what Label Studio's extra parameters said last
)

# What people did with a task's prediction: numbers of its regions; see ml_backend.training.annotation_review.
corrections = sa.Table(
    "corrections",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("annotation_id", sa.Integer, nullable=False, index=True),
    sa.Column("model_version", sa.String(255), nullable=False),  # of the prediction; empty: there was none
    sa.Column("tracks", sa.Integer, nullable=False),  # labelled objects in the annotation
    sa.Column("accepted", sa.Integer, nullable=False),
    sa.Column("undecided", sa.Integer, nullable=False),  # without a label, and left so
    sa.Column("moved", sa.Integer, nullable=False),
    sa.Column("relabelled", sa.Integer, nullable=False),
    sa.Column("deleted", sa.Integer, nullable=False),
    sa.Column("merged", sa.Integer, nullable=False),
    sa.Column("added", sa.Integer, nullable=False),
    sa.Column("hard", sa.JSON, nullable=False),  # ids of regions that the model did not get right
    sa.Column("fingerprint", sa.String(64), nullable=False),  # of the annotation's regions
    sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
)

# What of a project's videos is trained on and what is kept to measure with: decided once, so that neither moves.
training_splits = sa.Table(
    "training_splits",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("video", sa.String(40), primary_key=True),
    sa.Column("part", sa.String(16), nullable=False),  # train, held_out or blocks
    sa.Column("phase", sa.Integer, nullable=False),  # where the pattern of blocks begins
    sa.Column("content", sa.String(64), nullable=False),  # SHA-256 of the file: the same video under two addresses
    sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
)
