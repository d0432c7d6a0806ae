"""Which versions keep their weights, on a real database and with real files."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from ml_backend.core.errors import ConfigError, WeightsError
from ml_backend.core.settings import Settings
from ml_backend.jobs.container import Container
from ml_backend.jobs.services.trainings import Trainings
from ml_backend.jobs.train import TrainingRun
from ml_backend.training.registry import Registry, Version
from ml_backend.training.retention import REFUSED, remove_old_weights

Make = Callable[..., "Place"]


class Place:
    """A project's registry with weights, as a worker has it."""

    def __init__(self, settings: Settings, project: int = 1) -> None:
        self.container, self.project, self.settings = Container(settings), project, settings
        self.registry: Registry = self.container.registry
        self.artifacts = self.container.artifacts

    def run(self, state: str = "promoted", parent: Version | None = None) -> Version:
        """A training that ended so; its weights are its number."""
        current = self.registry.current(self.project)
        run = self.registry.begin(self.project, "me", "a test", parent or current)
        weights = self.settings.data_dir / "best.pt"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(b"PK %d of %d" % (run.number, self.project))
        name = f"projects/{self.project}/{run.name}-{run.id}.pt"
        sha256 = self.artifacts.put(weights, name)
        run = self.registry.advance(run, weights_sha256=sha256, artifact=name, detector="yolo11n")
        if state == "promoted":
            return self.registry.promote(run, "Better.", "gate", current.id if current else None)
        return self.registry.finish(run, state, "Worse.")

    def remove(self) -> int:
        return remove_old_weights(self.project, self.settings, self.container.storage, self.artifacts)

    def kept(self) -> list[str]:
        """Names of the versions whose files are there, and that the registry says are there: they are the same."""
        listed = [version for version in self.registry.versions(self.project) if version.has_weights]
        files = [version.name for version in listed if self.artifacts.exists(version.artifact)]
        assert files == [version.name for version in listed]
        return sorted(files, key=lambda name: int(name[1:]))

    @property
    def trainings(self) -> Trainings:
        return Trainings(self.container.projects, self.container.queue, self.container.storage)


@pytest.fixture
def make(settings: Callable[..., Settings], redis_url: str) -> Make:
    def build(project: int = 1, **values: object) -> Place:
        return Place(settings(redis_url=redis_url, detector="auto", **values), project)

    return build


def test_the_newest_keep_their_weights(make: Make) -> None:
    place = make(keep_versions=2)
    for _ in range(4):
        place.run()
    assert place.remove() == 2
    assert place.kept() == ["v3", "v4"]
    assert [version.name for version in place.registry.versions(1)] == ["v4", "v3", "v2", "v1"], "the rows stay"
    assert place.remove() == 0


def test_of_refused_ones_three_keep_them(make: Make) -> None:
    place = make()
    place.run()
    for _ in range(REFUSED + 2):
        place.run("refused")
    assert place.remove() == 2
    assert place.kept() == ["v1", "v4", "v5", "v6"]


def test_a_proposed_one_keeps_them(make: Make) -> None:
    place = make(keep_versions=1)
    place.run("proposed")
    for _ in range(3):
        place.run()
    # Each promotion supersedes it, so it counts as a refused one by now.
    assert place.remove() == 1
    assert place.kept() == ["v1", "v3", "v4"]
    for _ in range(REFUSED):
        place.run("refused")
    place.run("proposed")
    place.remove()
    assert place.kept() == ["v3", "v4", "v5", "v6", "v7", "v8"]


def test_clips_go_with_the_weights(make: Make, tmp_path: Path) -> None:
    place, clip = make(), tmp_path / "0.mp4"
    clip.write_bytes(b"a clip")
    names = []
    for number in range(REFUSED + 1):
        run = place.registry.begin(1, "me", "a test", None)
        weights = tmp_path / "best.pt"
        weights.write_bytes(b"PK %d" % number)
        facts = {"weights_sha256": place.artifacts.put(weights, f"projects/1/{run.name}.pt")}
        names.append(f"projects/1/{run.name}-clip-0.mp4")
        clips = {"0": {"artifact": names[-1], "sha256": place.artifacts.put(clip, names[-1])}}
        run = place.registry.advance(run, artifact=f"projects/1/{run.name}.pt", metrics={"clips": clips}, **facts)
        place.registry.finish(run, "refused", "Worse.")
    assert place.remove() == 2
    assert [place.artifacts.exists(name) for name in names] == [False, True, True, True]


