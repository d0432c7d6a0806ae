"""Tables of the database. Changes need a migration: see ml_backend.db.migrations."""

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

# Model versions whose predictions were removed because newer ones replaced them.
past_versions = sa.Table(
    "past_versions",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model_version", sa.String(255), primary_key=True),
    sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),  # of the last prediction
)

# Pending work of a project by kind: see ml_backend.jobs.queue. Jobs that Redis has lost are recreated from it.
pending = sa.Table(
    "pending",
    metadata,
    sa.Column("kind", sa.String(16), primary_key=True),  # learn, refresh, prepare, train or review
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),  # 0: the whole project
    # New for each request, so that finishing an older request does not remove a newer one.
    sa.Column("revision", sa.String(32), nullable=False),
)

# Task of each annotation: deletion events name only the annotation.
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
    sa.Column("mode", sa.String(32), nullable=False),  # empty: as in the settings
    sa.Column("setup_mode", sa.String(32), nullable=False),  # last value in Label Studio's extra parameters
    sa.Column("prompts", sa.String(40), nullable=False),  # digest of the labels' names and prompts
)

# Unlabelled tracks of a video: labels can change without detecting again.
track_sets = sa.Table(
    "track_sets",
    metadata,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("task_id", sa.Integer, nullable=False),
    sa.Column("part", sa.Integer, nullable=False),  # index of the video within the task
    sa.Column("video", sa.String(40), nullable=False, index=True),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # gzip of the track set's JSON
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)

# Cached crop embeddings.
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

# Labelled crops of annotated objects; an empty label is background: tracks that an annotator removed.
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
    sa.Column("origin", sa.String(128), nullable=False),  # of an imported exemplar
    # The detector's class of the object's track; empty if unknown.
    sa.Column("detector_class", sa.String(255), nullable=False, server_default=sa.text("''")),
    sa.UniqueConstraint("project_id", "model", "task_id", "region_id", "embedding", name="exemplar_once"),
    sa.Index("exemplars_of_annotation", "annotation_id"),
)

# Annotated tracks that seem to change from one object to another; see ml_backend.labeling.few_shot.identity_jumps.
identity_jumps = sa.Table(
    "identity_jumps",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("region_id", sa.String(64), primary_key=True),
    sa.Column("label", sa.String(255), nullable=False),
    sa.Column("frame", sa.Integer, nullable=False),  # 1-based on Label Studio's timeline, first of the second object
    sa.Column("untaught", sa.String(16), nullable=False),  # part that is left out of the bank: first or second
)

# Pattern banks: a project's annotations have been learned with a model. The digest is part of the model version.
banks = sa.Table(
    "banks",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("digest", sa.String(40), nullable=False),  # of all exemplars; empty without exemplars
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
)

# Model registry: every training run is a version, including failed ones.
model_versions = sa.Table(
    "model_versions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # v1, v2, ... within the project
    sa.Column("state", sa.String(16), nullable=False, index=True),  # see ml_backend.training.registry
    sa.Column("owner", sa.String(64), nullable=False),  # worker that trains it; empty once finished
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("parent_id", sa.Integer),  # version that it was fine-tuned from; null: the configured detector
    sa.Column("trigger", sa.String(255), nullable=False),  # who or what requested it
    sa.Column("detector", sa.String(64), nullable=False),  # architecture, the same for all descendants
    sa.Column("start_sha256", sa.String(64), nullable=False),  # of the start weights; empty: from scratch
    sa.Column("weights_sha256", sa.String(64), nullable=False),
    sa.Column("artifact", sa.String(255), nullable=False),  # weights file; empty: none yet, or removed
    sa.Column("dataset", sa.String(64), nullable=False),  # digests
    sa.Column("held_out", sa.String(64), nullable=False),
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("lineage", sa.JSON, nullable=False),  # annotation by task, and the resulting dataset
    sa.Column("config", sa.JSON, nullable=False),  # training arguments
    sa.Column("metrics", sa.JSON, nullable=False),  # of candidate and incumbent on held-out data
    sa.Column("history", sa.JSON, nullable=False),  # metrics by epoch
    sa.Column("reason", sa.Text, nullable=False),  # why it was promoted, refused, or failed
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
    sa.UniqueConstraint("project_id", "number", name="version_once"),
)

# Active version of a project: the last row; the others are its history.
activations = sa.Table(
    "activations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("version_id", sa.Integer),  # null: the configured detector
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
)

# Weights files that no version uses, until they are deleted.
unused_artifacts = sa.Table(
    "unused_artifacts",
    metadata,
    sa.Column("artifact", sa.String(255), primary_key=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("weights_sha256", sa.String(64), nullable=False),
    sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False),
)

# Score of a task's newest prediction: the lowest are refreshed first.
task_scores = sa.Table(
    "task_scores",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("score", sa.Float, nullable=False),
)

# Training policies that differ from the default.
training_policies = sa.Table(
    "training_policies",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("policy", sa.JSON, nullable=False),
    sa.Column("setup_policy", sa.JSON, nullable=False),  # last value in Label Studio's extra parameters
)

