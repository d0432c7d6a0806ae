"""Operations on learned labels, for scripts and the web application."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import ConfigError
from ml_backend.jobs.container import Container
from ml_backend.jobs.project_models import ProjectModelStore
from ml_backend.labeling.modes import require_embedder

if TYPE_CHECKING:  # slow imports that the web process does not need
    from ml_backend.embeddings.hub import ResolvedModel
    from ml_backend.labeling.few_shot.similarity_search import SimilarTrack


class Patterns:
    """The learned labels of all projects. Long work is done by workers, except :meth:`similar`."""

    def __init__(self, container: Container) -> None:
        self._container, self._settings = container, container.settings

    @property
    def projects(self) -> ProjectModelStore:
        """Modes and versions."""
        return self._container.projects

    def summary(self, project_id: int) -> dict[str, Any]:
        """Return mode, models, version, and per label: exemplars, objects, tasks; also jumps of annotated tracks.

        Quick: loads no exemplar.

        Raises:
            WeightsError, StorageError: see :class:`ml_backend.jobs.project_models.ProjectModelStore`.
        """
        models = self.projects.models(project_id)
        embedder, clip = models.classifier.embedder, models.classifier.clip
        return {
            "project": project_id,
            "mode": models.mode,
            "model_version": models.version,
            "embedder": embedder.model_id if embedder else None,
            "clip": clip.model_id if clip else None,
            "notes": [note for note in (models.detector.note, *models.classifier.notes) if note],
            "labels": dict(self.projects.patterns.counts(project_id, embedder.model_id)) if embedder else {},
            "jumps": [
                {"task": task, "region": jump.region_id, "label": jump.label, "frame": jump.frame}
                | {"untaught": jump.untaught}
                for task, jump in (self.projects.patterns.jumps(project_id) if models.classifier.ids else ())
            ],
        }

    def info(self, project_id: int) -> dict[str, Any]:
        """Return the :meth:`summary`, and per label also: clusters, thresholds, detector classes, suspicious ids."""
        report = self.summary(project_id)
        if report["embedder"]:
            bank, origins = self.projects.classifiers.bank(project_id, report["embedder"])
            if bank:
                for label in bank.labels:
                    report["labels"][label] |= {
                        "clusters": bank.clusters[label],
                        "threshold": round(bank.thresholds[label], 4),
                        "safe_threshold": round(bank.safe_thresholds[label], 4),
                        "classes": sorted(bank.taught.classes[label]) if label in bank.taught.bound else [],
                        "suspicious": sorted(i for i in bank.suspicious if origins[i].label == label),
                    }
        return report

    def switch(self, project_id: int, mode: str) -> bool:
        """Switch a project's mode (empty: the settings') and refresh unannotated tasks. Return whether it changed.

        Raises:
            ConfigError: the mode does not exist.
            QueueUnavailable: the mode is switched, but old predictions stay until their tasks are opened.
        """
        changed = self.projects.set_mode(project_id, mode)
        if changed:
            self._container.queue.request_refresh(project_id)
        return changed

    def learn(self, project_id: int) -> None:
        """Request that all annotations of a project are read again."""
        self._container.queue.request_learning(project_id, None)

    def export(self, project_id: int, out: Path) -> int:
        """Write the project's bank to a file; return the number of exemplars."""
        from ml_backend.labeling.few_shot.bank_file import export_bank

        return export_bank(self.projects.patterns, project_id, self._embedder(project_id).model_id, out)

    def import_file(self, project_id: int, path: Path) -> int:
        """Add a file's exemplars to the project's bank; return their number.

        Raises:
            ConfigError: the file is unusable, or made with another embedder.
        """
        from ml_backend.embeddings.loading import use_embedder
        from ml_backend.labeling.few_shot.bank_file import check_dimension, import_bank, read_bank

        embedder = self._embedder(project_id)
        model_id = embedder.model_id
        bank = read_bank(path, model_id)
        with use_embedder(embedder, self._settings) as model:
            check_dimension(bank, path, model.dim)
        unread = self.projects.patterns.digest(project_id, model_id) is None
        number = import_bank(self.projects.patterns, project_id, bank)
        if unread:  # importing must not count as having read the project's own annotations
            self._container.queue.request_learning(project_id, None)
        self._container.queue.request_refresh(project_id)
        return number

    def remove_imported(self, project_id: int) -> None:
        """Remove imported exemplars."""
        model_id = self._embedder(project_id).model_id
        unread = self.projects.patterns.digest(project_id, model_id) is None
        self.projects.patterns.remove_imported(project_id, model_id)
        if unread:
            self._container.queue.request_learning(project_id, None)
        self._container.queue.request_refresh(project_id)

    def similar(
        self, project_id: int, label: str, *, limit: int = 50, safe_only: bool = False
    ) -> tuple[list[SimilarTrack], list[str]]:
        """Return unannotated tracks that are most similar to a label's exemplars, and messages on skipped videos.

        Those that somebody has labelled or rejected are left out.

        Args:
            safe_only: only tracks whose similarity passes the label's safe threshold.

        Raises:
            ConfigError: the label has no exemplars.
        """
        from ml_backend.embeddings.loading import use_embedder
        from ml_backend.labeling.few_shot.similarity_search import find_similar
        from ml_backend.review.moment_store import MomentStore

        models = self.projects.models(project_id, download=True)
        embedder = require_embedder(models.classifier)
        bank, _ = self.projects.classifiers.bank(project_id, embedder.model_id)
        if bank is None:
            raise ConfigError(
                f"Project {project_id} has learned no label yet.", "Annotate some tracks and submit them."
            )
        marked = MomentStore(self._container.storage).marked(project_id)
        states = self._container.client.list_task_states(project_id)
        open_tasks = {state.id for state in states if not state.annotations}
        skipped: list[str] = []

        tracks = find_similar(
            self.projects.patterns,
            project_id,
            label,
            bank,
            embedder.model_id,
            embedder=lambda: use_embedder(embedder, self._settings),
            open_video=lambda stored: self._container.media.open(stored.uri, stored.task_id, project_id),
            tasks=open_tasks,
            limit=limit + len(marked),
            trained=models.trained is not None,
            on_skip=lambda stored, error: skipped.append(f"task {stored.task_id}: {error}"),
        )
        found = sorted(tracks, key=lambda track: track.key in marked)  # marked ones are shown again if that is undone
        return [track for track in found if track.safe or not safe_only], skipped

    def _embedder(self, project_id: int) -> ResolvedModel:
        return require_embedder(self.projects.models(project_id, download=True).classifier)