def test_by_default_ten_are_kept_and_with_nought_all(make: Make) -> None:
    place, generous = make(), make(2, keep_versions=0)
    for _ in range(12):
        place.run()
        generous.run()
    assert (place.remove(), generous.remove()) == (2, 0)
    assert place.kept() == [f"v{number}" for number in range(3, 13)]
    assert len(generous.kept()) == 12


def test_what_is_in_use_keeps_what_it_needs(make: Make) -> None:
    """An old version was put in use again: it, its parent, where a rollback leads, and what was in use before."""
    place = make(keep_versions=1)
    first = place.run()
    second = place.run()
    third = place.run(parent=first)
    for _ in range(3):
        place.run()
    place.trainings.activate(1, "v3", "somebody")
    place.remove()
    assert place.kept() == ["v1", "v2", "v3", "v6"]
    assert (third.parent_id, place.trainings.rollback_target(1)) == (first.id, second.name)
    assert place.trainings.activate(1, "v2", "somebody")


def test_what_a_run_begins_with_is_kept(make: Make) -> None:
    place = make(keep_versions=1)
    first = place.run()
    running = place.registry.begin(1, "a worker that is away", "a test", first)
    for _ in range(3):
        place.run()
    place.remove()
    assert place.kept() == ["v1", "v4", "v5"]
    place.registry.finish(running, "cancelled", "Given up.")
    place.remove()
    assert place.kept() == ["v4", "v5"]


def test_one_that_is_put_in_use_at_this_moment_is_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import ml_backend.training.retention as keeping

    place = make(keep_versions=1)
    for _ in range(4):
        place.run()
    decide = keeping.removable_versions

    def slow(*args: object) -> object:
        found = decide(*args)  # type: ignore[arg-type]
        place.registry.activate(1, place.registry.find(1, "v1"), "somebody")
        return found

    monkeypatch.setattr(keeping, "removable_versions", slow)
    place.remove()
    assert "v1" in place.kept()
    # The other way round: whoever has looked at the version before it lost its weights is told.
    stale = place.registry.find(1, "v1")
    monkeypatch.undo()
    for name in ("v3", "v4"):
        place.registry.activate(1, place.registry.find(1, name), "somebody")
    place.remove()
    with pytest.raises(ConfigError, match="removed"):
        place.registry.activate(1, stale, "somebody")
    assert place.registry.current(1).name == "v4"  # type: ignore[union-attr]


def test_a_version_without_weights_says_so_and_cannot_be_used(make: Make) -> None:
    place = make(keep_versions=1)
    for _ in range(4):
        place.run()
    place.remove()
    with pytest.raises(ConfigError, match=r"v1 of project 1 cannot be used: its weights were removed") as caught:
        place.trainings.activate(1, "v1", "somebody")
    assert "KEEP_VERSIONS" in caught.value.hint
    assert place.registry.current(1).name == "v4"  # type: ignore[union-attr]
    # Whoever takes its row without asking, to draw what it finds, is told the same.
    with pytest.raises(WeightsError, match="removed"):
        place.container.projects.detector_of(place.registry.find(1, "v1"), download=True)  # type: ignore[arg-type]
    found = place.trainings.versions(1)["versions"]
    assert [(item["version"], item["weights_removed"]) for item in found][2:] == [("v2", True), ("v1", True)]
    assert found[-1]["reason"] == "Better. Its weights were removed, since there are newer versions."
    assert found[0]["reason"] == "Better."
    assert place.trainings.usable_versions(1) == place.kept()[::-1]


