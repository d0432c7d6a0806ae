"""What the control room shows of a project's versions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ml_backend.training.keeping import remove_old_weights
from tests.web.control import Room, promoted


def add_versions(room: Room, folder: Path, count: int) -> None:
    """So many versions, with what a training tells of them."""
    for number in range(count):
        facts = {"history": [{"epoch": 1, "map50": 0.5}], "lineage": {"seen": {"1": "a"}, "tracks": 3}}
        promoted(room.services, folder, b"PK %d" % number, **facts)


def part(room: Room, name: str) -> str:
    answer = room.client.get(f"/ui/part/{name}?project=7", headers={"Accept": "text/html"})
    assert answer.status_code == 200
    return answer.get_data(as_text=True)


def test_a_version_without_weights_is_shown_and_not_offered(auto: Room, tmp_path: Path) -> None:
    add_versions(auto, tmp_path, 4)
    found = auto.services
    settings = found.settings.model_copy(update={"keep_versions": 1})
    assert remove_old_weights(7, settings, found.storage, found.artifacts) == 2
    text = part(auto, "versions")
    assert text.count("Its weights were removed, since there are newer versions.") == 2
    assert text.count("is-removed") == 2
    assert 'id="use-v3"' in text
    for name in ("v1", "v2"):
        assert f">{name}<" in text, "its figures are still there"
        assert f'id="use-{name}"' not in text
    choices = part(auto, "mode")
    assert [name for name in ("v1", "v2", "v3", "v4") if f'<option value="{name}"' in choices] == ["v3", "v4"]
    problem = auto.post("/api/switch_model", {"project": 7, "version": "v1"}, 422)
    assert "weights were removed" in problem["detail"]
    assert "KEEP_VERSIONS" in problem["cure"]
    rows = auto.get("/api/versions?project=7")["versions"]
    assert [row["weights_removed"] for row in rows] == [False, False, True, True]
    assert [row["tracks"] for row in rows] == [3] * 4


def test_of_many_versions_the_page_reads_what_it_shows(auto: Room, tmp_path: Path) -> None:
    add_versions(auto, tmp_path, 22)
    with sqlite3.connect(auto.services.settings.data_dir / "backend.sqlite3") as connection:
        connection.execute("UPDATE model_versions SET history = '[', metrics = '{', lineage = '{' WHERE number < 3")
    text = part(auto, "versions")
    assert 'id="use-v3"' in text
    assert 'id="use-v2"' not in text
    assert "v21" in text
    choices = part(auto, "mode")
    assert choices.count("<option") == 4 + 22 + 1, "any version can be chosen"
