"""Guards act on curves that go wrong, leave ordinary ones alone, and remember everything."""

import json
import math
import random
from dataclasses import replace

import pytest

from vidlose.config import StabilityConfig
from vidlose.training.guards import Freeze, GiveUp, Guards, Lower, Restore, Skip

CONFIG = StabilityConfig()
BLOCKS = ("down.0.0", "middle", "up.1.0")


def usual_loss(level: float) -> float:
    """Of noise prediction: tens of times larger for clean frames than for noise."""
    return 0.02 + 0.9 * math.exp(-12 * level)


class Run:
    """A seeded run: numbers as a healthy one gives them, but for what a test changes."""

    def __init__(self, guards: Guards, batch: int = 16, spread: float = 0.3) -> None:
        self.guards, self.batch, self.spread = guards, batch, spread
        self.source = random.Random(0)

    def numbers(self, loss: float = 1.0, norms: dict[str, float] | None = None):
        levels = [self.source.random() for _ in range(self.batch)]
        typical = sum(map(usual_loss, levels)) / self.batch
        gradients = {b: typical**0.5 * math.exp(self.source.gauss(0, self.spread)) for b in BLOCKS}
        gradients = {block: norm * (norms or {}).get(block, 1.0) for block, norm in gradients.items()}
        return loss * typical * math.exp(self.source.gauss(0, 0.2)), gradients, levels

    def step(self, at: int, loss: float = 1.0, norms: dict[str, float] | None = None):
        return self.guards.judge(at, *self.numbers(loss, norms))

    def healthy(self, steps: range):
        return [action for at in steps for action in self.step(at)]


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_a_healthy_run_is_left_alone(batch):
    """Losses of single samples vary thirtyfold with their noise level; that is no spike."""
    guards = Guards(CONFIG)
    guards.keep(0)
    actions = Run(guards, batch, spread=0.4).healthy(range(3000))
    assert len(actions) <= 9 and all(isinstance(action, Skip) for action in actions)
    assert all(guards.lr_factor(block) == 1 for block in BLOCKS)


def test_a_slow_drift_is_no_spike():
    """The loss triples and gradients grow tenfold, over hundreds of steps."""
    guards = Guards(CONFIG)
    run = Run(guards)
    actions = [
        a for at in range(1000) for a in run.step(at, 3 ** (at / 1000), dict.fromkeys(BLOCKS, 10 ** (at / 1000)))
    ]
    assert len(actions) <= 2


def test_nothing_is_unusual_at_first():
    run = Run(Guards(CONFIG))
    assert [action for at in range(20) for action in run.step(at, loss=1 + 30 * (at % 2))] == []


def test_spikes_are_skipped_and_their_block_is_lowered():
    guards = Guards(CONFIG)
    run = Run(guards)
    assert run.healthy(range(150)) == []
    (skip,) = run.step(150, norms={"up.1.0": 60})
    assert isinstance(skip, Skip) and "times its median" in skip.cause
    assert run.healthy(range(151, 160)) == []
    (skip,) = run.step(160, loss=6)
    assert skip == Skip(skip.cause) and "the loss is" in skip.cause and "times what is usual" in skip.cause
    assert run.healthy(range(161, 170)) == []
    skip, lower = run.step(170, norms={"up.1.0": 60})
    assert isinstance(skip, Skip)
    assert lower == Lower("up.1.0", 0.5, True, lower.cause)
    assert lower.cause == "3 steps skipped within 50, the gradient most unusual in up.1.0"
    assert guards.lr_factor("up.1.0") == 0.5 and guards.lr_factor("middle") == 1
    assert run.healthy(range(171, 180)) == []
    assert len(run.step(180, norms={"up.1.0": 60})) == 1  # counted anew


def test_spikes_far_apart_lower_nothing():
    guards = Guards(CONFIG)
    run = Run(guards)
    run.healthy(range(100))
    for at in (100, 126, 152, 178):
        assert len(run.step(at, norms={"middle": 60})) == 1
        run.healthy(range(at + 1, at + 26))
    assert guards.lr_factor("middle") == 1


def test_skipping_does_not_go_on_forever():
    """What stays five times as large becomes usual."""
    guards = Guards(replace(CONFIG, spike_limit=10**6))
    run = Run(guards)
    run.healthy(range(150))
    skips = [bool(run.step(at, loss=5, norms=dict.fromkeys(BLOCKS, 5))) for at in range(150, 450)]
    assert all(skips[:5]) and not any(skips[-100:])


def entropy_actions(guards: Guards, curve, steps: range):
    return [(at, action) for at in steps for action in guards.watch(at, {"up.1.0": curve(at), "middle": 0.9})]


def test_collapse_lowers_the_block():
    guards = Guards(CONFIG)
    found = entropy_actions(
        guards, lambda at: 0.9 if at < 400 else 0.9 * math.exp(-(at - 400) / 100), range(0, 600, 10)
    )
    at, lower = found[0]
    assert 460 < at < 500
    assert lower == Lower("up.1.0", 0.3, False, lower.cause)
    assert lower.cause.startswith("attention entropy of up.1.0 fell from 0.900 to 0.4")
    assert guards.lr_factor("up.1.0") == pytest.approx(0.3 ** len(found)) and guards.lr_factor("middle") == 1
    assert len(found) == 2  # halved once more