def test_a_rollback_passes_over_those_without_weights(make: Make) -> None:
    place = make(keep_versions=1)
    for _ in range(4):
        place.run()
    place.remove()
    assert place.trainings.rollback_target(1) == "v3"
    place.trainings.activate(1, "v3", "somebody")
    assert place.trainings.rollback_target(1) == "base"


def test_the_settings_detector_is_never_removed(make: Make, settings: Callable[..., Settings]) -> None:
    place = make()
    mine = place.artifacts.local_path(place.run().artifact, "")
    link = place.settings.data_dir / "my detector.pt"
    link.symlink_to(mine)
    for _ in range(4):
        place.run()
    for weights in (mine, link):
        place.settings = place.settings.model_copy(update={"keep_versions": 1, "yolo_weights": str(weights)})
        place.artifacts = Container(place.settings).artifacts
        place.remove()
        assert mine.is_file()
    assert place.kept() == ["v1", "v4", "v5"]


def test_only_what_a_training_put_there_is_removed(make: Make, tmp_path: Path) -> None:
    place, other = make(keep_versions=1), make(2)
    initial = place.settings.data_dir / "artifacts" / "yolo11n.pt"
    other.run()
    run = place.registry.begin(1, "me", "from outside", None)
    initial.parent.mkdir(parents=True, exist_ok=True)
    initial.write_bytes(b"PK initial")
    place.registry.finish(run, "refused", "", artifact="yolo11n.pt", weights_sha256="ab" * 32)
    for _ in range(REFUSED):
        place.run("refused")
    assert place.remove() == 0
    assert initial.is_file()
    assert other.kept() == ["v1"]


def test_a_place_that_is_away_is_tried_again(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    place = make(keep_versions=1, artifacts_url=url)
    for _ in range(4):
        version = place.run()
        place.artifacts.fetch(version.artifact, version.weights_sha256)
    cache = place.settings.data_dir / "artifact-cache"
    with monkeypatch.context() as patch:
        patch.setattr(fsspec.filesystem("memory").__class__, "rm_file", _refuse)
        assert place.remove() == 0
    assert (len(place.kept()), len(list(cache.iterdir()))) == (2, 4)
    assert place.remove() == 2
    assert len(fsspec.filesystem("memory").glob(f"/{tmp_path.name}/projects/1/*.pt")) == 2
    assert len(list(cache.iterdir())) == 2, "this machine's copies go too"
    assert place.remove() == 0


def _refuse(*_: object) -> None:
    raise PermissionError("the store is read-only")


def test_what_is_gone_already_is_written_down(make: Make) -> None:
    place = make(keep_versions=1)
    first = place.run()
    for _ in range(2):
        place.run()
    place.artifacts.remove(first.artifact)
    assert place.remove() == 1
    assert place.remove() == 0


def end_a_training(place: Place) -> str:
    """A training is cancelled whose worker had died, and another takes it over; how that ended."""
    place.registry.begin(1, "a worker that died", "a test", place.registry.current(1))
    job = place.container.queue.fetch(place.trainings.start(1, "a test").job_id)
    assert job is not None
    job.set_status("started")
    place.trainings.cancel(1)
    with place.container.training_queue.lock(1) as lock:
        training = TrainingRun(place.container, 1, "a test", lock)
        training.run()
    outcome = training.outcome()
    assert outcome is not None
    return str(outcome["state"])


def test_a_training_removes_them_when_it_has_ended_and_fails_for_nothing(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    place = make(keep_versions=1)
    for _ in range(3):
        place.run()
    database = sqlite3.connect(place.settings.data_dir / "backend.sqlite3")
    database.execute("DROP TABLE unused_artifacts")
    with caplog.at_level(logging.WARNING):
        assert end_a_training(place) == "cancelled"
    assert "were not removed" in caplog.text
    assert place.kept() == ["v1", "v2", "v3"]
    database.execute(
        "CREATE TABLE unused_artifacts (artifact VARCHAR(255) PRIMARY KEY, project_id INTEGER NOT NULL, "
        "weights_sha256 VARCHAR(64) NOT NULL, noted_at DATETIME NOT NULL)"
    )
    assert end_a_training(place) == "cancelled"
    assert place.kept() == ["v2", "v3"]
