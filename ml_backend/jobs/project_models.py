"""Per project: the mode, the models in use, and the version of predictions made with them."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import sqlalchemy as sa

from ml_backend.core.artifacts import Artifacts
from ml_backend.core.errors import ConfigError
from ml_backend.core.settings import Mode, Settings
from ml_backend.db.storage import Storage
from ml_backend.db.tables import projects
from ml_backend.detectors.weights import ResolvedDetector, resolve_detector
from ml_backend.label_studio.extra_params import read_extra_params
from ml_backend.label_studio.label_config import LabelConfig, prompts_digest
from ml_backend.labeling.few_shot.digest import bank_digests
from ml_backend.labeling.model_version import BASE, base_version, model_version, text_search_part
from ml_backend.labeling.modes import ClassifierModels, classifier_models, mode_part
from ml_backend.training.registry import Registry, Version

if TYPE_CHECKING:  # slow imports that start-up does not need
    from ml_backend.labeling.few_shot.pattern_store import PatternStore
    from ml_backend.labeling.track_classifier import TrackClassifierFactory

log = logging.getLogger(__name__)

MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class ProjectModels:
    """The models that make a project's predictions.

    Attributes:
        base: names detector, tracker, settings, and what is searched for by text. Tracks depend on nothing else.
        source: the same without the labels that are searched for.
        version: of predictions.
        trained: the version in use; ``None``: the detector of the settings.
    """

    mode: Mode
    detector: ResolvedDetector
    classifier: ClassifierModels
    base: str
    version: str
    trained: Version | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    mode: str = ""
    setup_mode: str = ""
    prompts: str = ""


_NO_ROW = _Row()


class ProjectModelStore:
    """Modes and models of all projects. Safe across threads and processes."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self._settings, self._storage = settings, storage
        self._registry, self._artifacts = Registry(storage), Artifacts(settings)

    @cached_property
    def patterns(self) -> PatternStore:
        from ml_backend.labeling.few_shot.pattern_store import PatternStore

        return PatternStore(self._storage)

    @cached_property
    def classifiers(self) -> TrackClassifierFactory:
        from ml_backend.labeling.track_classifier import TrackClassifierFactory

        return TrackClassifierFactory(self._settings, self.patterns)

    def mode(self, project_id: int | None) -> Mode:
        """Return the project's own mode, else the one in the settings."""
        if project_id is None:
            return self._settings.mode
        return self._mode(self._row(project_id))

    def _mode(self, row: _Row) -> Mode:
        return row.mode if row.mode in MODES else self._settings.mode

    def set_mode(self, project_id: int, mode: str) -> bool:
        """Switch a project's mode (empty: the one in the settings). Return whether that changed anything.

        Raises:
            ConfigError: the mode does not exist.
        """
        _check(mode)
        before = self.mode(project_id)
        self._save(project_id, mode=mode)
        return self.mode(project_id) != before

    def setup_mode(self, project_id: int, extra_params: Any) -> bool:
        """Take the mode from Label Studio's extra parameters (``{"mode": "universal"}``); return whether it changed.

        Label Studio sends them with every call, so only a value that differs from the last call's counts: a switch made
        elsewhere since then stays.

        Raises:
            ConfigError: the mode does not exist.
        """
        value = read_extra_params(extra_params).get("mode")
        mode = value if isinstance(value, str) else ""
        stored = self._row(project_id)
        if mode == stored.setup_mode:
            return False
        _check(mode)
        before = self._mode(stored)
        self._save(project_id, mode=mode, setup_mode=mode)
        return self.mode(project_id) != before

    def remember_labels(self, project_id: int, config: LabelConfig) -> bool:
        """Store the digest of a project's prompts; return whether it changed."""
        digest = prompts_digest(config)
        if self._row(project_id).prompts == digest:
            return False
        self._save(project_id, prompts=digest)
        return True

    def models(
        self,
        project_id: int | None,
        *,
        download: bool = False,
        pinned: ProjectModels | None = None,
        chosen: Version | None = None,
    ) -> ProjectModels:
        """Return a project's models; takes milliseconds without ``download``.

        Args:
            pinned: models whose detector is kept unless the project has switched to another version since.
            chosen: version to use instead of the project's own.

        Raises:
            WeightsError: configured weights do not exist, or those of the version in use are gone.
            StorageError: they cannot be fetched now.
        """
        row = self._row(project_id) if project_id is not None else _NO_ROW
        mode = self._mode(row)
        trained = chosen or (self.trained(project_id) if project_id is not None else None)
        if pinned is not None and _id(pinned.trained) == _id(trained):
            detector = pinned.detector
        elif trained is not None:
            detector = self.detector_of(trained, download=download)
        else:
            detector = resolve_detector(self._settings, download=download)
        detector = replace(detector, project=project_id)
        classifier = classifier_models(self._settings, mode, download=download)
        digests = bank_digests(self._storage, project_id, classifier.ids) if project_id is not None else {}
        part = mode_part(classifier, digests, row.prompts)
        search = text_search_part(self._settings, classifier.text_detector, row.prompts)
        base = base_version(self._settings, detector, search)
        version = model_version(self._settings, detector, part, trained.name if trained else BASE, search)
        source = base_version(self._settings, detector, text_search_part(self._settings, classifier.text_detector))
        return ProjectModels(mode, detector, classifier, base, version, trained, source)

    def trained(self, project_id: int) -> Version | None:
        """Return the version in use; ``None``: the detector of the settings, always so with ``DETECTOR=motion``."""
        return None if self._settings.detector == "motion" else self._registry.current(project_id)

    def detector_of(self, version: Version, *, download: bool = False) -> ResolvedDetector:
        """Return a version's detector; with ``download``, fetch its weights.

        Raises:
            WeightsError: they are gone or damaged.
            StorageError: they cannot be fetched now.
        """
        if download:
            path = self._artifacts.fetch(version.artifact, version.weights_sha256)
        else:
            path = self._artifacts.local_path(version.artifact, version.weights_sha256)
        return ResolvedDetector("yolo", version.detector, path, version.weights_sha256)

    def check_weights(self, version: Version) -> None:
        """Raise as :meth:`detector_of` does if a version's weights cannot be used; downloads nothing."""
        self._artifacts.check(version.artifact, version.weights_sha256)

    def _row(self, project_id: int) -> _Row:
        query = sa.select(projects).where(projects.c.project_id == project_id)
        with self._storage.read() as connection:
            row = connection.execute(query).first()
        return _Row(row.mode, row.setup_mode, row.prompts) if row else _NO_ROW

    def _save(self, project_id: int, **values: str) -> None:
        self._storage.upsert(projects, {"project_id": project_id}, values, asdict(_NO_ROW))
        if "mode" in values:
            log.info("Project %s: mode %s", project_id, values["mode"] or f"of the settings ({self._settings.mode})")


def _id(version: Version | None) -> int | None:
    return version.id if version else None


def _check(mode: str) -> None:
    if mode and mode not in MODES:
        raise ConfigError(f"There is no mode {mode[:80]!r}.", f"Use one of {', '.join(MODES)}.")
