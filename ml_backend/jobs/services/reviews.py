"""What people decide about suspicious moments: repairs of predictions and annotations, dismissals, and undoing them.

A prediction is replaced by the repaired one. A person's annotation is never written to: the repaired one is another
annotation of the task, which later repairs change as long as nobody else has.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from ml_backend.core.errors import Conflict, RequestError
from ml_backend.jobs.task_plan import cached_label_config
from ml_backend.label_studio.client import LabelStudioClient, NotFound
from ml_backend.review.repair_json import DISMISS, SKIP, RepairJson, describe_json, digest

if TYPE_CHECKING:
    from ml_backend.datasets.selection import Submission
    from ml_backend.datasets.task_files import RawTask
    from ml_backend.db.storage import Storage
    from ml_backend.jobs.container import Container
    from ml_backend.label_studio.regions import Region
    from ml_backend.review.moment_store import MomentStore, Row

log = logging.getLogger(__name__)

_HINT = "Reload the queue: the task is looked at again."


@dataclass(frozen=True, slots=True)
class Answer:
    """A person's answer to a moment.

    Attributes:
        action: ``accept``, ``split``, ``join``, ``swap``, ``relabel``, ``end``, ``delete``, ``dismiss`` or ``skip``.
        by: who.
        frame: of the action, from 1; by default where the moment is shown.
        region: one of the moment's regions; by default the first.
        label: for ``relabel``.
    """

    action: str
    by: str
    frame: int | None = None
    region: str | None = None
    label: str | None = None


class Reviews:
    """Carries out what people decide about moments."""

    def __init__(self, container: Container) -> None:
        self._container = container

    @property
    def store(self) -> MomentStore:
        return _store(self._container.storage)

    def decide(self, project_id: int, moment_id: str, answer: Answer) -> Row:
        """Carry out an answer; return the decision as stored.

        Raises:
            NotFound: the moment or its task does not exist any more.
            Conflict: somebody else has decided, or the task has changed since the moment was found.
            RequestError, ConfigError: the answer does not fit the moment.
            LabelStudioError: Label Studio refuses the change, or does not answer.
        """
        row = self._moment(project_id, moment_id)
        with self._lock(row["task_id"]):
            self._check_undecided(moment_id)
            facts = {"project_id": project_id, "task_id": row["task_id"], "moment_id": moment_id}
            facts |= {"action": answer.action, "by": answer.by}
            if answer.action in (DISMISS, SKIP):
                return self._stored(project_id, {**facts, "description": ""})
            from ml_backend.review.region_repairs import repair_result

            repair = self._repair(row, answer)
            task = self._task(project_id, row["task_id"])
            submission = self._submission(task, row)
            what = describe_json(repair)
            note = f"{what} {answer.by}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
            change = repair_result([dict(region) for region in submission.result], repair, note)
            written = self._write(task, submission, change.result)
            changed = {"before": change.before, "after": change.after}
            decision = self._stored(project_id, {**facts, "description": what, **changed, **written})
        self._container.queue.request_review(project_id, [row["task_id"]])
        return decision

    def undo(self, project_id: int, repair_id: int, by: str) -> Row:
        """Undo a decision; return it as stored.

        Raises:
            NotFound: there is no such decision.
            Conflict: it was undone before, or what it changed has been changed again.
            LabelStudioError: Label Studio refuses the change, or does not answer.
        """
        decision = self.store.decision(project_id, repair_id)
        if decision is None:
            raise NotFound("There is no such repair.", "Reload the page.")
        with self._lock(decision["task_id"]):
            decision = self.store.decision(project_id, repair_id) or decision
            if decision["undone_at"]:
                raise Conflict(f"{decision['undone_by']} has undone this already.", "Reload the page.")
            if decision["action"] not in (DISMISS, SKIP):
                self._revert(decision)
            self.store.undo(repair_id, by)
        self._container.queue.request_review(project_id, [decision["task_id"]])
        return self.store.decision(project_id, repair_id) or decision

    def _stored(self, project_id: int, values: dict[str, Any]) -> Row:
        number = self.store.add(**values)
        return self.store.decision(project_id, number) or values

    @contextmanager
    def _lock(self, task_id: int) -> Iterator[None]:
        """Keep deliveries and other reviewers out; a person who submits meanwhile is not held up, nor overwritten."""
        with self._container.queue.task_lock("deliver", task_id):
            yield

    def _moment(self, project_id: int, moment_id: str) -> Row:
        row = self.store.get(project_id, moment_id)
        if row is None:
            self._check_undecided(moment_id)
            raise NotFound("The moment is not in the queue any more, since its task has changed.", _HINT)
        return row

    def _check_undecided(self, moment_id: str) -> None:
        decided = self.store.decided(moment_id)
        if decided:
            what = decided["description"] or "Not a fault."
            raise Conflict(
                f"{decided['by']} has decided this at {decided['at']:%H:%M} UTC: {what}",
                "Go on with the next moment, or undo that decision.",
            )

    def _repair(self, row: Row, answer: Answer) -> RepairJson:
        """Return the repair that an answer asks for."""
        if answer.action == "accept":
            return dict(row["repair"])
        ids = list(row["regions"])
        if not ids:
            raise RequestError("The moment is about an object without a track.", "Accept or dismiss it.")
        region = answer.region or ids[0]
        if region not in ids:
            raise RequestError(f"The moment is not about the region {region[:80]}.", f"Choose one of {', '.join(ids)}.")
        others = [name for name in ids if name != region]
        frame = answer.frame or row["shown"]
        match answer.action:
            case "split":
                return {"do": "split", "region": region, "frame": frame}
            case "end":
                return {"do": "end", "region": region, "first": 1, "last": frame}
            case "delete":
                return {"do": "delete", "region": region}
            case "relabel":
                return {"do": "relabel", "region": region, "label": self._label(row, answer.label)}
        if not others:
            raise RequestError("The moment is about one track only.", "Choose another action.")
        pair = {"do": answer.action, "region": region, "other": others[0]}
        return pair if answer.action == "join" else pair | {"frame": frame}

    def _label(self, row: Row, label: str | None) -> str:
        controls = cached_label_config(
            self._container.client.get_project(row["project_id"]).label_config
        ).video_controls
        names = [item.value for control in controls if control.to_name == row["video"] for item in control.labels]
        if label not in names:
            raise RequestError(f"There is no label {str(label)[:80]!r}.", f"Choose one of {', '.join(names)}.")
        return str(label)

    def _submission(self, task: RawTask, row: Row) -> Submission:
        """Return the annotation or prediction that a moment is about.

        Raises:
            Conflict: there is another one now, or its tracks have changed.
        """
        from ml_backend.datasets.selection import submissions
        from ml_backend.review.region_repairs import region_digest

        submission = next(iter(submissions(task, "missing")), None)
        if submission is None or row["annotation_id"] not in self._origins(submission):
            self._changed(row, "was annotated, or annotated anew,")
        if submission.is_prediction and any(draft.get("result") for draft in task["drafts"]):
            self._changed(row, "is being annotated by somebody")
        now = {
            str(region.get("id")): region_digest(dict(region))
            for region in submission.result
            if region.get("type") == "videorectangle"
        }
        for region_id, seen in row["regions"].items():
            if region_id not in now:
                self._changed(row, f"has lost the track {region_id}")
            if now[region_id] != seen:
                self._changed(row, f"has another track {region_id}")
        return submission

    def _origins(self, submission: Submission) -> set[int]:
        """Return the annotation (0: a prediction), and that of which it is a repaired version."""
        number = submission.annotation_id or 0
        return {number} | ({item["base_id"] for item in self.store.replayed_in(number)} if number else set())

    def _changed(self, row: Row, what: str) -> NoReturn:
        self._container.queue.request_review(row["project_id"], [row["task_id"]])
        raise Conflict(f"Task {row['task_id']} {what} since this moment was found; nothing was changed.", _HINT)

    def _task(self, project_id: int, task_id: int) -> RawTask:
        try:
            return self._client.get_full_task(task_id, project_id)
        except NotFound as error:
            self._container.queue.request_review(project_id, [task_id])
            raise NotFound(f"Task {task_id} was deleted.", "Go on with the next moment.") from error

    @property
    def _client(self) -> LabelStudioClient:
        return self._container.client

    def _write(self, task: RawTask, submission: Submission, result: Sequence[Region]) -> dict[str, Any]:
        """Write a repaired result; return what the decision remembers of it."""
        base, written = submission.annotation_id, digest(result)
        if base is None:
            self._client.update_prediction(
                task["id"],
                submission.prediction_id or 0,
                {"result": result, "score": submission.score, "model_version": submission.model_version},
            )
            return {"written": written}
        earlier = self.store.replayed_in(base)
        if earlier and earlier[-1]["written"] == digest(submission.result):  # ours, which nobody has changed
            self._client.update_annotation(base, result)
            self.store.note_written(base, written)
            return {"written": written, "annotation_id": base, "base_id": earlier[-1]["base_id"]}
        own = next(item for item in task["annotations"] if item["id"] == base)
        truth = bool(own.get("ground_truth"))
        created = self._client.create_annotation(
            task["id"], result, own.get("parent_prediction"), annotation=base, ground_truth=truth
        )
        return {"written": written, "annotation_id": created, "base_id": base}

    def _revert(self, decision: Row) -> None:
        """Put back the regions that a repair replaced.

        Raises:
            Conflict: they were changed since.
            NotFound: the task was deleted.
        """
        from ml_backend.datasets.selection import submissions
        from ml_backend.review.region_repairs import region_digest, replay

        task, annotation = self._task(decision["project_id"], decision["task_id"]), decision["annotation_id"]
        mine = {region_digest(region) for region in decision["after"]}
        same = self.store.replayed_in(annotation) if annotation else self.store.replayed(task["id"])
        for later in same:
            if later["id"] > decision["id"] and mine & {region_digest(region) for region in later["before"]}:
                raise Conflict("The same track was repaired again since.", "Undo the later repair first.")
        if not annotation:
            submission = next(iter(submissions(task, "missing")), None)
            if submission is None or not submission.is_prediction:
                raise Conflict(f"Task {task['id']} was annotated since.", "Change the annotation in Label Studio.")
            change = replay([dict(region) for region in submission.result], decision["after"], decision["before"])
            if change is not None:  # else a newer prediction has not found the track
                self._write(task, submission, change.result)
            return
        found = next((item for item in task["annotations"] if item["id"] == annotation), None)
        if found is None:
            return  # somebody has deleted it
        if digest(found["result"]) != decision["written"]:
            raise Conflict(
                f"Somebody has changed the repaired annotation of task {task['id']} since.",
                "Change it in Label Studio.",
            )
        if [item["id"] for item in same] == [decision["id"]]:
            self._client.delete_annotation(annotation)  # the one that it began with counts again
            return
        change = replay(found["result"], decision["after"], decision["before"])
        if change is None:
            raise Conflict("The repaired track was changed since.", "Undo the later repair first.")
        self._client.update_annotation(annotation, change.result)
        self.store.note_written(annotation, digest(change.result))


def _store(storage: Storage) -> MomentStore:
    from ml_backend.review.moment_store import MomentStore  # a slow import, left to the first requests

    return MomentStore(storage)


def repaired_tasks(storage: Storage, task_ids: Sequence[int]) -> set[int]:
    """Return those of some tasks whose prediction was repaired."""
    return _store(storage).repaired_tasks(task_ids)


def with_repairs(storage: Storage, task_id: int, prediction: dict[str, Any]) -> dict[str, Any]:
    """Return a new prediction with the repairs of a task's earlier one, where it finds the same tracks."""
    decisions = _store(storage).replayed(task_id)
    if not decisions:
        return prediction
    from ml_backend.review.region_repairs import reapply

    return {**prediction, "result": reapply(prediction["result"], decisions)}


def without_repairs(storage: Storage, task_id: int, result: Sequence[Region]) -> list[Region]:
    """Return a task's prediction as the model made it."""
    decisions = _store(storage).replayed(task_id)
    if not decisions:
        return list(result)
    from ml_backend.review.region_repairs import take_back

    return take_back(result, decisions)
