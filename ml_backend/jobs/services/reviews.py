"""What people decide about suspicious moments and tracks: repairs of predictions and annotations, and undoing them.

A prediction is replaced by the repaired one. A person's annotation is never written to: the repaired one is another
annotation of the task, which later repairs change as long as nobody else has.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from ml_backend.core.errors import ConfigError, Conflict, LabelStudioError, LabelStudioUnavailable, RequestError
from ml_backend.jobs.queue import RESULT_TTL_S
from ml_backend.jobs.task_plan import cached_label_config
from ml_backend.label_studio.client import LabelStudioClient, NotFound
from ml_backend.label_studio.label_config import DEFAULT_FRAME_RATE
from ml_backend.review.repair_json import (
    ACCEPT,
    CONSENSUS,
    DISMISS,
    FOUND,
    IDENTIFY,
    REJECT,
    SKIP,
    UNCHANGING,
    RepairJson,
    describe_json,
    digest,
    frames_key,
)

if TYPE_CHECKING:
    from ml_backend.datasets.selection import Submission
    from ml_backend.datasets.task_files import RawTask
    from ml_backend.db.storage import Storage
    from ml_backend.jobs.container import Container
    from ml_backend.label_studio.regions import Region
    from ml_backend.review.consensus import ConsensusTrack
    from ml_backend.review.moment_store import MomentStore, Row
    from ml_backend.review.track_rows import TrackRow

log = logging.getLogger(__name__)

#: Moments that are accepted, and tasks that are changed, at once: each task takes Label Studio some tenths of a second.
MAX_SIMILAR = 50
#: Tasks that one tab of the Data Manager shows: each is a filter, of which SQLite takes fewer than 1000.
MAX_OPENED = 200
#: Title of the Data Manager's tab with the tasks that people have chosen.
CHOSEN_TAB = "Chosen in the control room"
_HINT = "Reload the page: the task is looked at again."


@dataclass(frozen=True, slots=True)
class Answer:
    """A person's answer to a moment.

    Attributes:
        action: ``accept``, ``split``, ``join``, ``swap``, ``relabel``, ``identify``, ``end``, ``delete``, ``dismiss``
            or ``skip``.
        by: who.
        frame: of the action, from 1; by default where the moment is shown.
        region: one of the moment's regions; by default the first.
        label: for ``relabel``.
        global_id: for ``identify``; ``None``: one that no object has.
    """

    action: str
    by: str
    frame: int | None = None
    region: str | None = None
    label: str | None = None
    global_id: int | None = None


@dataclass(frozen=True, slots=True)
class ManualRepair:
    """What a person does to tracks of a task.

    Attributes:
        annotation_id: that the tracks are of; 0: a prediction.
        tracks: digest by region id, as they were shown; ``join`` and ``swap`` take two.
        answer: without a region; ``split``, ``swap`` and ``end`` need a frame.
    """

    task_id: int
    annotation_id: int
    tracks: Mapping[str, str]
    answer: Answer


@dataclass(frozen=True, slots=True)
class TaskIds:
    """Global ids for tracks of a task.

    Attributes:
        annotation_id: that the tracks are of; 0: a prediction.
        tracks: digest by region id, as they were read.
        ids: global id by region id.
        known: the global id that they had as they were read; ``None``: none, a search has found them.
    """

    task_id: int
    annotation_id: int
    tracks: Mapping[str, str]
    ids: Mapping[str, int]
    known: int | None = None


@dataclass(frozen=True, slots=True)
class ChosenTrack:
    """A track that was found by its looks, and chosen with others.

    Attributes:
        item: how the request names it.
        label: what it was taken for.
        region: its id; empty if it is known by its boxes only.
        made: the region that the tracker made of it; ``None`` if it is known by its id.
        dropped: whether it was too weak for a prediction, so that it is nowhere in Label Studio.
        key: see :func:`~ml_backend.labeling.few_shot.similarity_search.track_key`; empty for annotated objects.
    """

    item: str
    task_id: int
    label: str
    region: str = ""
    made: Region | None = None
    dropped: bool = False
    key: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one of the chosen: ``reason`` is empty if it was done."""

    item: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class VideoTracks:
    """The tracks of one video of a task, as they are now.

    Attributes:
        name: of the video's control.
        file: name of the video's file.
        annotation_id: that the tracks are of; 0: a prediction.
        author: the annotator, or the prediction's model version.
        frames_count, frame_rate: of Label Studio's timeline.
        size: of the picture in pixels; ``None``: the task does not state it.
        key: of its frames, see :func:`~ml_backend.review.repair_json.frames_key`.
        rows: by first frame.
    """

    name: str
    file: str
    annotation_id: int
    author: str
    frames_count: int
    frame_rate: float
    size: tuple[int, int] | None
    key: str
    rows: Sequence[TrackRow]


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the people agree on who annotated a task.

    Attributes:
        people: their annotations' ids by person, the last one last.
        ground_truth: the annotation that is marked as such; ``None``: none is.
        key: changes with what it was made from.
        videos: by name of the video's control.
    """

    people: Mapping[str, int]
    ground_truth: int | None
    key: str
    videos: Mapping[str, Sequence[ConsensusTrack]]


class Reviews:
    """Carries out what people decide about moments and tracks."""

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
        task_id, facts = row["task_id"], _moment_facts(row, answer)
        with self._lock(task_id):
            self._check_undecided(moment_id)
            if answer.action in (DISMISS, SKIP):
                fixed = {"project_id": project_id, "task_id": task_id, "description": ""}
                return self._found(project_id, self.store.add([{**fixed, **facts}])[0])
            repair = self._repair(row, answer)
            task = self._task(project_id, task_id)
            submission = self._submission(task, row)
            (number,) = self._carry_out(project_id, task, submission, [(repair, facts)])
            decision = self._found(project_id, number)
        self._container.queue.request_review(project_id, [task_id])
        return decision

    def repair(self, project_id: int, wanted: ManualRepair) -> Row:
        """Repair tracks by hand, all of them or none; return the decision as stored.

        Raises:
            NotFound: the task does not exist any more.
            Conflict: the tracks have changed since they were shown, or the repair changes nothing in one of them.
            RequestError, ConfigError: the repair does not fit the tracks.
            LabelStudioError: Label Studio refuses the change, or does not answer.
        """
        answer, tracks = wanted.answer, dict(wanted.tracks)
        pair = answer.action in ("join", "swap")
        if pair and len(tracks) != 2:
            raise ConfigError(f"{len(tracks)} tracks are chosen.", "Choose two.")
        if answer.action in ("split", "swap", "end") and answer.frame is None:
            raise ConfigError("No frame is given.", "Give the frame at which the tracks are repaired.")
        row: Row = {"project_id": project_id, "task_id": wanted.task_id, "annotation_id": wanted.annotation_id}
        row |= {"regions": tracks, "shown": answer.frame}
        with self._lock(wanted.task_id):
            task = self._task(project_id, wanted.task_id)
            submission = self._submission(task, row)
            regions = _regions(submission)
            row["video"] = regions[next(iter(tracks))].get("to_name")
            if answer.action == "relabel":
                value = self._label(row, answer.label)
                tracks = {name: tracks[name] for name in tracks if regions[name]["value"].get("labels") != [value]}
                if not tracks:
                    raise Conflict(f"The tracks are labelled {value} already.", "Choose another label.")
            units = [tracks] if pair else [{name: tracks[name]} for name in tracks]
            if answer.action == IDENTIFY:
                known = (submission.global_id(region) or 0 for region in regions.values())
                number = answer.global_id or self.new_global_ids(project_id, above=max(known))
                repairs = _identifying(submission, dict.fromkeys(tracks, number))
                if not repairs:
                    raise Conflict(f"The tracks have the global id {number} already.", "Choose another one.")
            else:
                repairs = [self._repair({**row, "regions": unit}, answer) for unit in units]
            facts = {"moment_id": "", "action": answer.action, "by": answer.by}
            numbers = self._carry_out(project_id, task, submission, [(repair, facts) for repair in repairs])
            decision = self._found(project_id, numbers[0])
        self._container.queue.request_review(project_id, [wanted.task_id])
        return decision

    def identify(
        self, project_id: int, found: Sequence[TaskIds], by: str
    ) -> tuple[dict[int, list[int]], list[tuple[int, str]]]:
        """Give tracks of several tasks global ids, except those that have got another one meanwhile.

        What :data:`MAX_SIMILAR` tasks get is undone at once.

        Returns:
            The decisions' ids, one for each track, by task; tasks that were left out, each with a reason.

        Raises:
            LabelStudioUnavailable: Label Studio does not answer; the changes before are kept.
        """
        done: dict[int, list[int]] = {}
        left_out: list[tuple[int, str]] = []
        first = 0
        for item in found:
            if len(done) % MAX_SIMILAR == 0:
                first = 0
            row: Row = {"project_id": project_id, "task_id": item.task_id, "annotation_id": item.annotation_id}
            with self._lock(item.task_id):
                try:
                    task = self._task(project_id, item.task_id)
                    submission = self._submission(task, {**row, "regions": item.tracks})
                    now = {name: submission.global_id(region) for name, region in _regions(submission).items()}
                    ids = {name: number for name, number in item.ids.items() if now[name] == item.known}
                    if item.known and len(ids) < len(item.ids):
                        self._changed(row, "has a track with another global id")
                    facts = {"moment_id": "", "action": IDENTIFY, "by": by, "signature": "" if item.known else FOUND}
                    repairs = [(repair, facts) for repair in _identifying(submission, ids)]
                    if repairs:
                        numbers = self._carry_out(project_id, task, submission, repairs, first)
                        first, done[item.task_id] = first or numbers[0], numbers
                except LabelStudioUnavailable:
                    raise
                except (LabelStudioError, Conflict, ConfigError) as error:
                    left_out.append((item.task_id, str(error)))
        return done, left_out

    def give_id(
        self, project_id: int, chosen: Sequence[TaskIds], number: int | None, by: str
    ) -> tuple[Row, list[tuple[int, str]]]:
        """Give tracks of an object another global id, those of a task all or none.

        Args:
            chosen: without ids; tasks beyond :data:`MAX_SIMILAR` are left out.
            number: ``None``: one that no object has.

        Returns:
            The first decision, with which the others are undone; tasks that were left out, each with a reason.

        Raises:
            Conflict: no track was given the id.
            LabelStudioUnavailable: Label Studio does not answer; the changes before are kept.
        """
        number = number or self.new_global_ids(project_id)
        wanted = [replace(item, ids=dict.fromkeys(item.tracks, number)) for item in chosen]
        done, left_out = self.identify(project_id, wanted[:MAX_SIMILAR], by)
        many = f"More than {MAX_SIMILAR} tasks were chosen."
        left_out += [(item.task_id, many) for item in wanted[MAX_SIMILAR:]]
        if not done:
            reason = left_out[0][1] if left_out else f"The tracks have the global id {number} already."
            raise Conflict(reason, "Read the objects again, or choose other tracks or another id.")
        return self._found(project_id, next(iter(done.values()))[0]), left_out

    def new_global_ids(self, project_id: int, count: int = 1, above: int = 0) -> int:
        """Reserve consecutive new global ids; return the first.

        Args:
            above: the largest one that tracks have, as far as the caller knows.

        Raises:
            Conflict: there are none left.
        """
        from ml_backend.label_studio.regions import MAX_GLOBAL_ID

        queue, key = self._container.queue, f"video:global-ids:{project_id}"
        with queue.project_lock("reserve", project_id), queue.guard():
            reserved = int(queue.connection.get(key) or 0)
            first = 1 + max(self.store.largest_global_id(project_id), above, reserved)
            if first + count - 1 > MAX_GLOBAL_ID:
                raise Conflict(
                    f"There is no global id after {first - 1}.",
                    "Give the tracks that have it a smaller one; in a week numbers after those are free.",
                )
            queue.connection.set(key, first + count - 1, ex=RESULT_TTL_S)
        return first

    def tracks(self, project_id: int, task_id: int) -> list[VideoTracks]:
        """Return the tracks of a task's videos: those of the annotation that counts, or else of the prediction.

        Raises:
            NotFound: the task does not exist.
            LabelStudioError: Label Studio does not answer.
        """
        from ml_backend.datasets.annotation_reader import AnnotationReader
        from ml_backend.review.track_rows import track_rows

        config = cached_label_config(self._client.get_project(project_id).label_config)
        task = self._client.get_full_task(task_id, project_id)
        reader = AnnotationReader.of_task(task, self._container.media.opener(project_id), config, "missing")
        found = []
        for video in reader.task_videos():
            rate = video.frame_rate or DEFAULT_FRAME_RATE
            count = video.stated_frames
            labels = [label.value for label in video.control.labels]
            rows = track_rows(video.regions, labels, count, video.submission.global_id)
            last = max([count, *(row.spans[-1][1] for row in rows if row.spans)])
            submission = video.submission
            found.append(
                VideoTracks(
                    video.control.to_name,
                    video.name,
                    submission.annotation_id or 0,
                    submission.author,
                    last,
                    rate,
                    video.facts.size,
                    frames_key(video.uri, video.frame_rate),
                    rows,
                )
            )
        return found

    def consensus(self, project_id: int, task_id: int, *, model: bool) -> Proposal:
        """Return what the people agree on who annotated a task.

        Args:
            model: whether the newest prediction decides where as many people are for a track as against it.

        Raises:
            NotFound: the task does not exist.
            LabelStudioError: Label Studio does not answer.
        """
        from ml_backend.datasets.annotated_video import belongs_to
        from ml_backend.datasets.selection import by_person, submissions
        from ml_backend.review.consensus import find_consensus

        config = cached_label_config(self._client.get_project(project_id).label_config)
        task = self._client.get_full_task(task_id, project_id)
        people = by_person(task, self.store.made_here(project_id))
        predicted = next(iter(submissions(task, "only")), None) if model else None
        results = {name: item.result for name, item in people.items()}
        videos = {}
        for control in config.video_controls:
            regions = {name: [r for r in result if belongs_to(r, control)] for name, result in results.items()}
            asked = [region for region in predicted.result if belongs_to(region, control)] if predicted else None
            videos[control.to_name] = find_consensus(regions, asked)
        truths = [item["id"] for item in task["annotations"] if item.get("ground_truth")]
        key = digest(results, predicted.result if predicted else None)
        ids = {name: item.annotation_id or 0 for name, item in people.items()}
        return Proposal(ids, next(iter(truths), None), key, videos)

    def write_consensus(self, project_id: int, task_id: int, *, model: bool, key: str, by: str) -> Row:
        """Submit what people agree on as another annotation, the ground truth; return the decision as stored.

        Nobody's annotation is changed. Undoing the decision deletes the new one.

        Args:
            key: of the :class:`Proposal` that somebody has seen.

        Raises:
            NotFound: the task does not exist any more.
            Conflict: it was annotated since, has a ground truth, or there is nothing that people agree on.
            LabelStudioError: Label Studio refuses the change, or does not answer.
        """
        from ml_backend.review.consensus import consensus_regions

        with self._lock(task_id):
            found = self.consensus(project_id, task_id, model=model)
            if found.ground_truth:  # Label Studio would take the mark from it
                raise Conflict(
                    f"Annotation {found.ground_truth} of task {task_id} is marked as ground truth.",
                    "Remove the mark in Label Studio first.",
                )
            if found.key != key:
                raise Conflict(f"Task {task_id} was annotated since it was read; nothing was written.", "Look again.")
            min_iou = self._container.settings.keyframe_iou
            regions = [region for tracks in found.videos.values() for region in consensus_regions(tracks, min_iou)]
            if len(found.people) < 2 or not regions:
                raise Conflict(f"There is nothing that two people agree on in task {task_id}.", "Annotate it.")
            what = f"Consensus of {', '.join(found.people)}{' and the model' if model else ''}."
            note = f"{what} Proposed by {by}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
            result = [{**region, "meta": {"text": note}} for region in regions]
            facts: Row = {"project_id": project_id, "task_id": task_id, "moment_id": "", "description": what, "by": by}
            facts |= {"action": CONSENSUS, "after": result, "written": digest(result)}
            facts["base_id"] = [*found.people.values()][-1]
            facts["annotation_id"] = self._client.create_annotation(task_id, result, None, ground_truth=True)
            (number,) = self.store.add([facts])
            decision = self._found(project_id, number)
        self._container.queue.request_review(project_id, [task_id])
        return decision

    def undo(self, project_id: int, repair_id: int, by: str) -> Row:
        """Undo a decision and those made with it; return it as stored.

        Raises:
            NotFound: there is no such decision.
            Conflict: it was undone before, or what it changed has been changed again. Other tasks' are undone.
            LabelStudioError: Label Studio refuses the change, or does not answer.
        """
        decision = self._found(project_id, repair_id)
        batch = self.store.batch(decision)
        if not batch:
            raise Conflict(f"{decision['undone_by']} has undone this already.", "Reload the page.")
        conflict: Conflict | None = None
        tasks = sorted({item["task_id"] for item in batch})
        for task_id in tasks:
            with self._lock(task_id):
                open_ones = [item for item in self.store.batch(decision) if item["task_id"] == task_id]
                changed = [item for item in open_ones if item["action"] not in UNCHANGING]
                try:
                    if changed:
                        self._revert(changed)
                except Conflict as error:
                    conflict = conflict or error
                    continue
                self._forget_ids(changed)
                self.store.undo([item["id"] for item in open_ones], by)
        self._container.queue.request_review(project_id, tasks)
        if conflict:
            raise conflict
        return self._found(project_id, repair_id)

    def similar(self, project_id: int, repair_id: int, limit: int) -> tuple[list[Row], int]:
        """Return undecided moments like one that was accepted, and the number of all; see :meth:`MomentStore.similar`.

        Raises:
            NotFound: there is no such decision.
            Conflict: it is no accepted moment, or was undone.
        """
        decision = self._found(project_id, repair_id)
        if decision["action"] != ACCEPT or decision["undone_at"]:
            raise Conflict("That is no accepted moment, or it was undone.", "Accept a moment first.")
        return self.store.similar(decision, limit)

    def accept_similar(self, project_id: int, repair_id: int, by: str) -> tuple[Row, list[tuple[str, str]]]:
        """Accept the moments like one that was accepted, :data:`MAX_SIMILAR` at most.

        Returns:
            The first decision, with which the others are undone; ids of moments that were left out, each with a reason.

        Raises:
            NotFound: there is no such decision.
            Conflict: there are no similar moments, or none can be accepted.
            LabelStudioUnavailable: Label Studio does not answer; the changes before are kept.
        """
        rows, _ = self.similar(project_id, repair_id, MAX_SIMILAR)
        first, left_out = 0, []
        for task_id in dict.fromkeys(row["task_id"] for row in rows):
            wanted = [row for row in rows if row["task_id"] == task_id]
            with self._lock(task_id):
                try:
                    task = self._task(project_id, task_id)
                except NotFound as error:
                    left_out += [(row["id"], str(error)) for row in wanted]
                    continue
                repairs, touched = [], set[str]()
                submission: Submission | None = None
                for row in wanted:
                    try:
                        self._check_undecided(row["id"])
                        submission = self._submission(task, row)
                        if touched & set(row["regions"]):
                            self._changed(row, "had the track repaired")
                    except Conflict as error:
                        left_out.append((row["id"], str(error)))
                        continue
                    touched |= set(row["regions"])
                    repairs.append((dict(row["repair"]), _moment_facts(row, Answer(ACCEPT, by))))
                if submission is None or not repairs:
                    continue
                try:
                    numbers = self._carry_out(project_id, task, submission, repairs, first)
                except (Conflict, ConfigError) as error:  # such as a rotated region
                    left_out += [(str(facts["moment_id"]), str(error)) for _, facts in repairs]
                    continue
                first = first or numbers[0]
            self._container.queue.request_review(project_id, [task_id])
        if not first:
            raise Conflict(left_out[0][1] if left_out else "No moment is like that one any more.", _HINT)
        return self._found(project_id, first), left_out

    def found_tracks(self, project_id: int, label: str, chosen: Sequence[tuple[int, int, int]]) -> list[ChosenTrack]:
        """Return tracks that a search for a label has found, as they are stored; those that are gone have no boxes.

        Args:
            chosen: task, index of the video within it, and track id.
        """
        from ml_backend.label_studio.regions import make_region
        from ml_backend.labeling.few_shot.similarity_search import track_key

        config = cached_label_config(self._client.get_project(project_id).label_config)
        patterns = self._container.projects.patterns
        found: dict[tuple[int, int, int], ChosenTrack] = {}
        for task_id in list(dict.fromkeys(task for task, _, _ in chosen))[:MAX_SIMILAR]:  # more are not relabelled
            for stored in patterns.tracks_of_project(project_id, task_id=task_id):
                dropped = {record.track_id for record in stored.tracks.dropped}
                for record in (*stored.tracks.tracks, *stored.tracks.dropped):
                    place = task_id, stored.video_index, record.track_id
                    if place not in chosen or stored.video_index >= len(config.video_controls):
                        continue
                    control = config.video_controls[stored.video_index]
                    facts = (record.track_id, "", record.score, record.top_class)
                    found[place] = ChosenTrack(
                        "-".join(map(str, place)),
                        task_id,
                        label,
                        made=make_region(record.value, control, *facts),
                        dropped=record.track_id in dropped,
                        key=track_key(label, task_id, stored.video_index, record),
                    )
        return [found.get(place) or ChosenTrack("-".join(map(str, place)), place[0], label) for place in chosen]

    def relabel(
        self, project_id: int, tracks: Sequence[ChosenTrack], label: str, by: str
    ) -> tuple[Row | None, list[Outcome]]:
        """Label tracks of any tasks, or reject them; those of a task all or none.

        Args:
            label: a label of the project; empty: the tracks are not what they were taken for. Those with that label
                lose it, and a search for it leaves all of them out.

        Returns:
            The first decision, with which the others are undone, unless there is none; the outcome of each track.

        Raises:
            ConfigError: there is no such label.
            LabelStudioError: Label Studio refuses a change, or does not answer; those before are kept.
        """
        config = cached_label_config(self._client.get_project(project_id).label_config)
        allowed = {control.to_name: {item.value for item in control.labels} for control in config.video_controls}
        if label:
            names = list(dict.fromkeys(item.value for control in config.video_controls for item in control.labels))
            if label not in names:
                raise ConfigError(f"There is no label {label[:80]!r}.", f"Choose one of {', '.join(names)}.")
        first, outcomes = 0, []
        tasks = list(dict.fromkeys(track.task_id for track in tracks))
        for task_id in tasks:
            wanted = [track for track in tracks if track.task_id == task_id]
            if task_id in tasks[MAX_SIMILAR:]:
                outcomes += [Outcome(track.item, f"More than {MAX_SIMILAR} tasks were chosen.") for track in wanted]
                continue
            with self._lock(task_id):
                try:
                    numbers, told = self._relabel_task(project_id, task_id, wanted, label, by, first, allowed)
                except LabelStudioUnavailable:
                    raise
                except (LabelStudioError, Conflict, ConfigError) as error:
                    outcomes += [Outcome(track.item, str(error)) for track in wanted]
                    continue
            outcomes += told
            first = first or next(iter(numbers), 0)
            if numbers:
                self._container.queue.request_review(project_id, [task_id])
        return (self._found(project_id, first) if first else None), outcomes

    def open_tab(self, project_id: int, task_ids: Collection[int]) -> int:
        """Show some tasks in a tab of Label Studio's Data Manager, instead of those before; return the tab's id."""
        facts = {"filter": "filter:tasks:id", "operator": "equal", "type": "Number"}
        chosen = [{**facts, "value": task_id} for task_id in sorted(task_ids)]
        with self._container.queue.project_lock("settings", project_id):
            return self._client.put_tab(project_id, CHOSEN_TAB, chosen, conjunction="or")

    def _relabel_task(
        self,
        project_id: int,
        task_id: int,
        tracks: Sequence[ChosenTrack],
        label: str,
        by: str,
        batch: int,
        allowed: Mapping[str, Collection[str]],
    ) -> tuple[list[int], list[Outcome]]:
        """Relabel tracks of a task; return the decisions' ids and the outcomes.

        Args:
            allowed: labels by name of the video's control.
        """
        from ml_backend.datasets.selection import region_labels, submissions

        task = self._task(project_id, task_id)
        submission = next(iter(submissions(task, "missing")), None)
        if submission is not None and submission.is_prediction and any(item.get("result") for item in task["drafts"]):
            raise Conflict(f"Task {task_id} is being annotated by somebody.", "Wait until it is submitted.")
        if submission is not None and not submission.is_prediction and any(track.made for track in tracks):
            raise Conflict(f"Task {task_id} was annotated since; nothing was changed.", "Search again.")
        repairs: list[tuple[RepairJson, Mapping[str, Any]]] = []
        rejected: list[Row] = []
        outcomes, seen = [], set[str]()
        for track in tracks:
            facts = {"moment_id": "", "signature": track.key, "action": "relabel", "by": by}
            region = _region_of(track, submission.result) if submission else None
            region_id = str(region.get("id")) if region else ""
            reason = ""
            shown_in = (region or track.made or {}).get("to_name")
            if region_id and region_id in seen:
                pass  # several crops of one object
            elif label and shown_in and label not in allowed.get(shown_in, ()):
                reason = f"The video of this track has no label {label}."
            elif region is None and track.dropped and submission is not None:
                if label and track.made:
                    added = {**track.made, "value": {**track.made["value"], "labels": [label]}}
                    shown = track.made["value"]["sequence"][0]["frame"]
                    repairs.append(({"do": "add", "added": added, "label": label, "first": shown}, facts))
                else:
                    rejected.append({**facts, "action": REJECT})
            elif region is None:
                reason = f"Task {task_id} has no such track any more."
            elif track.made is None and track.label not in (region_labels(region) or [""]):
                reason = f"The track is not labelled {track.label or 'nothing'} any more."
            elif not label and track.label not in region_labels(region):
                rejected.append({**facts, "action": REJECT})
            elif region_labels(region) == [label]:
                reason = f"The track is labelled {label} already."
            else:
                repairs.append(({"do": "relabel", "region": region_id, "label": label}, facts))
            seen.add(region_id)
            outcomes.append(Outcome(track.item, reason))
        numbers: list[int] = []
        if repairs and submission is not None:
            numbers = self._carry_out(project_id, task, submission, repairs, batch)
        if rejected:
            fixed = {"project_id": project_id, "task_id": task_id, "description": ""}
            numbers += self.store.add([{**fixed, **row} for row in rejected], batch or next(iter(numbers), 0))
        return numbers, outcomes

    def _carry_out(
        self,
        project_id: int,
        task: RawTask,
        submission: Submission,
        repairs: Sequence[tuple[RepairJson, Mapping[str, Any]]],
        batch: int = 0,
    ) -> list[int]:
        """Write a task's repaired result, and store what was done; return the decisions' ids.

        Args:
            repairs: each with the facts of its decision.
            batch: see :meth:`MomentStore.add`.
        """
        from ml_backend.review.region_repairs import repair_result

        result: list[Region] = [dict(region) for region in submission.result]
        rows = []
        for repair, facts in repairs:
            what = describe_json(repair)
            note = f"{what} {facts['by']}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
            change = repair_result(result, repair, note)
            result = change.result
            rows.append({**facts, "description": what, "before": change.before, "after": change.after})
        written = self._write(task, submission, result)
        fixed = {"project_id": project_id, "task_id": task["id"], **written}
        return self.store.add([{**row, **fixed} for row in rows], batch)

    def _found(self, project_id: int, repair_id: int) -> Row:
        decision = self.store.decision(project_id, repair_id)
        if decision is None:
            raise NotFound("There is no such repair.", "Reload the page.")
        return decision

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
        if answer.action == ACCEPT:
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
        now = {name: region_digest(region) for name, region in _regions(submission).items()}
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
        raise Conflict(f"Task {row['task_id']} {what} since it was read; nothing was changed.", _HINT)

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

    def _forget_ids(self, undone: Sequence[Row]) -> None:
        """Remove undone global ids from the regions that undoing later ones puts back.

        Args:
            undone: decisions of one task, the last one first.
        """
        from ml_backend.review.region_repairs import take_back

        given = [item for item in reversed(undone) if item["action"] == IDENTIFY]
        if not given:
            return
        annotation, own = given[0]["annotation_id"], {item["id"] for item in given}
        for later in self.store.replayed_in(annotation) if annotation else self.store.replayed(given[0]["task_id"]):
            earlier = [item for item in given if item["id"] < later["id"]]
            if later["action"] == IDENTIFY and later["id"] not in own and earlier:
                before = take_back(later["before"], earlier)
                if before != later["before"]:
                    self.store.note_before(later["id"], before)

    def _revert(self, decisions: Sequence[Row]) -> None:
        """Put back the regions that repairs of a task replaced at once.

        Args:
            decisions: the last one first.

        Raises:
            Conflict: they were changed since.
            NotFound: the task was deleted.
        """
        from ml_backend.datasets.selection import submissions
        from ml_backend.review.region_repairs import region_digest, replay, take_back

        first = decisions[0]
        task, annotation = self._task(first["project_id"], first["task_id"]), first["annotation_id"]
        own = {decision["id"] for decision in decisions}
        mine = {region_digest(region) for decision in decisions for region in decision["after"]}
        same = self.store.replayed_in(annotation) if annotation else self.store.replayed(task["id"])
        identified = any(decision["action"] == IDENTIFY for decision in decisions)
        for later in same:
            changed_again = mine & {region_digest(region) for region in later["before"]}
            if later["action"] == IDENTIFY or (identified and _keeps_boxes(later)):
                continue  # of what the other one changes, it changes nothing
            if later["id"] > min(own) and later["id"] not in own and changed_again:
                raise Conflict("The same track was repaired again since.", "Undo the later repair first.")
        if not annotation:
            submission = next(iter(submissions(task, "missing")), None)
            if submission is None or not submission.is_prediction:
                raise Conflict(f"Task {task['id']} was annotated since.", "Change the annotation in Label Studio.")
            result: list[Region] = [dict(region) for region in submission.result]
            # A newer prediction may not have found the track.
            self._write(task, submission, take_back(result, decisions[::-1]))
            return
        found = next((item for item in task["annotations"] if item["id"] == annotation), None)
        if found is None:
            return  # somebody has deleted it
        if digest(found["result"]) != first["written"]:
            raise Conflict(
                f"Somebody has changed the repaired annotation of task {task['id']} since.",
                "Change it in Label Studio.",
            )
        if {item["id"] for item in same} == own:
            self._client.delete_annotation(annotation)  # the one that it began with counts again
            return
        result = found["result"]
        for decision in decisions:
            written_whole = decision["action"] == CONSENSUS
            change = None if written_whole else replay(result, decision["after"], decision["before"])
            if change is None:
                raise Conflict("The repaired track was changed since.", "Undo the later repair first.")
            result = change.result
        self._client.update_annotation(annotation, result)
        self.store.note_written(annotation, digest(result))


def _region_of(track: ChosenTrack, result: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the region of a task that shows a chosen track."""
    from ml_backend.labeling.few_shot.annotated_objects import short_id
    from ml_backend.review.region_repairs import SameTracks

    regions = [dict(region) for region in result if region.get("type") == "videorectangle"]
    if track.made is None:
        return next((item for item in regions if track.region and short_id(str(item.get("id"))) == track.region), None)
    return SameTracks().find(track.made, regions)