def test_collapse_may_freeze_instead():
    guards = Guards(replace(CONFIG, collapse_freeze=True))
    found = entropy_actions(guards, lambda at: 0.9 * math.exp(-at / 50), range(0, 300, 10))
    (at, freeze), *more = found
    assert at == 40 and isinstance(freeze, Freeze) and not more and guards.lr_factor("up.1.0") == 0


@pytest.mark.parametrize(
    "curve",
    [
        lambda at: 0.9 * math.exp(-at / 600),  # steady: far below its start in the end
        lambda at: 0.9 - 0.4 * min(at, 1000) / 1000,
        lambda at: 0.9 if at < 500 else 0.5,  # a sudden fall, not by half
        lambda at: 0.6 + 0.15 * math.sin(at / 20),
    ],
)
def test_entropy_may_fall(curve):
    assert entropy_actions(Guards(CONFIG), curve, range(0, 3000, 10)) == []


def test_a_fall_no_faster_than_ever_is_no_collapse():
    """Halving within the span is not enough: it has to be faster than the run's own pace."""
    curve = {"steady": lambda at: 0.9 * 0.4 ** (at / 200), "broken": lambda at: 0.9 * 0.4 ** (max(0, at - 500) / 200)}
    guards = Guards(replace(CONFIG, collapse_span=200))
    guards._entropies["up.1.0"] = [(0, 0.9)]
    assert entropy_actions(guards, curve["steady"], range(210, 1500, 10)) == []
    assert entropy_actions(Guards(CONFIG), curve["broken"], range(0, 800, 10))


def test_a_number_that_is_not_finite_restores_until_it_gives_up():
    guards = Guards(CONFIG)
    run = Run(guards)
    guards.keep(0)
    for at in range(130):
        if at and guards.due(at):
            guards.keep(at)
        assert run.step(at) == []
    assert guards.ring == [0, 50, 100]
    loss, gradients, levels = run.numbers()
    assert guards.judge(130, math.nan, gradients, levels) == [Restore(50, 0.5, 1, "the loss is not finite")]
    assert guards.ring == [0, 50] and guards.lr_factor("middle") == 0.5
    gradients["middle"] = math.inf
    (second,) = guards.judge(60, loss, gradients, levels)
    assert second == Restore(0, 0.5, 2, "the gradient of middle is not finite")  # 50 is too young
    (third,) = guards.judge(7, loss, gradients, levels)
    assert third == Restore(0, 0.5, 3, third.cause)  # what was loaded is good at any age
    (last,) = guards.judge(8, loss, gradients, levels)
    assert last == GiveUp(0, "the gradient of middle is not finite, after 3 restored states")
    assert Guards(CONFIG).judge(0, math.nan, {}, [0.5]) == [
        GiveUp(None, "the loss is not finite, after 0 restored states")
    ]


def test_a_blow_up_restores():
    guards = Guards(CONFIG)
    run = Run(guards)
    guards.keep(0)
    run.healthy(range(100))
    for at in range(100, 119):
        assert not any(isinstance(action, Restore) for action in run.step(at, loss=30))
    (restore,) = run.step(119, loss=30)
    assert restore == Restore(0, 0.5, 1, "the loss was above 10 times what is usual for 20 steps")
    for at in range(19):  # interrupted, it counts anew
        run.step(at, loss=30)
    run.step(19)
    assert not any(isinstance(action, Restore) for at in range(20, 39) for action in run.step(at, loss=30))


def test_states_are_kept_after_quiet_steps_only():
    guards = Guards(CONFIG)
    run = Run(guards)
    assert guards.due(0)
    guards.keep(0)
    assert not guards.due(0) and not guards.due(49) and guards.due(50)
    run.healthy(range(120))
    run.step(120, norms={"middle": 100})
    assert [at for at in range(121, 320) if guards.due(at)] == [250, 300]
    for at in (250, 300, 350):
        guards.keep(at)
    assert guards.ring == [250, 300, 350]


@pytest.mark.parametrize("cut", [60, 155, 210, 264])
def test_a_resumed_run_decides_alike(cut):
    """Through JSON, in the middle of spikes, falls and a blow-up."""

    def run(guards: Guards, steps: range, source: Run):
        found = []
        for at in steps:
            if guards.due(at):
                guards.keep(at)
            spike = {"up.1.0": 80.0} if at in (150, 160, 170) else None
            found.append(guards.judge(at, *source.numbers(40.0 if at >= 250 else 1.0, spike)))
            if at % 10 == 0:
                found.append(guards.watch(at, {"middle": 0.9 * math.exp(-max(0, at - 180) / 30)}))
        return found

    whole = Guards(CONFIG)
    source = Run(whole)
    run(whole, range(cut), source)
    resumed, again = Guards(CONFIG), Run(whole)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    again.source.setstate(source.source.getstate())
    expected = run(whole, range(cut, 300), source)
    assert run(resumed, range(cut, 300), again) == expected
    assert resumed.state_dict() == whole.state_dict()
    kinds = {type(action) for actions in expected for action in actions}
    assert Restore in kinds and Skip in kinds
