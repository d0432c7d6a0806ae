"""Which tracks a label may name, by what the detector calls them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ml_backend.labeling.few_shot.detector_classes import TaughtClasses

PERSONS = [("responder", "person")] * 3
VEHICLES = [("ambulance", "car"), ("ambulance", "truck")]


@pytest.mark.parametrize(
    ("votes", "reached"),
    [
        ({"person": 5.0}, True),
        ({"bicycle": 5.0}, False),
        ({"bicycle": 3.0, "person": 2.0}, True),  # the detector itself is not sure
        ({"bicycle": 9.0, "person": 1.0}, False),
        ({}, True),
    ],
)
def test_a_label_taught_on_persons(votes: Mapping[str, float], reached: bool) -> None:
    assert TaughtClasses.of(PERSONS).reaches("responder", votes) == reached


def test_examples_that_cross_classes_reach_all() -> None:
    taught = TaughtClasses.of([*PERSONS, *VEHICLES])
    assert taught.reaches("ambulance", {"bus": 1.0})
    assert not taught.reaches("responder", {"bus": 1.0})
    assert taught.classes["ambulance"] == {"car", "truck"}


def test_one_odd_example_of_many_opens_its_class_only() -> None:
    taught = TaughtClasses.of([*PERSONS, ("responder", "bicycle")])
    assert taught.reaches("responder", {"bicycle": 1.0})
    assert not taught.reaches("responder", {"car": 1.0})


@pytest.mark.parametrize("classes", [[""], ["", "person"], ["", "", "person", "person"]])
def test_labels_whose_classes_are_mostly_unknown_reach_all(classes: list[str]) -> None:
    assert TaughtClasses.of([("parcel", name) for name in classes]).reaches("parcel", {"bicycle": 1.0})


def test_a_hand_drawn_object_does_not_open_a_label() -> None:
    assert not TaughtClasses.of([*PERSONS, ("responder", "")]).reaches("responder", {"bicycle": 1.0})


def test_labels_without_objects_reach_all() -> None:
    assert TaughtClasses().reaches("responder", {"bicycle": 1.0})


def test_spelling_does_not_matter() -> None:
    assert TaughtClasses.of([("driver", "Traffic_Light")]).reaches("driver", {"traffic light": 1.0})


def test_a_detector_that_was_trained_since_calls_tracks_by_labels() -> None:
    """Its class "walker" are the persons of before."""
    taught = TaughtClasses.of([*PERSONS, ("walker", "person"), ("van", "car")])
    for name, reached in (("walker", True), ("responder", True), ("van", False), ("bicycle", False)):
        assert taught.reaches("responder", {name: 1.0}, trained=True) == reached
        assert taught.reaches("responder", {name: 1.0}) == (name == "person")
