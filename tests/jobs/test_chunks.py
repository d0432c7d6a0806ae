"""A long video over several workers: real processes, real Label Studio, real Redis, a tiny random YOLO."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ml_backend.core.artifacts import Artifacts
from ml_backend.core.errors import Interrupted
from ml_backend.core.settings import Settings
from ml_backend.core.types import FrameFeatures
from ml_backend.db.tables import predictions, track_sets
from ml_backend.inference.chunks import VideoChunk, detect_chunks, help_with_chunks
from ml_backend.jobs.chunk_leases import ChunkLeases
from ml_backend.jobs.container import Container
from ml_backend.jobs.queue import JobQueue
from ml_backend.labeling.model_version import PARTIAL
from ml_backend.video.probe import probe
from tests.builders import make_clip, make_tiny_yolo, repeat_clip, wait_for, worker_process
from tests.inference.test_chunks import observation
from tests.jobs.conftest import Site
from tests.jobs.test_worker import frames_done

KEY = "k" * 40
#: The random network sees something in each cell of its grid.
FEW_BOXES = {"detector": "yolo", "imgsz": 96}
CHUNKS = tuple(VideoChunk(n, 20 * n, 20 * n + 20 if n < 4 else None) for n in range(5))
MakeLeases = Callable[..., ChunkLeases]


class FakeDetection:
    """Yields features of made-up frames, and remembers which chunks it was asked for."""

    def __init__(self, wait: Callable[[VideoChunk], None] = lambda chunk: None) -> None:
        self.asked: list[int] = []
        self._wait = wait

    def __call__(self, chunk: VideoChunk) -> Iterator[FrameFeatures]:
        self.asked.append(chunk.number)
        end = 99 if chunk.end is None else chunk.end
        for index in range(chunk.start + (chunk.number > 0), end + 1):
            self._wait(chunk)
            yield observation(index, index % 4)


@pytest.fixture
def redis_settings(settings: Callable[..., Settings], redis_url: str) -> Settings:
    return settings(redis_url=redis_url)


@pytest.fixture
def leases(redis_settings: Settings) -> MakeLeases:
    def make(**how: Any) -> ChunkLeases:
        chosen = how.pop("settings", redis_settings)
        made = ChunkLeases(JobQueue(chosen), Artifacts(chosen), KEY, **how)
        made.open(len(CHUNKS))
        return made

    return make


@pytest.fixture
def kept(redis_settings: Settings) -> Path:
    return redis_settings.data_dir / "artifacts" / "segments" / KEY


def lose_claims(settings: Settings) -> None:
    """The leases of processes that died have run out."""
    connection = JobQueue(settings).connection
    for number in range(len(CHUNKS)):
        connection.delete(f"video:segments:{KEY}:{number}")


def numbers(observations: Sequence[FrameFeatures]) -> list[int]:
    return [o.index for o in observations]


def test_alone(leases: MakeLeases, kept: Path) -> None:
    detect, alone = FakeDetection(), leases()
    assert numbers(list(detect_chunks(CHUNKS, alone, detect))) == list(range(100))
    assert detect.asked == [0, 1, 2, 3, 4]
    assert len(list(kept.iterdir())) == 5
    alone.close(len(CHUNKS))
    assert list(kept.iterdir()) == []
    assert not alone.is_open


def test_what_is_done_is_not_done_again(leases: MakeLeases, redis_settings: Settings) -> None:
    first = detect_chunks(CHUNKS, leases(), FakeDetection())
    for _ in range(50):  # ends in the middle of the third
        next(first)
    first.close()
    lose_claims(redis_settings)
    detect = FakeDetection()
    assert numbers(list(detect_chunks(CHUNKS, leases(), detect))) == list(range(100))
    assert detect.asked == [2, 3, 4]


def test_what_another_has_removed_is_not_waited_for(leases: MakeLeases) -> None:
    """Two jobs that differ in their labels only are at one video's chunks; the faster one removes them."""
    slow, fast = leases(), leases()
    detect = FakeDetection()
    observed = help_with_chunks(CHUNKS, leases(helping=True), FakeDetection(), lambda: False)
    assert observed == len(CHUNKS)
    waits = iter(range(20))
    seen = detect_chunks(CHUNKS, slow, detect, lambda: next(waits, None) is None)
    first = [next(seen) for _ in range(10)]
    assert not slow.claim(CHUNKS[3], ahead=True)  # it knows that this one is done
    assert numbers(list(detect_chunks(CHUNKS, fast, FakeDetection()))) == list(range(100))
    fast.close(len(CHUNKS))
    assert numbers([*first, *seen]) == list(range(100))
    assert detect.asked == [1, 2, 3, 4]


