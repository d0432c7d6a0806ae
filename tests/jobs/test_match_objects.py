"""The same people in the videos of several tasks, found by a worker in this process, in a real Label Studio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ml_backend.core.errors import Conflict
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.jobs.container import Container
from ml_backend.jobs.delivery import deliver_one
from ml_backend.label_studio.media import canonical_uri
from ml_backend.label_studio.regions import MAX_GLOBAL_ID
from ml_backend.labeling.few_shot.pattern_store import video_key
from tests.builders import label_config
from tests.jobs.conftest import Site
from tests.jobs.test_api_jobs import ended, room
from tests.jobs.test_repairs import annotations, regions
from tests.jobs.test_review import predicted
from tests.jobs.test_review_job import submit
from tests.review import builders
from tests.review.test_region_repairs import region
from tests.server.control import Room

Work = Callable[[Site], Container]
CONFIG = label_config("person")
PEOPLE = range(1, 7)


@pytest.fixture
def here(site: Callable[..., Site]) -> Site:
    return site()


def person(number: int, shift: float = 0.0, **more: Any) -> dict[str, Any]:
    """A person on a place of their own, of which each video has another ``shift``."""
    keys = [(1, 14.0 * number + shift, True), (100, 14.0 * number + shift + 2, True)]
    return region(f"p{number}", keys, score=0.9, **more)


def filmed(here: Site, project: int, name: str, numbers: Sequence[int], shift: float = 0.0) -> int:
    """A task with predicted people whose views are stored, as a prediction leaves them."""
    task = predicted(
        here, project, *(person(n, shift) for n in numbers), video=here.clip(name, frames=100, size=(320, 240))
    )
    embedder = here.services.projects.models(project).classifier.embedder
    assert embedder is not None
    crops = []
    for item in builders.crops(builders.street()[:6]):
        # Of the builder's street, whose people have lanes by number, the views; the boxes are those of this video.
        number = round((item.xyxy[1] + 25 - 45) / 60)
        if number in numbers:
            x = 3.2 * (14.0 * number + shift + 2 * (item.frame % 100) / 99)
            box = (round(x, 1), 48.0, round(x + 32, 1), 120.0)
            crops.append(CropEmbedding(item.frame % 100, box, item.vector, item.thumbnail))
    address = canonical_uri(here.data(task)["video"], here.settings.label_studio_url)
    here.services.projects.patterns.crop_embeddings(video_key(address)).add(embedder.model_id, crops)
    return task


def match(here: Site, work: Work, asking: Room, project: int) -> dict[str, Any]:
    job = asking.post("/api/global_ids", {"project": project, "by": "anna"}, 202)["job"]
    work(here)
    found = ended(asking, job)
    assert found["state"] == "finished", found["error"]
    return dict(found["result"])


def ids(result: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    return {item["id"]: (item.get("meta") or {}).get("global_id") for item in result}


def test_found_edited_kept_and_undone(here: Site, work: Work) -> None:
    project, asking = here.project(CONFIG), room(here)
    first = filmed(here, project, "gate.mp4", PEOPLE)
    second = filmed(here, project, "yard.mp4", [2, 3, 4, 5, 6], 3.0)
    drawn = [person(n, 3.0) for n in (2, 3, 4, 5, 6)]
    own = submit(here, second, drawn)
    found = match(here, work, asking, project)
    assert found == {"objects": 5, "tracks": 10, "tasks": 2, "of": 2, "unseen": 0, "skipped": []}
    given = ids(regions(here, first))
    assert given["p1"] is None
    assert {given[f"p{n}"] for n in range(2, 7)} == set(range(1, 6))
    assert regions(here, first)[1]["meta"]["text"].startswith("Global id ")
    theirs, copy = annotations(here, second)
    assert (theirs["id"], ids(theirs["result"])) == (own, {f"p{n}": None for n in range(2, 7)})
    assert ids(copy["result"]) == {name: number for name, number in given.items() if name != "p1"}
    assert match(here, work, asking, project)["tracks"] == 0

    def tracks(task: int) -> dict[str, dict[str, Any]]:
        (video,) = asking.get(f"/api/tracks?project={project}&task={task}")["videos"]
        return {row["region"]: row for row in video["tracks"]}

    def identify(name: str, number: int | None, status: int = 200) -> Any:
        seen = {"region": name, "digest": tracks(first)[name]["digest"]}
        body = {"project": project, "task": first, "tracks": [seen], "action": "identify", "global_id": number}
        return asking.post("/api/repairs/tracks", {**body, "by": "ben"}, status)

    assert tracks(first)["p2"]["global_id"] == given["p2"]
    assert "visible at once" in identify("p1", given["p3"], 409)["detail"]
    assert "already" in identify("p3", given["p3"], 409)["detail"]
    assert identify("p2", None)["description"] == "Global id 6."
    assert match(here, work, asking, project)["tracks"] == 0, "a person has said that they are two"
    # Somebody trains a better detector.
    newer = [{**person(n, 0.2), "id": f"new{n}", "score": 0.5} for n in PEOPLE]
    deliver_one(work(here), project, first, {"model_version": "yolo.track.yolo.v1", "score": 0.5, "result": newer})
    result = here.client.list_predictions(first)[-1].result
    assert ids(result) == {f"new{n}": {**given, "p2": 6}[f"p{n}"] for n in PEOPLE}
    assert [item["value"] for item in result] == [item["value"] for item in newer]
    history = asking.get(f"/api/repairs?project={project}")["repairs"]
    assert [(item["by"], item["count"], item["tasks"]) for item in history] == [
        ("ben", 1, [first]),
        ("anna", 10, sorted([first, second])),
    ]
    asking.post("/api/repairs/undo", {"project": project, "repair": history[1]["id"], "by": "ben"})
    result = here.client.list_predictions(first)[-1].result
    assert ids(result) == {f"new{n}": 6 if n == 2 else None for n in PEOPLE}, "the other one stays"
    assert [item["id"] for item in annotations(here, second)] == [own]
    numbered = identify("new3", None)
    split = {"tracks": [{"region": "new3", "digest": tracks(first)["new3"]["digest"]}], "action": "split", "frame": 50}
    asking.post("/api/repairs/tracks", {"project": project, "task": first, **split, "by": "ben"})
    undone = asking.post("/api/repairs/undo", {"project": project, "repair": numbered["id"], "by": "ben"}, 409)
    assert "repaired again since" in undone["detail"], "half of the track would keep the number"


def test_listed_taken_out_joined_and_undone(here: Site, work: Work) -> None:
    project, asking = here.project(CONFIG), room(here)
    first = filmed(here, project, "gate.mp4", PEOPLE)
    second = filmed(here, project, "yard.mp4", [2, 3, 4, 5, 6], 3.0)
    own = submit(here, second, [person(n, 3.0) for n in (2, 3, 4, 5, 6)])
    match(here, work, asking, project)
    place = f"/api/global_ids?project={project}"
    assert asking.get(place, 202)["job"]["kind"] == "list_objects"
    work(here)

    def listed(query: str = "") -> dict[int, list[tuple[int, str]]]:
        found = asking.get(place + query)
        return {item["global_id"]: [(t["task"], t["region"]) for t in item["tracks"]] for item in found["objects"]}

    def give(known: int, number: int | None, tracks: Sequence[dict[str, Any]], status: int = 200) -> Any:
        seen = [{name: item[name] for name in ("task", "annotation", "region", "digest")} for item in tracks]
        body = {"project": project, "known": known, "global_id": number, "tracks": seen, "by": "ben"}
        return asking.post("/api/global_ids/tracks", body, status)

    found = asking.get(place)
    assert (found["job"], found["total"], found["tasks"], found["of"], found["more"]) == (None, 5, 2, 2, 0)
    rows = {item["tracks"][0]["region"]: item for item in found["objects"]}
    (here_two, there_two), (_, there_three) = rows["p2"]["tracks"], rows["p3"]["tracks"]
    two, three = rows["p2"]["global_id"], rows["p3"]["global_id"]
    facts = {"task": first, "video": "video", "annotation": None, "first": 1, "last": 100, "start": 0.0, "end": 5.0}
    assert {name: here_two[name] for name in facts} == facts
    assert (here_two["by"], here_two["found"], here_two["label"]) == ("anna", True, "person")
    assert here_two["thumbnail"].startswith("data:image/jpeg;base64,")
    assert here_two["thumbnail"] != rows["p3"]["tracks"][0]["thumbnail"]
    (_, copy) = annotations(here, second)
    assert (there_two["task"], there_two["annotation"]) == (second, copy["id"])
    assert [*listed("&limit=2&offset=4")] == [5]
    # Taken out: of the list at once, which is read again meanwhile.
    out = give(two, None, [there_two])["repair"]
    assert (out["description"], out["by"], out["count"]) == ("Global id 6.", "ben", 1)
    assert ids(annotations(here, second)[-1]["result"])["p2"] == 6
    assert two not in listed()
    assert "has a track with another global id" in give(two, None, [there_two], 409)["detail"], "somebody was faster"
    assert "already" in give(6, 6, [there_two], 409)["detail"]
    # All tracks of an object are given another's id, except in the task where they would be that object twice at once.
    left = give(three, two, rows["p3"]["tracks"])
    assert ("visible at once" in left["left_out"][0]["reason"], left["left_out"][0]["task"]) == (True, first)
    assert left["repair"]["tasks"] == [second]
    assert listed()[two] == [(first, "p2"), (second, "p3")]
    (track,) = [t for item in asking.get(place)["objects"] for t in item["tracks"] if t["region"] == "p3"]
    assert (track["by"], track["found"]) == ("ben", False)
    stale = give(two, None, [{**there_three, "digest": "0" * 16}], 409)
    assert "has another track p3" in stale["detail"]
    asking.post("/api/repairs/undo", {"project": project, "repair": left["repair"]["id"], "by": "ben"})
    asking.post("/api/repairs/undo", {"project": project, "repair": out["id"], "by": "ben"})
    assert [item["id"] for item in annotations(here, second)] == [own, copy["id"]]
    at_once = listed()
    work(here)
    assert asking.get(place)["job"] is None
    assert (
        listed()
        == at_once
        == {item["global_id"]: [(t["task"], t["region"]) for t in item["tracks"]] for item in rows.values()}
    )
    predicted(here, project, person(1, meta={"global_id": 40}), video=here.clip("imported.mp4", frames=100))
    asking.get(place + "&fresh=true")
    work(here)
    assert give(two, None, [there_two])["repair"]["description"] == "Global id 41.", "40 is another object's"


def test_nobody_takes_a_number_that_somebody_else_has_just_taken(here: Site) -> None:
    reviews = here.services.reviews
    with ThreadPoolExecutor(4) as pool:
        taken = sorted(pool.map(lambda count: (reviews.new_global_ids(7, count), count), [1, 3, 1, 2]))
    assert [first for first, _ in taken] == [1, *np.cumsum([count for _, count in taken])[:-1] + 1]
    assert reviews.new_global_ids(7, above=40) == 41
    with pytest.raises(Conflict, match="no global id after"):
        reviews.new_global_ids(7, above=MAX_GLOBAL_ID)
    assert reviews.new_global_ids(7) == 42
    assert reviews.new_global_ids(8) == 1, "each project has its own"


def test_without_an_embedder_it_says_so(site: Callable[..., Site], work: Work) -> None:
    here = site(mode="yolo")
    project, asking = here.project(CONFIG), room(here)
    job = asking.post("/api/global_ids", {"project": project}, 202)["job"]
    work(here)
    found = ended(asking, job)
    assert (found["state"], "learns no patterns" in found["error"]) == ("failed", True)
    asking.post("/api/export", {"project": project, "format": "yolo", "global_ids": True}, 422)