# How annotators changed a task's prediction, in numbers of regions; see ml_backend.training.annotation_review.
corrections = sa.Table(
    "corrections",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("annotation_id", sa.Integer, nullable=False, index=True),
    sa.Column("model_version", sa.String(255), nullable=False),  # of the prediction; empty without one
    sa.Column("tracks", sa.Integer, nullable=False),  # labelled objects in the annotation
    sa.Column("accepted", sa.Integer, nullable=False),
    sa.Column("undecided", sa.Integer, nullable=False),  # left without a label
    sa.Column("moved", sa.Integer, nullable=False),
    sa.Column("relabelled", sa.Integer, nullable=False),
    sa.Column("deleted", sa.Integer, nullable=False),
    sa.Column("merged", sa.Integer, nullable=False),
    sa.Column("added", sa.Integer, nullable=False),
    sa.Column("hard", sa.JSON, nullable=False),  # ids of regions that the model got wrong
    sa.Column("fingerprint", sa.String(64), nullable=False),  # of the annotation's regions
    sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
)

# Split of a project's videos into training and held-out data, decided once and never changed.
training_splits = sa.Table(
    "training_splits",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("video", sa.String(40), primary_key=True),
    sa.Column("part", sa.String(16), nullable=False),  # train, held_out or blocks
    sa.Column("phase", sa.Integer, nullable=False),  # start of the pattern of blocks
    sa.Column("content", sa.String(64), nullable=False),  # SHA-256 of the file, to recognise it under another address
    sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
)

# Suspicious moments of a task's tracks, found in the background; see ml_backend.review.
moments = sa.Table(
    "moments",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),  # digest: the same fault of the same track has the same id
    sa.Column("project_id", sa.Integer, nullable=False),
    sa.Column("task_id", sa.Integer, nullable=False, index=True),
    sa.Column("video", sa.String(255), nullable=False),  # name of the video's control
    sa.Column("annotation_id", sa.Integer, nullable=False),  # 0: of a prediction
    sa.Column("author", sa.String(255), nullable=False),  # the annotator, or the prediction's model version
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("label", sa.String(255), nullable=False),
    sa.Column("first", sa.Integer, nullable=False),  # 1-based frames of Label Studio's timeline
    sa.Column("last", sa.Integer, nullable=False),
    sa.Column("shown", sa.Integer, nullable=False),  # where the repair shows best
    sa.Column("time", sa.Float, nullable=False),  # seconds, of ``shown``
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("gain", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("repair", sa.JSON, nullable=False),
    sa.Column("regions", sa.JSON, nullable=False),  # digest by id of the regions concerned
    sa.Column("clip", sa.String(64), nullable=False),  # SHA-256 of the rendered clip; empty: none yet
    # Digest of its kind, labels and proposed action: those that have the same are alike.
    sa.Column("signature", sa.String(16), nullable=False, server_default=sa.text("''")),
    sa.Column("embedding", sa.LargeBinary),  # of its first track, if it has one; see MomentStore.similar
    sa.Index("moments_by_gain", "project_id", "gain"),
    sa.Index("moments_alike", "project_id", "signature"),
)

# What people decided about moments and tracks: repairs, with the regions before and after, and dismissals.
repairs = sa.Table(
    "repairs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),
    sa.Column("task_id", sa.Integer, nullable=False, index=True),
    # First repair of those made at once, which are undone at once; 0: it was made alone.
    sa.Column("batch", sa.Integer, nullable=False, index=True, server_default=sa.text("0")),
    sa.Column("moment_id", sa.String(16), nullable=False, index=True),  # empty: made by hand
    sa.Column("signature", sa.String(16), nullable=False, server_default=sa.text("''")),  # and the moment's other facts
    sa.Column("embedding", sa.LargeBinary),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("annotation_id", sa.Integer, nullable=False),  # that was written; 0: a prediction, or nothing
    sa.Column("base_id", sa.Integer, nullable=False),  # annotation that it began with; 0: a prediction
    sa.Column("written", sa.String(16), nullable=False),  # digest of the result that was written
    sa.Column("before", sa.JSON, nullable=False),  # regions that were replaced
    sa.Column("after", sa.JSON, nullable=False),  # regions that replaced them
    sa.Column("undone_by", sa.String(255), nullable=False),
    sa.Column("undone_at", sa.DateTime(timezone=True)),
)

# People who have signed in to the control room, or have been given a role.
people = sa.Table(
    "people",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),  # their e-mail address in Label Studio
    sa.Column("role", sa.String(16), nullable=False),  # that an admin has given; empty: the default one
    sa.Column("default_role", sa.String(16), nullable=False),  # by what Label Studio said at the last sign-in
    sa.Column("given_by", sa.String(255), nullable=False),
    sa.Column("signed_in_at", sa.DateTime(timezone=True)),
)

# Browsers that are signed in.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # SHA-256 of the cookie, so that a copy of it is no key
    sa.Column("name", sa.String(255), nullable=False, index=True),
    sa.Column("token", sa.LargeBinary, nullable=False),  # for Label Studio, encrypted with the cookie
    sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
)

# Who did what, the newest rows only; see ml_backend.db.audit.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("project_id", sa.Integer, nullable=False, index=True),  # 0: of no project
    sa.Column("detail", sa.String(500), nullable=False),
)

# Random texts that are made once, and that all processes share.
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(64), nullable=False),
)
