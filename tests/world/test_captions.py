"""Captions: whatever is said can be read back; what cannot be read is reported."""

import random
from dataclasses import asdict
from itertools import product

import pytest

from vidlose.world import captions, scene
from vidlose.world.captions import canonical, caption, parse
from vidlose.world.scene import Attributes


def said(attributes: Attributes) -> dict[str, str]:
    return {name: value for name, value in asdict(attributes).items() if value is not None}


def test_every_caption_can_be_read_back():
    rng = random.Random(0)
    seen, left_out = set(), dict.fromkeys(scene.NAMES, 0)
    for index in range(6000):
        shown = scene.attributes(0, index)
        text = caption(shown, rng)
        parsed = parse(text)
        assert not parsed.unread, text
        assert said(parsed.attributes).items() <= said(shown).items(), text
        for name in asdict(shown).keys() - said(parsed.attributes):
            left_out[name] += 1
        seen.add(text)
    assert len(seen) > 5500
    assert left_out.pop("shape") == 0
    assert all(0.08 < count / 6000 < 0.16 for count in left_out.values()), left_out


def test_nothing_is_lost_where_nothing_is_left_out():
    rng = random.Random(1)
    for index in range(2000):
        shown = scene.attributes(1, index)
        text = caption(shown, rng, drop=0)
        assert parse(text).attributes == shown, text


def test_the_canonical_caption_of_everything():
    for values in product(*scene.CHOICES.values()):
        shown = Attributes(*values)
        assert parse(canonical(shown)) == captions.Parsed(shown, ())
    some = Attributes(colour="red", shape="ball", motion="bouncing", land="green")
    assert canonical(some) == "a red ball bouncing over green hills"
    assert parse(canonical(some)).attributes == some
    assert canonical(Attributes(camera="left")) == "the camera pans left"
    assert canonical(Attributes()) == ""


def test_a_caption_says_what_is_known():
    rng = random.Random(2)
    some = Attributes(colour="blue", shape="box")
    assert {parse(caption(some, rng, drop=0)).attributes for _ in range(20)} == {some}


def test_vocabulary():
    assert len(captions.VOCABULARY) == len(set(captions.VOCABULARY)) <= 80
    rng = random.Random(3)
    texts = [caption(scene.attributes(2, index), rng) for index in range(3000)]
    assert {word for text in texts for word in text.replace(",", " ,").split()} == set(captions.VOCABULARY)


@pytest.mark.parametrize(
    ("text", "attributes", "unread"),
    [
        ("A Red Ball, bouncing; over GREEN hills!", {"colour": "red", "shape": "ball"}, ()),
        ("a dog on the moon", {}, ("dog", "moon")),
        ("a green ball over the desert", {"land": "desert", "shape": "ball"}, ("green",)),
        ("a red ball and a blue box", {"colour": "red", "shape": "ball"}, ("and", "blue", "box")),
        ("a ball drifts, the camera pans", {"shape": "ball", "motion": None, "camera": None}, ("drifts", "pans")),
        ("a ball drifting left as the camera pans right", {"motion": "drifting left", "camera": "right"}, ()),
        ("fast pan left, a ball drifting right", {"motion": "drifting right", "camera": "fast left"}, ()),
        ("a ball drifting fast left, the camera pans right", {"motion": "drifting left", "camera": "right"}, ("fast",)),
        ("the camera pans left and right", {"camera": "left"}, ("and", "right")),
        ("", {}, ()),
        ("\udcff ½ 日本", {}, ("½", "日本")),
    ],
)
def test_prompts_of_users(text, attributes, unread):
    parsed = parse(text)
    assert {name: getattr(parsed.attributes, name) for name in attributes} == attributes
    assert parsed.unread == unread
