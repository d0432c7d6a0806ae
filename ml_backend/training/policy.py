"""When a project retrains: after enough new annotations, once people pause, and not too often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import pydantic.dataclasses
import sqlalchemy as sa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy.exc import IntegrityError

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.storage import Storage
from ml_backend.db.tables import training_policies
from ml_backend.label_studio.extra_params import read_extra_params

#: Seconds by which the clocks of two machines may differ.
SKEW_S = 60.0
#: Pause after a failed training, doubled with each further failure, and its limit, in seconds.
FAILED_S, LONGEST_S = 60.0, 24 * 3600.0
#: Names that policies had in earlier releases, and may still have in the database and in Label Studio.
RETIRED = ("pseudo_labels",)

_Seconds = Annotated[float, Field(strict=True, ge=0, le=366 * 24 * 3600, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class TrainingPolicy:
    """When a project retrains.

    Attributes:
        mode: ``"automatic"``: annotations lead to trainings, and the gate promotes what passes. ``"propose"``: what
            passes is always proposed to a person. ``"off"``: only "Start training" starts one, then as in automatic.
        min_tracks: fewest annotated tracks that are new or changed since the last training.
        quiet_s: seconds that must have passed since the last annotation.
        every_s: shortest time between the starts of two trainings, in seconds.
    """

    mode: Literal["automatic", "propose", "off"] = "automatic"
    min_tracks: Annotated[int, Field(strict=True, ge=0, le=10**7)] = 10  # with fewer, trainings hardly pass the gate
    quiet_s: _Seconds = 60.0  # people who correct tracks submit more often than that
    every_s: _Seconds = 900.0  # trainings take minutes of a CPU, most of which predictions need

    def changed(self, values: Mapping[str, Any]) -> TrainingPolicy:
        """Return a policy with some values replaced.

        Raises:
            ConfigError: a name does not exist or a value is invalid.
        """
        return TrainingPolicy(**(asdict(self) | check_policy(values)))


def check_policy(values: Any) -> dict[str, Any]:
    """Validate values of a policy and return them without :data:`RETIRED` ones.

    Raises:
        ConfigError: a name does not exist or a value is invalid.
    """
    values = _renamed(values)
    try:
        policy = TypeAdapter(TrainingPolicy).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:40]
        raise ConfigError(
            f"The training policy cannot be used: {where}: {first['msg']}.",
            f"Give a JSON object with these names: {', '.join(field.name for field in fields(TrainingPolicy))}.",
        ) from error
    return {name: getattr(policy, name) for name in values}


def _renamed(values: Any) -> Any:
    """Drop names of earlier releases; ``auto`` becomes ``mode``, unless both are given."""
    if not isinstance(values, Mapping):
        return values
    kept = {name: item for name, item in values.items() if name not in RETIRED}
    if not isinstance(kept.get("auto"), bool):
        return kept
    mode = "automatic" if kept.pop("auto") else "off"
    return {"mode": mode} | kept


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What the decision to train depends on.

    Attributes:
        new_tracks: annotated tracks of tasks that are new or changed since the last training, or corrected regions of a
            task if they are more.
        changed_at: last annotation; ``None``: never.
        started_at: start of the last training; ``None``: never.
        failures: number of trainings that have failed in a row; each doubles the pause.
    """

    new_tracks: int
    changed_at: datetime | None
    started_at: datetime | None
    failures: int = 0


def is_due(policy: TrainingPolicy, state: TrainingState, now: datetime | None = None) -> bool:
    """Return whether a training should start now."""
    now = now or datetime.now(timezone.utc)
    return (
        policy.mode != "off"
        and state.new_tracks > 0
        and state.new_tracks >= policy.min_tracks
        and _passed(state.changed_at, policy.quiet_s, now)
        and _passed(state.started_at, _pause(policy, state), now)
    )


def _pause(policy: TrainingPolicy, state: TrainingState) -> float:
    if not state.failures:
        return policy.every_s
    return float(min(max(policy.every_s, FAILED_S) * 2**state.failures, LONGEST_S))


def _passed(moment: datetime | None, seconds: float, now: datetime) -> bool:
    if moment is None:
        return True
    elapsed = (now - ensure_utc(moment)).total_seconds()
    # A time far in the future comes from a clock that has been set back since.
    return elapsed >= seconds or elapsed < -max(seconds, SKEW_S)


class PolicyStore:
    """The policies of all projects."""

    def __init__(self, storage: Storage, default: TrainingPolicy | None = None) -> None:
        self._default = default or TrainingPolicy()
        self._storage = storage

    def get(self, project_id: int) -> TrainingPolicy:
        """Return the project's policy: its own values, else the default ones."""
        try:
            return self._default.changed(self._row(project_id)[0])
        except ConfigError:  # written by another version of this program
            return self._default

    def set(self, project_id: int, values: Mapping[str, Any]) -> TrainingPolicy:
        """Store a project's own values; others keep the default.

        Raises:
            ConfigError: see :func:`check_policy`.
        """
        self._save(project_id, policy=check_policy(values))
        return self.get(project_id)

    def setup(self, project_id: int, extra_params: Any) -> None:
        """Take the policy from Label Studio's extra parameters, ``{"training": {...}}``.

        Label Studio sends them with every call, so only values that differ from the last call's count.

        Raises:
            ConfigError: see :func:`check_policy`.
        """
        given = read_extra_params(extra_params).get("training")
        values = check_policy(given if isinstance(given, Mapping) else {})
        if values != _renamed(self._row(project_id)[1]):
            self._save(project_id, policy=values, setup_policy=values)

    def _row(self, project_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
        query = sa.select(training_policies).where(training_policies.c.project_id == project_id)
        with self._storage.read() as connection:
            row = connection.execute(query).first()
        return (dict(row.policy or {}), dict(row.setup_policy or {})) if row else ({}, {})

    def _save(self, project_id: int, **values: Any) -> None:
        of = training_policies.c.project_id == project_id
        for _ in range(2):
            try:
                with self._storage.write() as connection:
                    if not connection.execute(sa.update(training_policies).where(of).values(**values)).rowcount:
                        row = {"policy": {}, "setup_policy": {}, **values}
                        connection.execute(sa.insert(training_policies).values(project_id=project_id, **row))
                return
            except StorageError as error:
                if not isinstance(error.__cause__, IntegrityError):  # another process has just inserted the row
                    raise