def _keeps_boxes(decision: Row) -> bool:
    """Return whether a decision changed nothing but labels and ``meta``."""
    before, after = ([region["value"].get("sequence") for region in decision[name]] for name in ("before", "after"))
    return bool(before == after)


def _regions(submission: Submission) -> dict[str, Region]:
    """Return the regions by id. Results of per-region controls have the id of their region, too, but not its meta."""
    return {str(item.get("id")): dict(item) for item in submission.result if item.get("type") == "videorectangle"}


def _identifying(submission: Submission, ids: Mapping[str, int]) -> list[RepairJson]:
    """Return repairs that give regions global ids, by region id.

    Raises:
        Conflict: they have them, or a video shows two objects of one id at once.
    """
    from ml_backend.review.region_repairs import shown_at_once

    regions = _regions(submission)
    known = {name: submission.global_id(region) for name, region in regions.items()}
    numbers = known | dict(ids)
    for name, number in ids.items():
        for other, region in regions.items():
            if other != name and numbers[other] == number and shown_at_once(region, regions[name]):
                raise Conflict(
                    f"Two tracks that are visible at once would have the global id {number}.",
                    "Choose another one, or give the other track its own first.",
                )
    wanted = {name: number for name, number in ids.items() if known[name] != number}
    return [{"do": IDENTIFY, "region": name, "global_id": number} for name, number in wanted.items()]


def _moment_facts(row: Row, answer: Answer) -> Row:
    """Return what a decision remembers of a moment and the answer to it."""
    facts = {"moment_id": row["id"], "signature": row["signature"], "embedding": row["embedding"]}
    return {**facts, "action": answer.action, "by": answer.by}


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
