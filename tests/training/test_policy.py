"""When a project retrains by itself."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ml_backend.core.errors import ConfigError
from ml_backend.db.storage import Storage
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


def test_only_on_request() -> None:
    assert not is_due(POLICY.changed({"auto": False}), state(tracks=1000), NOW)


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


def test_names_of_earlier_releases_change_nothing(policies: PolicyStore) -> None:
    policies.setup(1, {"training": {"min_tracks": 3, "pseudo_labels": True}})
    assert policies.set(1, {"min_tracks": 4, "pseudo_labels": True}) == TrainingPolicy(min_tracks=4)


@pytest.mark.parametrize(
    "values",
    [{"min_track": 1}, {"auto": 1}, {"min_tracks": True}, {"quiet_s": -1}, {"every_s": float("nan")}, {"every_s": "1"}],
)
def test_nonsense_is_named(policies: PolicyStore, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        policies.set(1, values)
    assert policies.get(1) == TrainingPolicy(min_tracks=7)
