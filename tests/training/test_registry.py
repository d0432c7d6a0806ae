"""The registry of versions, on a real database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml_backend.core.errors import ConfigError, Conflict, Postponed
from ml_backend.db.storage import Storage
from ml_backend.training.registry import Registry, RunLost, Version

Make = Callable[[], Registry]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The registry as one process has it; all share one database."""
    return lambda: Registry(Storage(f"sqlite:///{tmp_path / 'db'}"))


def trained(registry: Registry, project: int = 1, parent: Version | None = None) -> Version:
    """A run that is about to be promoted."""
    run = registry.begin(project, "me", "a test", parent)
    facts = {"detector": "yolo11n", "weights_sha256": f"{run.number:02}" * 32, "artifact": f"v{run.number}.pt"}
    return registry.advance(run, state="promoting", **facts)


def test_numbers_count_within_a_project(make: Make) -> None:
    registry = make()
    assert [registry.begin(p, "me", "a test", None).name for p in (1, 1, 2)] == ["v1", "v2", "v1"]
    assert [version.number for version in registry.versions(1)] == [2, 1]
    assert registry.last(1).number == 2  # type: ignore[union-attr]
    assert registry.versions(3) == []


def test_processes_that_begin_at_once_get_different_numbers(make: Make) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda number: make().begin(1, f"w{number}", "t", None).number, range(4)))
    assert sorted(numbers) == [1, 2, 3, 4]


def test_a_promoted_version_is_in_use_for_every_process(make: Make) -> None:
    registry, other = make(), make()
    assert registry.current(1) is None
    registry.promote(trained(registry), "better", "gate")
    current = other.current(1)
    assert current is not None
    assert (current.name, current.state, current.owner) == ("v1", "promoted", "")
    assert current.lineage == {}, "what only the registry's page shows is not read on each request"
    assert other.current(2) is None


def test_a_run_belongs_to_one_owner(make: Make) -> None:
    registry = make()
    run = trained(registry)
    taken = registry.take_over(run, "another")
    assert (taken.attempts, taken.owner) == (2, "another")
    for late in (
        lambda: registry.promote(run, "better", "gate"),
        lambda: registry.advance(run, state="gate"),
        lambda: registry.finish(run, "failed", "late"),
        lambda: registry.discard(run, {}),
    ):
        with pytest.raises(RunLost, match="taken"):
            late()
    assert registry.current(1) is None
    assert registry.promote(taken, "better", "gate").state == "promoted"
    with pytest.raises(RunLost):
        registry.finish(taken, "failed", "it is over")
    assert registry.running(1) is None


def test_only_what_it_was_compared_with_is_replaced(make: Make) -> None:
    registry = make()
    run = trained(registry)
    other = registry.promote(trained(registry), "better", "gate")
    with pytest.raises(Postponed, match="switched"):
        registry.promote(run, "better", "gate", None)
    assert registry.current(1).id == other.id  # type: ignore[union-attr]
    assert registry.get(run.id).state == "promoting"  # type: ignore[union-attr]
    assert registry.promote(run, "better", "gate", other.id).state == "promoted"


def test_a_refused_version_is_kept_with_its_reason(make: Make) -> None:
    registry = make()
    registry.finish(trained(registry), "refused", "worse", metrics={"candidate": {"map50": 0.1}})
    (kept,) = registry.versions(1)
    assert (kept.state, kept.reason, kept.metrics) == ("refused", "worse", {"candidate": {"map50": 0.1}})
    assert kept.finished_at is not None
    assert registry.current(1) is None


def test_a_proposed_version_is_promoted_by_using_it(make: Make) -> None:
    registry = make()
    proposed = registry.finish(trained(registry), "proposed", "Look first.")
    assert registry.current(1) is None
    assert registry.proposed(1).name == "v1"  # type: ignore[union-attr]
    assert proposed.has_weights
    assert registry.activate(1, proposed, "somebody")
    (accepted,) = registry.versions(1)
    assert (accepted.state, accepted.reason) == ("promoted", "Look first. Accepted by somebody.")
    assert registry.current(1).name == "v1"  # type: ignore[union-attr]
    assert registry.proposed(1) is None


def test_a_proposed_version_is_declined_once_and_may_still_be_used(make: Make) -> None:
    registry = make()
    proposed = registry.finish(trained(registry), "proposed", "Look first.")
    registry.decline(proposed, "somebody")
    (declined,) = registry.versions(1)
    assert (declined.state, declined.reason) == ("refused", "Look first. Declined by somebody.")
    with pytest.raises(Conflict, match="it is refused, not proposed"):
        registry.decline(proposed, "somebody else")
    assert registry.activate(1, declined, "somebody")
    assert registry.versions(1)[0].state == "refused", "as any refused one that is used"


