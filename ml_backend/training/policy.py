"""When a project retrains: after enough new annotations, once people pause, and not too often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from typing import Annotated, Any

import pydantic.dataclasses
import sqlalchemy as sa
from pydantic import ConfigDict, Field, StrictBool, TypeAdapter, ValidationError
from sqlalchemy.exc import IntegrityError

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.storage import Storage
from ml_backend.db.tables import training_policies
from ml_backend.label_studio.extra_params import read_extra_params

#: Seconds by which the clocks of two machines may differ.
SKEW_S = 60.0
#: Seconds after a training that failed, doubled with each further one, and the most.
FAILED_S, LONGEST_S = 60.0, 24 * 3600.0

_Seconds = Annotated[float, Field(strict=True, ge=0, le=366 * 24 * 3600, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class TrainingPolicy:
    """A project's policy.

    Attributes:
        auto: whether annotations lead to trainings by themselves; "Start training" always does.
        min_tracks: so many annotated tracks must be new or changed since the last training.
        quiet_s: seconds without any annotation that must have passed.
        every_s: seconds between the starts of two trainings, at least.
        pseudo_labels: whether sure predictions of tasks that nobody has annotated are trained on, too.
    """

    auto: StrictBool = True
    min_tracks: Annotated[int, Field(strict=True, ge=0, le=10**7)] = 10  # of fewer, hardly a training passes the gate
    quiet_s: _Seconds = 60.0  # somebody who corrects tracks submits more often than that
    every_s: _Seconds = 900.0  # a training takes minutes of a CPU; people keep most of its time for their predictions
    pseudo_labels: StrictBool = False  # a model that learns from itself also learns its own mistakes

    def changed(self, values: Mapping[str, Any]) -> TrainingPolicy:
        """With other values.

        Raises:
            ConfigError: there is no such value, or it is none that makes sense.
        """
        return TrainingPolicy(**(asdict(self) | check_policy(values)))


def check_policy(values: Any) -> dict[str, Any]:
    """Values of a policy that somebody sent.

    Raises:
        ConfigError: naming what is wrong.
    """
    try:
        policy = TypeAdapter(TrainingPolicy).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:40]
        raise ConfigError(
            f"The training policy cannot be used: {where}: {first['msg']}.",
            f"It is a JSON object; its names are {', '.join(field.name for field in fields(TrainingPolicy))}.",
        ) from error
    return {name: getattr(policy, name) for name in values}


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a decision depends on.

    Attributes:
        new_tracks: annotated tracks of tasks that are new or changed since the last training; of a task from which
            people have only removed false alarms, these.
        changed_at: when the last annotation came; ``None``: never.
        started_at: when the last training began; ``None``: never.
        failures: how many trainings in a row have failed; each doubles the pause before the next.
    """

    new_tracks: int
    changed_at: datetime | None
    started_at: datetime | None
    failures: int = 0


def is_due(policy: TrainingPolicy, state: TrainingState, now: datetime | None = None) -> bool:
    """Whether a training is to start by itself now."""
    now = now or datetime.now(timezone.utc)
    return (
        policy.auto
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
    # A moment far in the future was written by a clock that has been set back since: nobody waits for it to come again.
    return elapsed >= seconds or elapsed < -max(seconds, SKEW_S)


class PolicyStore:
    """The policies of all projects."""

    def __init__(self, storage: Storage, default: TrainingPolicy | None = None) -> None:
        self._default = default or TrainingPolicy()
        self._storage = storage

    def get(self, project_id: int) -> TrainingPolicy:
        """The project's policy: the default, but for what it has of its own."""
        try:
            return self._default.changed(self._row(project_id)[0])
        except ConfigError:  # written by another version of this program
            return self._default

    def set(self, project_id: int, values: Mapping[str, Any]) -> TrainingPolicy:
        """Give a project values of its own; those not named keep the default.

        Raises:
            ConfigError: see :func:`check_policy`.
        """
        self._save(project_id, policy=check_policy(values))
        return self.get(project_id)

    def setup(self, project_id: int, extra_params: Any) -> None:
        """Take over ``{"training": {...}}`` of the extra parameters that Label Studio sends with every call.

        Only what differs from the last time counts, so that a change made elsewhere stays.

        Raises:
            ConfigError: see :func:`check_policy`.
        """
        found = read_extra_params(extra_params).get("training")
        values = check_policy(found if isinstance(found, Mapping) else {})
        if values != self._row(project_id)[1]:
            self._save(project_id, policy=values, setup_policy=values)

    def _row(self, project_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
        query = sa.select(training_policies).where(training_policies.c.project_id == project_id)
        with self._storage.guard(), self._storage.engine.connect() as connection:
            row = connection.execute(query).first()
        return (dict(row.policy or {}), dict(row.setup_policy or {})) if row else ({}, {})

    def _save(self, project_id: int, **values: Any) -> None:
        of = training_policies.c.project_id == project_id
        for _ in range(2):
            try:
                with self._storage.guard(), self._storage.engine.begin() as connection:
                    if not connection.execute(sa.update(training_policies).where(of).values(**values)).rowcount:
                        row = {"policy": {}, "setup_policy": {}, **values}
                        connection.execute(sa.insert(training_policies).values(project_id=project_id, **row))
                return
            except StorageError as error:
                if not isinstance(error.__cause__, IntegrityError):  # another process was faster: its row is there now
                    raise
