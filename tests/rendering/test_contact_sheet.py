"""Contact sheets of what a label looks like, and the script that writes them, with a real database."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.core.files import check_output
from ml_backend.core.settings import Settings
from ml_backend.db.storage import Storage
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.jobs.container import Container
from ml_backend.labeling.few_shot.pattern_store import NewExemplar, PatternStore
from ml_backend.labeling.modes import require_embedder
from ml_backend.rendering.contact_sheet import FORMATS, Card, contact_sheet, exemplar_cards, sheet_title, write_sheet
from ml_backend.rendering.text import Fonts
from tests.builders import run_command

MODEL = "model-1"
RED = (220, 20, 20)


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (40, 96)) -> bytes:
    buffer = io.BytesIO()
    Pictures.new("RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def learn(store: PatternStore, task: int, objects: dict[str, tuple[str, int]], model: str = MODEL) -> None:
    """Exemplars of one task: by region its label and number of views."""
    wanted = []
    for number, (region, (label, views)) in enumerate(objects.items()):
        for view in range(views):
            vector = np.random.default_rng([task, number, view]).normal(size=8).astype(np.float32)
            box = (float(number), 0.0, 10.0, 10.0 + view)
            look = CropEmbedding(10 * view + task, box, vector / np.linalg.norm(vector), jpeg(RED))
            store.crop_embeddings(f"video {task}").add(model, [look])
            wanted.append(NewExemplar(region, label, look.key(f"video {task}", model)))
    store.replace_task(1, model, task, task, wanted)


@pytest.fixture
def store(tmp_path: Path) -> PatternStore:
    return PatternStore(Storage(f"sqlite:///{tmp_path / 'db.sqlite3'}"))


def pixels(sheet: Pictures.Image, colour: tuple[int, int, int], tolerance: int = 30) -> np.ndarray:
    return np.asarray((np.abs(np.asarray(sheet).astype(int) - colour) < tolerance).all(axis=2))


def test_exemplars_of_a_label(store: PatternStore) -> None:
    learn(store, 3, {"b": ("fallen", 2), "a": ("fallen", 3), "c": ("other", 4), "d": ("", 1)})
    learn(store, 1, {"z": ("fallen", 1)})
    found = exemplar_cards(store, 1, MODEL, "fallen")
    assert (found.total, found.objects, found.tasks) == (6, 3, 2)
    assert [card.caption for card in found.cards] == [
        ("task 1", "frame 2"),
        *[("task 3", f"frame {frame}") for frame in (4, 14, 24, 4, 14)],
    ]
    assert all(card.thumbnail == jpeg(RED) for card in found.cards)
    assert sheet_title(found) == "fallen: 6 exemplars of 3 objects in 2 tasks"
    assert sheet_title(exemplar_cards(store, 1, MODEL, "")) == "(background): 1 exemplar of 1 object in 1 task"


def test_of_too_many_every_object_keeps_one(store: PatternStore) -> None:
    learn(store, 3, {"b": ("fallen", 5), "a": ("fallen", 5), "c": ("fallen", 5)})
    found = exemplar_cards(store, 1, MODEL, "fallen", limit=4)
    assert len(found.cards) == 4
    assert sum(card.caption[1] == "frame 4" for card in found.cards) == 3
    assert sheet_title(found).endswith("in 1 task, 4 shown")


def test_imported_exemplars(store: PatternStore) -> None:
    look = CropEmbedding(3, (0.0, 0.0, 1.0, 1.0), np.ones(8, np.float32), jpeg(RED))
    store.crop_embeddings("v").add(MODEL, [look])
    store.add_imported(1, MODEL, [NewExemplar("r", "fallen", look.key("v", MODEL), "elsewhere")])
    found = exemplar_cards(store, 1, MODEL, "fallen")
    assert found.cards[0].caption == ("imported", "frame 4")
    assert sheet_title(found) == "fallen: 1 exemplar of 1 object"


def test_labels_that_are_not_known(store: PatternStore) -> None:
    with pytest.raises(ConfigError, match="no label yet"):
        exemplar_cards(store, 1, MODEL, "fallen")
    learn(store, 3, {"b": ("fallen", 1), "c": ("", 1)})
    with pytest.raises(ConfigError, match=r'"standing".*\(background\), fallen'):
        exemplar_cards(store, 1, MODEL, "standing")
    with pytest.raises(ConfigError, match="no label yet"):
        exemplar_cards(store, 2, MODEL, "fallen")


@pytest.mark.parametrize("count", [0, 1, 2, 7, 30])
def test_every_card_is_on_the_sheet(count: int) -> None:
    cards = [Card(jpeg(RED), ("task 1", f"frame {n}")) for n in range(count)]
    sheet = contact_sheet(cards, "Fußgänger: 사람", Fonts())
    red = pixels(sheet, RED)
    each = 132 * 55  # 40 x 96, enlarged to 132 px
    assert red.sum() == pytest.approx(count * each, rel=0.05)
    assert pixels(sheet, (28, 28, 34)).any(), "the title"
    if count == 30:
        assert 1 < sheet.width / sheet.height < 2


def test_damaged_thumbnails() -> None:
    cards = [Card(b"no jpeg", ("task 1",)), Card(b"", ("task 2",)), Card(jpeg(RED, (96, 1)), ()), Card(jpeg(RED), ())]
    assert pixels(contact_sheet(cards, "x", Fonts()), (206, 208, 214), 3).sum() > 2 * 132 * 132 * 0.9


@pytest.mark.parametrize("name", ["s.png", "s.jpg", "s.JPEG", "s.webp"])
def test_written_whole(tmp_path: Path, name: str) -> None:
    out = tmp_path / "new" / name
    sheet = contact_sheet([Card(jpeg(RED), ("task 1",))], "one", Fonts())
    check_output(out, FORMATS, False)
    write_sheet(sheet, out)
    with Pictures.open(out) as written:
        assert written.size == sheet.size
        assert np.abs(np.asarray(written.convert("RGB")).astype(int) - np.asarray(sheet)).mean() < 3
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(ConfigError, match="--force"):
        check_output(out, FORMATS, False)
    check_output(out, FORMATS, True)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("x.gif", "x", "folder.png"):
        with pytest.raises(ConfigError):
            check_output(tmp_path / name, FORMATS, True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_sheet(Pictures.new("RGB", (9, 9)), tmp_path / "file" / "x.png")
    huge = Pictures.new("RGB", (70_000, 1))
    with pytest.raises(ConfigError, match="70000 x 1"):
        write_sheet(huge, tmp_path / "x.jpg")


@pytest.mark.slow
def test_the_command(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    made = settings()
    projects = Container(made).projects
    learn(projects.patterns, 3, {"b": ("fallen", 2)}, require_embedder(projects.models(1).classifier).model_id)
    variables = {"DATA_DIR": str(made.data_dir), "WEIGHTS_TIMEOUT_S": "0.1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command("contact-sheet", "--project", "1", *arguments, cwd=tmp_path, **variables)

    done = run("--label", "fallen", "--out", "sheet.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fallen: 2 exemplars of 1 object in 1 task; written to sheet.png\n"
    with Pictures.open(tmp_path / "sheet.png") as sheet:
        assert pixels(sheet.convert("RGB"), RED).any()
    for arguments in (["--label", "standing", "--out", "a.png"], ["--label", "fallen", "--out", "sheet.png"]):
        failed = run(*arguments)
        assert failed.returncode == 1
        assert "Fix: " in failed.stderr
        assert "Traceback" not in failed.stderr
