"""Label configs: what is read from them, and what is said about those that will not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from label_studio_sdk.label_interface import LabelInterface

from ml_backend.core.errors import ConfigError
from ml_backend.label_studio.label_config import (
    LabelMapper,
    LabelSpec,
    label_prompts,
    parse_label_config,
    with_prompts,
)

ROOT = Path(__file__).parents[2]

LABELS = '<Labels name="label" toName="video"><Label value="person"/></Labels>'


def config(video: str = 'frameRate="$fps"', labels: str = LABELS) -> str:
    return (
        f'<View><Video name="video" value="$video" {video}/><VideoRectangle name="box" toName="video"/>{labels}</View>'
    )


def frame_rate(attribute: str, task: dict[str, Any]) -> float:
    return parse_label_config(config(attribute)).video_controls[0].frame_rate_for(task)


def test_project_config_is_read_and_accepted_by_label_studio() -> None:
    xml = (ROOT / "label_config.xml").read_text(encoding="utf-8")
    LabelInterface(xml).validate()
    (control,) = parse_label_config(xml).video_controls
    assert (control.to_name, control.value_key) == ("video", "video")
    assert control.frame_rate_for({"fps": 25}) == 25
    mapper = LabelMapper(control.labels)
    assert [mapper.map(name) for name in ("person", "motorcycle", "object")] == ["person", "motorcycle", "object"]


def test_several_videos_hyphens_unicode_and_nested_views() -> None:
    xml = """
      <View><Header value="Zwei"/><View style="x:y">
        <Video name="links-1" value="$a" framerate="25"/><View><VideoRectangle name="кадр" toName="links-1"/></View>
        <Labels name="l-1" toName="links-1"><View><Label value="Fußgänger" background="#123456"/></View></Labels>
        <Labels name="l-2" toName="links-1"><Label value="car"/></Labels>
        <TimelineLabels name="t" toName="links-1"><Label value="lap"/></TimelineLabels>
      </View>
      <Video name="右" value="$b.url" frameRate="$b.fps"/><VideoRectangle name="box" toName="右"/>
      <VideoRectangle name="second" toName="右"/>
      <Labels name="l" toName="右"><Label value="自行车"/></Labels>
      <Choices name="c" toName="右"><Choice value="x"/></Choices></View>"""
    parsed = parse_label_config(xml)
    one, two = parsed.video_controls
    assert (one.from_name, one.to_name, one.value_key, one.labels_name) == ("кадр", "links-1", "a", "l-1")
    assert [label.value for label in one.labels] == ["Fußgänger", "car"]
    assert one.labels[0].background == "#123456"
    assert one.frame_rate_for({"fps": 50}) == 25
    assert (two.from_name, two.to_name, two.value_key) == ("box", "右", "b.url")
    task = {"b": {"fps": 12.5, "url": "http://x/y.mp4"}}
    assert two.frame_rate_for(task) == 12.5
    assert two.media_uri(task) == "http://x/y.mp4"
    assert one.media_uri(task) is None
    assert parsed.labels == ("Fußgänger", "car", "自行车")


def test_names_agree_with_label_studios_own_parser() -> None:
    xml = config(
        labels='<Labels name="l" toName="video"><Label value="Long name" alias="ln"/><Label value="b"/></Labels>'
    )
    (control,) = parse_label_config(xml).video_controls
    theirs = LabelInterface(xml)
    assert (
        [label.value for label in control.labels] == list(theirs.get_control(control.labels_name).labels) == ["ln", "b"]
    )
    assert theirs.get_control(control.from_name).to_name == [control.to_name]
    assert theirs.get_object(control.to_name).value == f"${control.value_key}"


def test_missing_to_name_means_the_only_object() -> None:
    labels = '<Labels name="l"><Label value="x"/></Labels>'
    xml = f'<View><Video name="v" value="$v"/><VideoRectangle name="b"/>{labels}</View>'
    (control,) = parse_label_config(xml).video_controls
    assert (control.from_name, control.to_name, control.labels_name) == ("b", "v", "l")


@pytest.mark.parametrize(
    ("attribute", "task", "expected"),
    [
        ('frameRate="$fps"', {"fps": 30}, 30),
        ('frameRate="$fps"', {"fps": "29.97"}, 29.97),
        ('frameRate="$fps"', {"fps": " 12.5 "}, 12.5),
        ('frameRate="$fps"', {}, 24),
        ('frameRate="$fps"', {"fps": None}, 24),
        ('frameRate="$fps"', {"fps": 0}, 24),
        ('frameRate="$fps"', {"fps": ""}, 24),
        ('frameRate="$fps"', {"fps": "29,97"}, 24),
        ('frameRate="$fps"', {"fps": "1_000"}, 24),
        ('frameRate="$fps"', {"fps": float("inf")}, 24),
        ('frameRate="$fps"', {"fps": -25}, 24),
        ('frameRate="$fps"', {"fps": {"value": 25}}, 24),
        ('frameRate="$fps"', {"fps": 0.5}, 2),  # seconds a frame, so Label Studio thinks
        ('frameRate="$meta.fps[1]"', {"meta": {"fps": [10, 20]}}, 20),
        ('frameRate="$meta.fps[7]"', {"meta": {"fps": [10, 20]}}, 24),
        ('frameRate="$a.b"', {"a.b": 15}, 15),
        ('frameRate="29.97"', {"fps": 30}, 29.97),
        ('framerate="50"', {}, 50),
        ('frameRate="fast"', {}, 24),
        ("", {"fps": 30}, 24),
    ],
)
def test_frame_rate_is_found_as_the_player_does(attribute: str, task: dict[str, Any], expected: float) -> None:
    assert frame_rate(attribute, task) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("xml", "cause", "hint"),
    [
        ("", "is empty", "Set one up"),
        ("  \n", "is empty", "Set one up"),
        ("<View><Video", "not well-formed", "Correct it"),
        ("<View>\x00</View>", "not well-formed", "Correct it"),
        ('<!DOCTYPE V [<!ENTITY a "b">]><View>&a;</View>', "DOCTYPE", "Remove it"),
        ("<View>" + " " * 2_000_001 + "</View>", "more than", "Shorten"),
        ("<View/>", "no Video tag", "<Video "),
        ('<View><Video name="v" value="$v"/></View>', "no VideoRectangle", '<VideoRectangle name="box" toName="v"/>'),
        ('<View><Video name="v" value="$v"/><VideoRectangle name="b" toName="w"/></View>', 'toName="w"', "one of: v"),
        ('<View><Video name="v" value="$v"/><VideoRectangle name="b" toName="v"/></View>', "no Labels", "<Labels "),
        (config(labels='<Labels name="l" toName="video"/>'), "no Labels tag with labels", "<Labels "),
        (config(labels='<Labels name="l" toName="other"><Label value="x"/></Labels>'), "no Labels", "<Labels "),
        (config().replace('"$video"', '"http://x/y.mp4"'), "names no task field", 'value="$video"'),
        (config(labels='<Labels name="l" toName="video" value="$kinds"/>'), 'value="$kinds"', '<Label value="person"'),
        (config(labels='<Labels name="l" toName="video"><Label value="$kind"/></Labels>'), "from the tasks", "<Label "),
        (f"<View><Repeater on='$videos'>{config()}</Repeater></View>", "Repeater", "outside of it"),
        (f"<Repeater on='$a'><Repeater on='$b'>{config()}</Repeater></Repeater>", "Repeater", "outside of it"),
    ],
)
def test_config_that_will_not_do_is_named_with_its_cure(xml: str, cause: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_label_config(xml)
    assert cause in caught.value.message
    assert hint in caught.value.hint


def test_what_differs_from_task_to_task_is_passed_over() -> None:
    labels = '<Labels name="l" toName="video" value="$kinds"><Label value="$kind"/><Label value="person"/></Labels>'
    repeated = config().replace('"video"', '"video_{{idx}}"').replace('"$video"', '"$videos[{{idx}}]"')
    xml = f'<View>{config(labels=labels)}<Repeater on="$videos">{repeated}</Repeater></View>'
    assert [control.to_name for control in parse_label_config(xml).video_controls] == ["video"]
    assert parse_label_config(xml).labels == ("person",)


def test_entities_are_never_expanded() -> None:
    bomb = '<!DOCTYPE v [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><View>&b;</View>'
    with pytest.raises(ConfigError, match="DOCTYPE"):
        parse_label_config(bomb)


def mapper(*labels: tuple[str, str], classes: tuple[str, ...] = ()) -> LabelMapper:
    specs = (LabelSpec(value, tuple(n.strip() for n in predicted.split(",") if n)) for value, predicted in labels)
    return LabelMapper(specs, classes)


def test_predicted_values_come_before_names() -> None:
    mapping = mapper(("Vehicle", "car, Truck ,traffic light"), ("car", ""), ("PERSON", ""))
    assert mapping.map("car") == "Vehicle"
    assert mapping.map("TRUCK") == "Vehicle"
    assert mapping.map("traffic_light") == "Vehicle"
    assert mapping.map("person") == "PERSON"


def test_a_name_that_is_written_exactly_so_comes_first() -> None:
    mapping = mapper(("Person", ""), ("person", ""), ("fallen-person", ""), ("fallen person", ""), ("CAR", ""))
    for name in ("Person", "person", "fallen-person", "fallen person"):
        assert mapping.map(name) == name
    assert mapping.map("fallen_person") == "fallen-person"
    assert mapping.map("car") == "CAR"


def test_predicted_values_are_read_from_the_config() -> None:
    labels = '<Labels name="l" toName="video"><Label value="V" predicted_values=" car,Bus ,, "/></Labels>'
    (control,) = parse_label_config(config(labels=labels)).video_controls
    assert control.labels[0].predicted_values == ("car", "Bus")
    assert LabelMapper(control.labels).map("bus") == "V"


def test_name_under_an_alias_is_found_and_the_alias_given() -> None:
    labels = '<Labels name="l" toName="video"><Label value="Person" alias="p"/></Labels>'
    (control,) = parse_label_config(config(labels=labels)).video_controls
    assert LabelMapper(control.labels).map("person") == "p"


def test_classes_without_a_label() -> None:
    mapping = mapper(("person", ""))
    assert [mapping.map(name) for name in ("dog", "person", "dog", "cat")] == [None, "person", None, None]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([("Object", "")], "Object"),
        ([("thing", "object")], "thing"),
        ([("car", ""), ("rest", "*")], "rest"),
        ([("rest", "*"), ("object", "")], "object"),
        ([("car", "")], None),
    ],
)
def test_a_motion_detectors_objects(labels: list[tuple[str, str]], expected: str | None) -> None:
    assert mapper(*labels).map("object") == expected


def test_table() -> None:
    mapping = mapper(("Vehicle", "car,lorry"), ("person", ""), classes=("person", "car", "dog"))
    assert mapping.table == {"person": "person", "car": "Vehicle"}


# -- descriptions that are added


ODD = """<View>
  <!-- <Label value="vest"/> -->
  <Labels name='label' toName="video"><Label value="person" hint="a > b / c"/>
    <label VALUE="v" alias='vest' clip_prompt="old vest" background="red" />
    <Label value="한글" hotkey="k"></Label></Labels>
  <Choices name="c" toName="video"><Choice value="vest"/></Choices>
  <Text name="text" value="$text"/><Labels name="words" toName="text"><Label value="verb"/></Labels>
  <Video name="video" value="$video"/><VideoRectangle name="box" toName="video"/>