def test_two_at_once_do_each_chunk_once(leases: MakeLeases) -> None:
    together = threading.Barrier(2, timeout=300)
    held: set[int] = set()

    def meet(chunk: VideoChunk) -> None:
        if chunk.number not in held and len(held) < 4:
            held.add(chunk.number)
            together.wait()

    main, helper = FakeDetection(meet), FakeDetection(meet)
    done: list[int] = []
    thread = threading.Thread(
        target=lambda: done.append(help_with_chunks(CHUNKS, leases(helping=True), helper, lambda: False))
    )
    thread.start()
    seen = list(detect_chunks(CHUNKS, leases(), main))
    thread.join(120)
    assert numbers(seen) == list(range(100))
    assert sorted(main.asked + helper.asked) == [0, 1, 2, 3, 4]
    assert done == [len(helper.asked)]
    assert len(helper.asked) >= 2


def test_while_another_is_at_it_a_later_one_is_done(leases: MakeLeases) -> None:
    other = leases(helping=True)
    assert other.claim(CHUNKS[0])
    detect = FakeDetection()
    waited = threading.Event()
    mine = leases()
    mine.wait = waited.set  # type: ignore[method-assign]
    seen: list[FrameFeatures] = []
    thread = threading.Thread(target=lambda: seen.extend(detect_chunks(CHUNKS, mine, detect)))
    thread.start()
    assert waited.wait(300)
    assert detect.asked == [1, 2, 3, 4]
    assert seen == []
    other.save(CHUNKS[0], list(FakeDetection()(CHUNKS[0])))
    thread.join(120)
    assert numbers(seen) == list(range(100))
    assert detect.asked == [1, 2, 3, 4]


def test_who_dies_is_not_waited_for_long(leases: MakeLeases) -> None:
    assert leases(helping=True, claim_s=1.0).claim(CHUNKS[0])  # and is never heard of again
    detect = FakeDetection()
    assert numbers(list(detect_chunks(CHUNKS, leases(), detect))) == list(range(100))
    assert sorted(detect.asked) == [0, 1, 2, 3, 4]


def test_who_lives_keeps_his_claims(leases: MakeLeases, redis_settings: Settings) -> None:
    connection = JobQueue(redis_settings).connection
    names = [f"video:segments:{KEY}:{name}" for name in (0, "open")]
    main, helper, third = (leases(helping=helping, claim_s=20.0) for helping in (False, True, True))
    with main.working(), helper.working():
        assert helper.claim(CHUNKS[0])
        for name in names:
            assert connection.pexpire(name, 12_000)  # much of the lease is over
            wait_for(lambda name=name: connection.pttl(name) > 15_000, what=f"{name} is renewed")
        assert not third.claim(CHUNKS[0])
        assert third.is_open
    assert third.claim(CHUNKS[0])  # free at once


def test_nobody_frees_the_claim_of_another(leases: MakeLeases, redis_settings: Settings) -> None:
    slow, other, third = leases(helping=True), leases(helping=True), leases(helping=True)
    with slow.working():
        assert slow.claim(CHUNKS[0])
        lose_claims(redis_settings)  # it was away for too long
        assert other.claim(CHUNKS[0])
    assert not third.claim(CHUNKS[0])


def test_what_is_there_but_cannot_be_read_is_observed_here(leases: MakeLeases, kept: Path) -> None:
    (kept / "1.npz").mkdir(parents=True)
    detect = FakeDetection()
    assert numbers(list(detect_chunks(CHUNKS, leases(), detect))) == list(range(100))
    assert detect.asked == [0, 1, 2, 3, 4]


def test_cancelled_while_others_are_waited_for(leases: MakeLeases) -> None:
    other = leases(helping=True)
    for chunk in CHUNKS:
        assert other.claim(chunk)
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        list(detect_chunks(CHUNKS, leases(), FakeDetection(), lambda: next(asked)))


def test_help_ends_where_something_else_is_to_be_done(leases: MakeLeases) -> None:
    detect = FakeDetection()
    assert help_with_chunks(CHUNKS, leases(helping=True), detect, lambda: False, lambda: True) == 1
    assert detect.asked == [4]


