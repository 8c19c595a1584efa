"""Clips in words, and words as attributes: a small grammar with synonyms and changing word order, and its inverse."""

import random
import re
from dataclasses import asdict, dataclass

from vidlose.world.scene import Attributes

Phrases = dict[str, tuple[str, ...]]

# The first of each is the canonical one.
COLOURS: Phrases = {
    "red": ("red", "crimson"),
    "yellow": ("yellow", "golden"),
    "teal": ("teal", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
}
SHAPES: Phrases = {"ball": ("ball", "sphere"), "box": ("box", "cube"), "triangle": ("triangle", "pyramid")}
MOTIONS: Phrases = {
    "bouncing": ("bouncing", "bounces"),
    "floating": ("floating", "floats", "hovering", "hovers"),
    "drifting left": ("drifting left", "drifts left", "drifting to the left", "drifts to the left"),
    "drifting right": ("drifting right", "drifts right", "drifting to the right", "drifts to the right"),
    "resting": ("resting", "rests", "lying", "lies"),
}
LANDS: Phrases = {
    "green": ("green hills", "grassy hills", "green meadows"),
    "desert": ("desert dunes", "the desert", "sandy hills", "sandy dunes"),
    "snowy": ("snowy mountains", "snowy hills", "the snow"),
}
SKIES: Phrases = {
    "day": ("by day", "in daylight", "under a sunny sky"),
    "sunset": ("at sunset", "at dusk", "under a sunset sky"),
    "night": ("at night", "by night", "under the stars", "under a starry sky"),
}
CAMERAS: Phrases = {
    "still": ("the camera is still", "static camera", "camera still", "still camera"),
    **{
        side: (f"the camera pans {side}", f"the camera pans slowly to the {side}", f"camera panning {side} slowly")
        + (f"camera panning {side}", f"slow pan to the {side}", f"pan {side}")
        for side in ("left", "right")
    },
    **{
        f"fast {side}": (f"the camera pans fast to the {side}", f"the camera pans quickly {side}")
        + (f"camera panning {side} fast", f"fast pan to the {side}", f"fast pan {side}")
        for side in ("left", "right")
    },
}
GLUE = ("a", "over", "on", ",", "while", "as", "with")

# What a word says by itself; those that need company are read below.
SAYS: dict[str, tuple[str, str]] = {
    **{word: ("colour", colour) for colour, words in COLOURS.items() for word in words},
    **{word: ("shape", shape) for shape, words in SHAPES.items() for word in words},
    **{word: ("motion", "bouncing") for word in MOTIONS["bouncing"]},
    **{word: ("motion", "floating") for word in MOTIONS["floating"]},
    **{word: ("motion", "resting") for word in MOTIONS["resting"]},
    **dict.fromkeys(("green", "grassy", "meadows"), ("land", "green")),
    **dict.fromkeys(("desert", "sandy", "dunes"), ("land", "desert")),
    **dict.fromkeys(("snowy", "snow", "mountains"), ("land", "snowy")),
    **dict.fromkeys(("day", "daylight", "sunny"), ("sky", "day")),
    **dict.fromkeys(("sunset", "dusk"), ("sky", "sunset")),
    **dict.fromkeys(("night", "stars", "starry"), ("sky", "night")),
    **dict.fromkeys(("still", "static"), ("camera", "still")),
}
DRIFTS = ("drifting", "drifts")
PANS = ("pan", "pans", "panning")
SIDES = ("left", "right")
SPEEDS = {"slow": "", "slowly": "", "fast": "fast ", "quickly": "fast "}
PHRASES = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "land": LANDS, "sky": SKIES, "camera": CAMERAS}


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*|,", text.lower())


# Every word of every caption, and the comma, in a fixed order.
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {
            word
            for table in PHRASES.values()
            for phrases in table.values()
            for phrase in phrases
            for word in _words(phrase)
        }.union(GLUE)
    )
)
FILLERS = frozenset(VOCABULARY) - {*SAYS, *DRIFTS, *PANS, *SIDES, *SPEEDS}


@dataclass(frozen=True)
class Parsed:
    """What a text says. unread: its words, in order, that are unknown, contradict earlier ones or lack a partner."""

    attributes: Attributes
    unread: tuple[str, ...]


