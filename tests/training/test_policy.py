"""When a project retrains by itself."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ml_backend.core.errors import ConfigError
from ml_backend.db.storage import Storage
from ml_backend.db.tables import training_policies
from ml_backend.training.policy import PolicyStore, TrainingPolicy, TrainingState, is_due

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
POLICY = TrainingPolicy(min_tracks=10, quiet_s=60, every_s=900)


def state(tracks: int = 10, changed_s: float | None = 60, started_s: float | None = None) -> TrainingState:
    def ago(seconds: float | None) -> datetime | None:
        return None if seconds is None else NOW - timedelta(seconds=seconds)

    return TrainingState(tracks, ago(changed_s), ago(started_s))


def test_enough_tracks_and_a_pause() -> None:
    assert is_due(POLICY, state(), NOW)
    assert not is_due(POLICY, state(tracks=9), NOW)
    assert not is_due(POLICY, state(changed_s=59), NOW)
    assert not is_due(POLICY, state(started_s=899), NOW)
    assert is_due(POLICY, state(started_s=900), NOW)


def test_nothing_new_is_never_enough() -> None:
    assert not is_due(POLICY.changed({"min_tracks": 0}), state(tracks=0), NOW)


@pytest.mark.parametrize(("mode", "due"), [("automatic", True), ("propose", True), ("off", False)])
def test_only_on_request(mode: str, due: bool) -> None:
    assert is_due(POLICY.changed({"mode": mode}), state(tracks=1000), NOW) is due


def test_a_clock_that_was_set_back_holds_nobody_up() -> None:
    assert is_due(POLICY, state(changed_s=-3600, started_s=-3600), NOW)
    assert not is_due(POLICY, state(changed_s=-5), NOW), "clocks of two machines differ a little"


def test_moments_without_time_zone_are_utc() -> None:
    naive = TrainingState(10, NOW.replace(tzinfo=None), None)
    assert not is_due(POLICY, naive, NOW)


@pytest.fixture
def policies(tmp_path: Path) -> PolicyStore:
    return PolicyStore(Storage(f"sqlite:///{tmp_path / 'db'}"), TrainingPolicy(min_tracks=7))


def test_a_project_has_values_of_its_own(policies: PolicyStore) -> None:
    assert policies.set(1, {"quiet_s": 5}) == TrainingPolicy(min_tracks=7, quiet_s=5.0)
    assert policies.get(2) == TrainingPolicy(min_tracks=7)
    assert policies.set(1, {}) == TrainingPolicy(min_tracks=7)


def test_label_studio_may_say_so_and_is_only_heard_when_it_says_something_new(policies: PolicyStore) -> None:
    policies.setup(1, '{"mode": "yolo", "training": {"min_tracks": 3}}')
    assert policies.get(1).min_tracks == 3
    policies.set(1, {"min_tracks": 4})
    policies.setup(1, {"training": {"min_tracks": 3}})
    assert policies.get(1).min_tracks == 4
    policies.setup(1, None)
    assert policies.get(1).min_tracks == 7


@pytest.mark.parametrize(("auto", "mode"), [(True, "automatic"), (False, "off")])
def test_policies_from_before_there_were_modes(policies: PolicyStore, auto: bool, mode: str) -> None:
    assert policies.set(1, {"auto": auto, "quiet_s": 5.0}) == TrainingPolicy(mode, 7, 5.0)  # type: ignore[arg-type]
    assert policies.set(1, {"auto": auto, "mode": "propose"}).mode == "propose"
    policies.setup(2, {"training": {"auto": auto}})
    assert policies.get(2).mode == mode
    policies.set(2, {"mode": "propose"})
    policies.setup(2, {"training": {"auto": auto}})
    assert policies.get(2).mode == "propose", "Label Studio has said nothing new"


def test_a_stored_policy_from_before_there_were_modes(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path / 'db'}")
    policies = PolicyStore(storage)
    old = {"project_id": 1, "policy": {"auto": False, "min_tracks": 3}, "setup_policy": {"auto": False}}
    with storage.engine.begin() as connection:
        connection.execute(sa.insert(training_policies).values(**old))
    assert policies.get(1) == TrainingPolicy("off", 3)
    policies.setup(1, {"training": {"auto": False}})
    assert policies.get(1) == TrainingPolicy("off", 3), "what Label Studio sends is not new"


@pytest.mark.parametrize(
    "values",
    [
        {"min_track": 1},
        {"auto": 1},
        {"mode": "sometimes"},
        {"min_tracks": True},
        {"quiet_s": -1},
        {"every_s": float("nan")},
        {"every_s": "1"},
    ],
)
def test_nonsense_is_named(policies: PolicyStore, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        policies.set(1, values)
    assert policies.get(1) == TrainingPolicy(min_tracks=7)