@pytest.mark.parametrize("outcome", ["proposed", "refused", "promoted"])
def test_a_newer_version_that_is_decided_supersedes_a_proposal(make: Make, outcome: str) -> None:
    registry = make()
    registry.finish(trained(registry, project=2), "proposed", "Of another project.")
    registry.finish(trained(registry), "proposed", "Look first.")
    registry.finish(trained(registry), "failed", "No luck.")
    assert registry.proposed(1).name == "v1", "a failure decides nothing"  # type: ignore[union-attr]
    if outcome == "promoted":
        registry.promote(trained(registry), "Better.", "gate")
    else:
        registry.finish(trained(registry), outcome, "Newer.")
    newer, _, older = registry.versions(1)
    assert (newer.state, older.state, older.reason) == (outcome, "refused", "Look first. Superseded by v3.")
    assert registry.proposed(2) is not None


def test_one_call_rolls_back_and_another_forward_again(make: Make) -> None:
    registry = make()
    first = registry.promote(trained(registry), "better", "gate")
    second = registry.promote(trained(registry, parent=first), "better still", "gate", first.id)
    assert second.parent_id == first.id
    assert registry.activate(1, registry.find(1, "v1"), "somebody")
    assert registry.current(1).name == "v1"  # type: ignore[union-attr]
    assert not registry.activate(1, first, "somebody"), "it is in use already"
    assert registry.activate(1, registry.find(1, "base"), "somebody")
    assert registry.current(1) is None
    assert registry.activate(1, second, "somebody else")
    history = registry.activations(1)
    assert [item["version"] for item in history] == ["v2", "base", "v1", "v2", "v1"]
    assert history[0]["by"] == "somebody else"


def test_what_cannot_be_used(make: Make) -> None:
    registry = make()
    run = registry.begin(1, "me", "t", None)
    with pytest.raises(ConfigError, match="it is dataset"):
        registry.activate(1, run, "somebody")
    failed = registry.finish(run, "failed", "no luck")
    with pytest.raises(ConfigError, match="it is failed"):
        registry.activate(1, failed, "somebody")
    foreign = registry.promote(trained(registry, project=2), "better", "gate")
    with pytest.raises(ConfigError, match="project 2"):
        registry.activate(1, foreign, "somebody")
    for name in ("v9", "", "../v1", "v1e3", "9" * 40, "½"):
        with pytest.raises(ConfigError, match="no version"):
            registry.find(1, name)


def test_a_run_with_nothing_new_leaves_no_trace_but_what_it_has_seen(make: Make) -> None:
    registry = make()
    first = registry.advance(registry.begin(1, "me", "t", None), lineage={"seen": {"7": "a"}, "tracks": 3})
    registry.finish(first, "refused", "worse")
    registry.discard(registry.begin(1, "me", "t", None), {"7": "b", "8": "c", "9": "d"}, [8, 9])
    left = registry.last(1)
    assert left is not None
    assert left.lineage == {"seen": {"7": "b", "8": "c", "9": "d"}, "tracks": 3, "unread": ["8", "9"]}
    registry.settle_unread(left, back={"9"}, gone=set())
    registry.settle_unread(left, back=set(), gone={"8"})
    left = registry.last(1)
    assert left is not None
    assert left.lineage == {"seen": {"7": "b", "8": "c"}, "tracks": 3, "unread": []}


def test_epochs_are_there_while_it_runs(make: Make) -> None:
    registry = make()
    run = registry.begin(1, "me", "t", None)
    registry.advance(run, history=[{"epoch": 1, "map50": 0.5}])
    assert make().running(1).history == [{"epoch": 1, "map50": 0.5}]  # type: ignore[union-attr]
    assert [version.id for version in make().all_active()] == [run.id]


def test_what_is_shown_is_read_without_what_grows_with_the_tasks(make: Make, tmp_path: Path) -> None:
    registry = make()
    lineage = {"seen": {"7": "a" * 64}, "annotations": {"7": 70}, "tracks": 3, "notes": []}
    facts = {
        "lineage": lineage,
        "metrics": {"candidate": {"map50": 0.1}},
        "history": [{"epoch": 1}],
        "config": {"lr": 1},
    }
    registry.finish(registry.advance(trained(registry), **facts), "refused", "worse")
    registry.finish(registry.begin(1, "me", "t", None), "failed", "no luck")
    failed, refused = registry.versions(1)
    whole = registry.get(refused.id)
    assert whole is not None
    assert refused.lineage == {"annotations": {"7": 70}, "tracks": 3, "notes": []}
    assert (refused.metrics, refused.history, refused.config) == (whole.metrics, whole.history, whole.config)
    assert (refused.reason, refused.created_at, refused.state) == (whole.reason, whole.created_at, "refused")
    assert failed.lineage == {}
    assert [version.name for version in registry.versions(1, 1)] == ["v2"]
    assert [(entry.name, entry.state) for entry in registry.outline(1)] == [("v2", "failed"), ("v1", "refused")]
    # The outline reads none of what grows: it need not even be there.
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("UPDATE model_versions SET lineage = '{', history = '[', metrics = '{', config = '{'")
    assert [entry.has_weights for entry in registry.outline(1)] == [False, True]