def canonical(said: Attributes) -> str:
    """The plain caption: "a red ball bouncing over green hills at sunset, the camera pans left".

    It leaves out what is None; without any object, it is the land's alone.
    """
    phrase = {name: PHRASES[name][value][0] for name, value in asdict(said).items() if value is not None}
    land = f"{_over(said)} {phrase['land']}" if "land" in phrase else ""
    core = _join(_thing(phrase), phrase.get("motion", ""), land, phrase.get("sky", ""))
    return ", ".join(part for part in (core, phrase.get("camera", "")) if part)


def caption(shown: Attributes, rng: random.Random, drop: float = 0.12) -> str:
    """One of the many ways to say it; each clause but the shape is left out with probability `drop`."""
    kept = {
        name: value
        for name, value in asdict(shown).items()
        if value is not None and (name == "shape" or rng.random() >= drop)
    }
    phrase = {name: rng.choice(PHRASES[name][value]) for name, value in kept.items()}
    core = _core(phrase, _over(shown), rng)
    if "camera" not in phrase:
        return core
    view, finite = phrase["camera"], phrase["camera"].startswith("the camera")
    article = "a " if view.startswith(("static", "still", "slow", "fast", "pan")) else ""
    return rng.choice(
        [
            f"{core}, {view}",
            f"{core} while {view}" if finite else f"{core} with {article}{view}",
            f"{view} as {core}" if finite else f"{view}, {core}",
        ]
    )


def parse(text: str) -> Parsed:
    """The attributes a text speaks of, in any order of its clauses; the first to speak of one counts."""
    words = _words(text)
    found: dict[str, str] = {}
    read = {at for at, word in enumerate(words) if word in FILLERS}
    for places, (name, value) in sorted({**_plain(words), **_sided(words)}.items()):
        if found.setdefault(name, value) == value:
            read.update(places)
    return Parsed(Attributes(**found), tuple(word for at, word in enumerate(words) if at not in read))


Claims = dict[tuple[int, ...], tuple[str, str]]  # places of words -> the attribute they speak of, and its value


def _plain(words: list[str]) -> Claims:
    """What words say by themselves; but no object is green, so before a shape that is not the land's."""
    following = [*words[1:], ""]
    return {
        (at,): SAYS[word]
        for at, word in enumerate(words)
        if word in SAYS and not (word == "green" and SAYS.get(following[at], ("",))[0] == "shape")
    }


def _sided(words: list[str]) -> Claims:
    """What verbs say together with the side that follows them, and pans with their speed too."""
    adverbs = [at for at, word in enumerate(words) if word in SPEEDS and _moves_camera(words, at)]
    claims: Claims = {}
    verb: int | None = None
    for at, word in enumerate(words):
        if word in DRIFTS + PANS:
            verb = at
        elif word in SIDES and verb is not None:
            if words[verb] in PANS:
                speed = SPEEDS[words[adverbs[0]]] if adverbs else ""
                claims[(verb, at, *adverbs)] = "camera", speed + word
            else:
                claims[(verb, at)] = "motion", f"drifting {word}"
            verb = None
    return claims


def _moves_camera(words: list[str], at: int) -> bool:
    """Whether the verb nearest to a word of speed is a pan: objects have but one speed."""
    verbs = [i for i, word in enumerate(words) if word in DRIFTS + PANS or SAYS.get(word, ("",))[0] == "motion"]
    return bool(verbs) and words[min(verbs, key=lambda verb: abs(verb - at))] in PANS


def _core(phrase: dict[str, str], over: str, rng: random.Random) -> str:
    """All but the camera; the sky or the land may come first."""
    thing, motion, sky = _thing(phrase), phrase.get("motion", ""), phrase.get("sky", "")
    land = f"{over} {phrase['land']}" if "land" in phrase else ""
    orders = [_join(thing, motion, land, sky), _join(thing, motion, sky, land)]
    if sky:
        orders.append(f"{sky}, {_join(thing, motion, land)}")
    if land:
        orders.append(f"{land}, {_join(thing, motion, sky)}")
    return rng.choice(orders)


def _thing(phrase: dict[str, str]) -> str:
    return _join("a", phrase.get("colour", ""), phrase["shape"]) if "shape" in phrase else ""


def _over(shown: Attributes) -> str:
    return "on" if shown.motion == "resting" else "over"


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
