"""Which mode a project has, who says so, and what its version is made of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from ml_backend.core.errors import ConfigError, WeightsError
from ml_backend.core.settings import Settings
from ml_backend.db.storage import Storage
from ml_backend.db.tables import projects as projects_table
from ml_backend.detectors.weights import MOTION, ResolvedDetector
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.jobs.project_models import MODES, ProjectModelStore
from ml_backend.labeling.few_shot.pattern_store import NewExemplar
from ml_backend.labeling.model_version import base_version, same_kind
from ml_backend.training.registry import Registry
from tests.model_builders import make_tiny_clip, make_tiny_dinov2

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("models")
    return {
        "dinov2_model": str(make_tiny_dinov2(base / "dinov2")),
        "clip_model": str(make_tiny_clip(base / "clip")),
        "detector": "motion",
    }


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"sqlite:///{tmp_path / 'db'}")


@pytest.fixture
def make(settings: MakeSettings, folders: dict[str, str], tmp_path: Path) -> Callable[..., ProjectModelStore]:
    """Factory of the object as one process has it; all share one database."""

    def build(**values: Any) -> ProjectModelStore:
        return ProjectModelStore(settings(**(folders | values)), Storage(f"sqlite:///{tmp_path / 'db'}"))

    return build


@pytest.fixture
def projects(make: Callable[..., ProjectModelStore]) -> ProjectModelStore:
    return make()


def teach(
    projects: ProjectModelStore, project: int, model: str, label: str = "a", task: int = 10, number: int = 0
) -> None:
    look = CropEmbedding(number, (0.0, 0.0, 9.0, 9.0), np.eye(4, dtype=np.float32)[number % 4], b"")
    projects.patterns.crop_embeddings("v").add(model, [look])
    projects.patterns.replace_task(project, model, task, 1, [NewExemplar("r", label, look.key("v", model))])


# -- modes


def test_a_project_has_the_mode_of_the_settings(make: Callable[..., ProjectModelStore]) -> None:
    assert make().mode(1) == "yolo_dinov2"
    for mode in MODES:
        assert make(mode=mode).mode(1) == make(mode=mode).mode(None) == mode


def test_a_switch(make: Callable[..., ProjectModelStore]) -> None:
    here, there = make(), make(mode="yolo")
    assert here.set_mode(1, "universal")
    assert not here.set_mode(1, "universal")
    assert here.mode(1) == there.mode(1) == "universal"  # another process sees it at once
    assert (here.mode(2), there.mode(2), here.mode(None)) == ("yolo_dinov2", "yolo", "yolo_dinov2")
    assert here.set_mode(1, "")  # back to the settings
    assert (here.mode(1), there.mode(1)) == ("yolo_dinov2", "yolo")


def test_a_switch_to_what_the_settings_say_stays(make: Callable[..., ProjectModelStore]) -> None:
    assert not make().set_mode(1, "yolo_dinov2")
    assert make(mode="yolo").mode(1) == "yolo_dinov2"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Yolo", "dinov2", " yolo", "yolo ", "x" * 5000, "\0", "\ud800", "';DROP TABLE x"])
def test_unknown_modes_are_refused(projects: ProjectModelStore, mode: str) -> None:
    projects.set_mode(1, "universal")
    for switch in (lambda: projects.set_mode(1, mode), lambda: projects.setup_mode(1, {"mode": mode})):
        with pytest.raises(ConfigError, match="There is no mode") as failure:
            switch()
        assert all(known in failure.value.hint for known in MODES)
        assert len(str(failure.value)) < 500
    assert projects.mode(1) == "universal"


def test_a_mode_that_a_later_release_has_stored(projects: ProjectModelStore, storage: Storage) -> None:
    projects.set_mode(1, "universal")
    with storage.engine.begin() as connection:
        connection.execute(sa.update(projects_table).values(mode="yolo_oracle"))
    assert projects.mode(1) == "yolo_dinov2"
    assert projects.set_mode(1, "yolo")


def test_threads_switch_at_once(make: Callable[..., ProjectModelStore]) -> None:
    def work(number: int) -> None:
        mine = make()
        for repeat in range(8):
            mine.set_mode(repeat, MODES[number % 4])
            mine.setup_mode(100 + repeat, {"mode": MODES[number % 4]})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert all(make().mode(number) in MODES for number in (*range(8), *range(100, 108)))


# -- the mode that Label Studio sends along


@pytest.mark.parametrize(
    "params",
    [{"mode": "universal"}, json.dumps({"mode": "universal", "other": [1]}), {"mode": "universal", "x": None}],
)
def test_extra_parameters(projects: ProjectModelStore, params: Any) -> None:
    assert projects.setup_mode(1, params)
    assert projects.mode(1) == "universal"
    assert not projects.setup_mode(1, params)


@pytest.mark.parametrize(
    "params",
    [
        *(None, "", "null", "{}", {}, [], "[]", 7, 1.5, True, b"{}", "\0", "\ud800"),
        *("no json", "{", "yolo", '"yolo"', "7", '{"mode": 7}', '{"mode": ""}'),
        *({"mode": 7}, {"mode": None}, {"mode": ["yolo"]}, {"MODE": "yolo"}, {"model": "yolo"}),
    ],
    ids=repr,
)
def test_extra_parameters_that_say_nothing(projects: ProjectModelStore, params: Any) -> None:
    assert not projects.setup_mode(1, params)
    assert projects.mode(1) == "yolo_dinov2"
    projects.set_mode(1, "yolo_clip")
    assert not projects.setup_mode(1, params)
    assert projects.mode(1) == "yolo_clip"


def test_a_switch_made_elsewhere_stays(projects: ProjectModelStore) -> None:
    """The parameters come with every call; only what is new in them counts."""
    same = {"mode": "universal"}
    projects.setup_mode(1, same)
    assert projects.set_mode(1, "yolo")
    for _ in range(3):
        assert not projects.setup_mode(1, same)
    assert projects.mode(1) == "yolo"
    assert projects.setup_mode(1, {"mode": "yolo_clip"})
    assert projects.mode(1) == "yolo_clip"
    assert projects.setup_mode(1, same)
    assert projects.mode(1) == "universal"


def test_parameters_that_are_taken_away(projects: ProjectModelStore) -> None:
    projects.setup_mode(1, {"mode": "universal"})
    assert projects.setup_mode(1, {})
    assert projects.mode(1) == "yolo_dinov2"
    assert not projects.setup_mode(1, None)


def test_parameters_that_name_what_is_there_already(projects: ProjectModelStore) -> None:
    projects.set_mode(1, "universal")
    assert not projects.setup_mode(1, {"mode": "universal"})
    projects.set_mode(1, "yolo")
    assert not projects.setup_mode(1, {"mode": "universal"})  # known since the call before
    assert projects.mode(1) == "yolo"


def test_parameters_that_were_wrong_can_be_corrected(projects: ProjectModelStore) -> None:
    with pytest.raises(ConfigError):
        projects.setup_mode(1, {"mode": "universel"})
    with pytest.raises(ConfigError):  # it is told again, as long as it is wrong
        projects.setup_mode(1, {"mode": "universel"})
    assert projects.setup_mode(1, {"mode": "universal"})


# -- versions


def versions(projects: ProjectModelStore, *ids: int) -> list[str]:
    return [projects.models(number).version for number in ids]


def test_every_mode_has_its_models(
    projects: ProjectModelStore, settings: MakeSettings, folders: dict[str, str]
) -> None:
    seen = {}
    for number, mode in enumerate(MODES):
        projects.set_mode(number, mode)
        models = projects.models(number)
        seen[models.mode] = (models.classifier.embedder is not None, models.classifier.clip is not None)
        assert models.base == base_version(settings(**folders), MOTION)
        assert models.version.startswith(f"{models.base}.{mode}")
        assert models.version.endswith(".base")
        assert models.detector == MOTION
    assert seen == {
        "yolo": (False, False),
        "yolo_dinov2": (True, False),
        "yolo_clip": (False, True),
        "universal": (True, True),
        "open_vocabulary": (True, False),
    }


def test_a_version_changes_with_what_is_learned(projects: ProjectModelStore) -> None:
    model = projects.models(1).classifier.embedder
    assert model is not None
    before = versions(projects, 1, 2)
    assert before[0] == before[1]
    teach(projects, 1, model.model_id)
    after = versions(projects, 1, 2)
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert same_kind(before[0], after[0])
    assert versions(projects, 1) == after[:1]
    teach(projects, 1, model.model_id, "b")
    assert len({before[0], after[0], *versions(projects, 1)}) == 3
    projects.patterns.replace_task(1, model.model_id, 10, 1, [])
    assert versions(projects, 1) == before[:1]


def test_a_version_does_not_change_with_what_does_not_matter(projects: ProjectModelStore) -> None:
    clip = projects.models(None).classifier.clip
    assert clip is None
    before = versions(projects, 1)
    teach(projects, 1, "another model")
    teach(projects, 2, projects.models(2).classifier.ids[0])
    assert versions(projects, 1) == before
    projects.set_mode(1, "yolo")
    teach(projects, 1, projects.models(2).classifier.ids[0])
    assert projects.models(1).version.endswith(".yolo.base")


def test_equal_content_is_one_version_in_all_processes(make: Callable[..., ProjectModelStore]) -> None:
    here = make()
    teach(here, 1, here.models(1).classifier.ids[0])
    teach(here, 2, here.models(2).classifier.ids[0])
    assert len({*versions(here, 1, 2), *versions(make(), 1, 2)}) == 1


def test_names_of_labels_are_part_of_the_version_only_by_what_was_learned(projects: ProjectModelStore) -> None:
    for number in (1, 2):
        projects.set_mode(number, "yolo_clip")
    before = versions(projects, 1)[0]
    assert ".yolo_clip-" in before
    teach(projects, 1, projects.models(1).classifier.ids[0])
    assert versions(projects, 1, 2) != [before, before]
    assert versions(projects, 2) == [before]


def test_without_a_project(projects: ProjectModelStore) -> None:
    teach(projects, 1, projects.models(1).classifier.ids[0])
    models = projects.models(None)
    assert models.version.endswith(".yolo_dinov2.base")
    assert models.mode == "yolo_dinov2"


def test_a_detector_may_be_pinned_until_the_project_has_another_version(
    make: Callable[..., ProjectModelStore], storage: Storage, tmp_path: Path
) -> None:
    projects, registry = make(detector="auto"), Registry(storage)
    detector = ResolvedDetector("yolo", "yolo11n", tmp_path / "x.pt", "ab" * 32)
    before = dataclasses.replace(projects.models(1), detector=detector)
    models = projects.models(1, pinned=before)
    assert models.detector == detector
    assert models.version.startswith("yolo11n-abababab.")
    run = registry.begin(1, "me", "test", None)
    run = registry.advance(run, detector="yolo11n", weights_sha256="cd" * 32, artifact="x/v1.pt")
    registry.promote(run, "better", "test")
    models = projects.models(1, pinned=before)
    assert models.version.startswith("yolo11n-cdcdcdcd.")
    assert models.version.endswith(".v1")


def test_what_is_missing_is_told(make: Callable[..., ProjectModelStore]) -> None:
    projects = make(mode="universal", dinov2_model="facebook/dinov2-base", clip_model="someone/clip")
    models = projects.models(1)
    assert models.classifier.embedder is not None
    assert models.classifier.embedder.kind == "fallback"
    assert models.classifier.clip is None
    assert len(models.classifier.notes) == 2
    assert models.version.endswith(".universal.base")
    with pytest.raises(WeightsError, match="does not exist"):
        make(dinov2_model="/nowhere/at/all").models(1)


def test_asking_takes_no_time(projects: ProjectModelStore) -> None:
    """It is asked on every call of Label Studio's; torch is not even imported for it."""
    import subprocess
    import sys

    from tests.builders import ROOT

    code = (
        "import sys; from ml_backend.jobs.project_models import ProjectModelStore;"
        "from ml_backend.core.settings import Settings;"
        "from ml_backend.db.storage import Storage; s = Settings(_env_file=None, detector='motion', mode='universal');"
        "ProjectModelStore(s, Storage('sqlite://')).models(1); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, timeout=300, check=True)
    assert done.stdout.strip() == b"False"


def test_extra_parameters_without_end(projects: ProjectModelStore) -> None:
    assert not projects.setup_mode(1, "[" * 200_000)