</View>"""


@pytest.mark.parametrize(
    ("label", "before", "after"),
    [
        ("person", 'hint="a > b / c"/>', 'hint="a > b / c" prompt="a &amp; b|c"/>'),
        ("vest", 'clip_prompt="old vest" background="red" />', 'background="red" prompt="old vest|a &amp; b|c" />'),
        ("한글", 'hotkey="k"></Label>', 'hotkey="k" prompt="a &amp; b|c"></Label>'),
        ("<new>", "</Label></L", '</Label><Label value="&lt;new&gt;" prompt="a &amp; b|c"/></L'),
        ("verb", "</Label></L", '</Label><Label value="verb" prompt="a &amp; b|c"/></L'),
    ],
)
def test_descriptions_are_added_and_the_rest_stays(label: str, before: str, after: str) -> None:
    changed = with_prompts(ODD, label, ["a & b", "c"])
    assert changed == ODD.replace(before, after)
    (spec,) = [spec for spec in parse_label_config(changed).video_controls[0].labels if spec.value == label]
    assert label_prompts(spec)[-2:] == ("a & b", "c")
    assert with_prompts(changed, label, ["c"]) == changed, "it has them"
    assert with_prompts(f"\n{changed}\n", label, ["c"]) == f"\n{changed}\n"


def test_spaces_around_a_name_make_no_second_label() -> None:
    for typed in ("person ", "\tperson"):
        assert with_prompts(ODD, typed, ["c"]) == with_prompts(ODD, "person", ["c"])
    assert '<Label value="new" prompt="c"/>' in with_prompts(ODD, " new ", ["c"])
    # Label Studio has named its regions so.
    spaced = ODD.replace('value="person"', 'value=" person"')
    assert '<Label value=" person" hint="a > b / c" prompt="c"/>' in with_prompts(spaced, "person", ["c"])
    both = ODD.replace("<label", '<Label value=" person"/><label', 1)
    changed = parse_label_config(with_prompts(both, " person", ["c"])).video_controls[0].labels
    assert [(spec.value, label_prompts(spec)) for spec in changed[:2]] == [("person", ()), (" person", ("c",))]


def test_descriptions_that_no_config_can_hold() -> None:
    with pytest.raises(ConfigError, match="well-formed"):
        with_prompts(ODD, "person", ["bell \x07"])
    with pytest.raises(ConfigError, match="cannot be given a label"):
        with_prompts(ODD, "$field", ["vest"])
    with pytest.raises(ConfigError, match="cannot be given a label"):
        with_prompts(ODD.replace("<Labels", '<Labels name="none" toName="video"/><Labels', 1), "new", ["vest"])
    with pytest.raises(ConfigError, match="DOCTYPE"):
        with_prompts("<!DOCTYPE x>" + ODD, "person", ["vest"])