def test_what_comes_too_late_is_not_left(leases: MakeLeases, kept: Path) -> None:
    main, late = leases(), leases(helping=True)
    assert late.claim(CHUNKS[4])
    main.close(len(CHUNKS))
    late.save(CHUNKS[4], list(FakeDetection()(CHUNKS[4])))
    assert list(kept.iterdir()) == []


def test_what_is_left(leases: MakeLeases) -> None:
    main, other = leases(), leases(helping=True)
    assert other.any_free(range(5))
    assert main.claim(CHUNKS[0])
    main.save(CHUNKS[0], list(FakeDetection()(CHUNKS[0])))
    assert main.claim(CHUNKS[1])
    assert not other.any_free([0, 1])
    assert other.any_free([0, 1, 2])


@pytest.mark.parametrize("damage", [b"", b"nonsense"])
def test_damaged_ones_are_observed_again(leases: MakeLeases, kept: Path, damage: bytes) -> None:
    list(detect_chunks(CHUNKS, leases(), FakeDetection()))
    (kept / "3.npz").write_bytes(damage)
    detect = FakeDetection()
    assert numbers(list(detect_chunks(CHUNKS, leases(), detect))) == list(range(100))
    assert detect.asked == [3]


def test_without_redis_one_goes_on_alone(redis_settings: Settings, leases: MakeLeases, tmp_path: Path) -> None:
    detect = FakeDetection()
    away = leases(settings=redis_settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none.sock"}))
    assert numbers(list(detect_chunks(CHUNKS, away, detect))) == list(range(100))
    assert detect.asked == [0, 1, 2, 3, 4]


def test_where_nothing_can_be_kept(redis_settings: Settings, leases: MakeLeases, tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file where a folder should be")
    full = redis_settings.model_copy(update={"artifacts_url": str(tmp_path / "full" / "artifacts")})
    detect = FakeDetection()
    assert numbers(list(detect_chunks(CHUNKS, leases(settings=full), detect))) == list(range(100))
    assert detect.asked == [0, 1, 2, 3, 4]


def test_old_ones_are_removed(leases: MakeLeases, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(detect_chunks(CHUNKS, leases(), FakeDetection()))
    assert len(list(kept.iterdir())) == 5
    monkeypatch.setattr("ml_backend.jobs.chunk_leases.CHUNK_TTL_S", -1)
    leases()
    assert list(kept.iterdir()) == []


# -- the whole


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_yolo(tmp_path_factory.mktemp("weights") / "tiny.pt", {0: "thing", 1: "other"})


@pytest.fixture
def long_site(site: Callable[..., Site], weights: Path, tmp_path: Path) -> Callable[..., tuple[Site, int]]:
    """A requested prediction of 100 frames a turn."""

    def make(turns: int = 8, **values: Any) -> tuple[Site, int]:
        here = site(**FEW_BOXES | {"yolo_weights": str(weights), "segment_s": 5, "partial_s": 0} | values)
        make_clip(tmp_path / "short.mp4", frames=100, size=(640, 480))
        repeat_clip(tmp_path / "short.mp4", here.videos / "long.mp4", turns)
        assert probe(here.videos / "long.mp4").frames == 100 * turns
        project = here.project()
        task = here.task(project, video="/data/local-files/?d=videos/long.mp4", fps=20)
        assert here.predict(project, task) == [[]]
        return here, task

    return make


def whole(here: Site, task: int) -> Any:
    """The only prediction, once all jobs are done."""
    here.hurry()
    assert here.queue.failed_jobs() == []
    found = here.predictions(task)
    if here.jobs() or len(found) != 1 or found[0].model_version.endswith(PARTIAL):
        return None
    return found[0]


def boxes(prediction: Any) -> list[Any]:
    return [region["value"]["sequence"] for region in prediction.result]


def files_left(here: Site) -> list[Path]:
    return list((here.settings.data_dir / "artifacts" / "segments").rglob("*.npz"))


def test_two_workers_find_what_one_pass_finds(
    long_site: Callable[..., tuple[Site, int]], work: Callable[[Site], Any], tmp_path: Path
) -> None:
    here, task = long_site(segment_s=0)
    work(here)
    alone = here.predictions(task)[0]
    assert boxes(alone)
    here, task = long_site()
    logs = [tmp_path / "1.log", tmp_path / "2.log"]
    with worker_process(here.settings, logs[0]), worker_process(here.settings, logs[1]):
        together = wait_for(lambda: whole(here, task), 900, "the prediction")
    assert boxes(together) == boxes(alone)
    assert "helped with" in "".join(log.read_text() for log in logs)
    assert files_left(here) == []


def test_what_another_job_finishes_meanwhile_is_used(
    long_site: Callable[..., tuple[Site, int]], work: Callable[[Site], Container]
) -> None:
    """As after a change of labels: two jobs, one video."""
    here, task = long_site()
    container = work(here)
    engine, frames = container.storage.engine, container.queue.counters()["frames"]
    with engine.begin() as connection:
        rows = connection.execute(sa.select(track_sets)).mappings().all()
        connection.execute(sa.delete(track_sets))
        connection.execute(sa.delete(predictions))

    def another() -> None:
        wait_for(lambda: files_left(here), 900, "the first chunk")
        with engine.begin() as connection:
            connection.execute(sa.insert(track_sets), [dict(row) for row in rows])

    thread = threading.Thread(target=another)
    thread.start()
    (expected,) = here.predictions(task)
    here.sdk.predictions.delete(expected.id)
    here.predict(here.client.get_task(task).project_id, task)
    work(here)
    thread.join()
    (found,) = here.predictions(task)
    assert boxes(found) == boxes(expected)
    assert container.queue.counters()["frames"] == frames, "they were taken over"
    assert files_left(here) == []
    assert here.queue.failed_jobs() == []


def test_a_killed_worker_loses_one_chunk(long_site: Callable[..., tuple[Site, int]], tmp_path: Path) -> None:
    here, task = long_site(batch=1)
    with worker_process(here.settings, tmp_path / "first.log") as worker:
        wait_for(lambda: frames_done(here) and len(files_left(here)) >= 2, 900, "some chunks")
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    before = {path.name: path.stat().st_mtime_ns for path in files_left(here)}
    kept: dict[str, int] = {}

    def again() -> Any:
        for path in files_left(here):
            with contextlib.suppress(FileNotFoundError):  # they go when the video is done
                kept[path.name] = path.stat().st_mtime_ns
        return whole(here, task)

    with worker_process(here.settings, tmp_path / "second.log"):
        wait_for(again, 900, "the second worker's prediction")
    assert before.items() <= kept.items()
    assert files_left(here) == []


def test_what_was_found_so_far_is_shown(long_site: Callable[..., tuple[Site, int]], tmp_path: Path) -> None:
    here, task = long_site(partial_s=0.5, batch=1)
    shown: list[Any] = []

    def poll() -> Any:
        shown.extend(here.predictions(task))
        return whole(here, task)

    with worker_process(here.settings, tmp_path / "log"):
        last = wait_for(poll, 900, "the prediction")
    versions = [prediction.model_version for prediction in shown]
    assert last.model_version + PARTIAL in versions
    part = next(p for p in shown if p.model_version.endswith(PARTIAL))
    assert part.result
    assert part.id == last.id  # written over: who has it open loses nothing
    assert max(s["frame"] for region in part.result for s in region["value"]["sequence"]) < 800


def test_beside_an_annotation_that_was_begun_early_stays_what_it_was_begun_from(
    long_site: Callable[..., tuple[Site, int]], work: Callable[[Site], Any]
) -> None:
    here, task = long_site(turns=2)
    version = here.prediction_service.version(here.client.get_task(task).project_id)
    here.sdk.predictions.create(task=task, result=[], model_version=version + PARTIAL)
    here.annotate(task)
    work(here)
    assert {p.model_version for p in here.predictions(task)} == {version, version + PARTIAL}


def test_no_part_stays_beside_the_whole(
    long_site: Callable[..., tuple[Site, int]], work: Callable[[Site], Any]
) -> None:
    """Of whatever version it is, and although Label Studio has asked for the whole itself."""
    here, task = long_site(turns=2)
    version = here.prediction_service.version(here.client.get_task(task).project_id)
    here.sdk.predictions.create(task=task, result=[], model_version="other-1.tracktrack-2.yolo.base" + PARTIAL)
    work(here)
    assert [p.model_version for p in here.predictions(task)] == [version]
    here.sdk.predictions.create(task=task, result=[], model_version=version + PARTIAL)
    here.queue.request_prepare(here.client.get_task(task).project_id, task)
    work(here)
    assert {p.model_version for p in here.predictions(task)} == {version}
