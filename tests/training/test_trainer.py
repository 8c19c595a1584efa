"""One training step and the state between steps: against sums by hand, in parts and as a whole."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.marks import slow
from vidlose.checkpoints import random
from vidlose.config import FinetuneConfig
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import NonFinite
from vidlose.parallel import Processes
from vidlose.training import levels
from vidlose.training.draws import draw, generator
from vidlose.training.guards import Restore, Skip
from vidlose.training.rates import RATES, factor
from vidlose.training.stability import Tools
from vidlose.training.trainable import rates, select
from vidlose.training.trainer import Batch, LossScale, State, Trainer, fit

FRAMES, SIDE, WORDS = 4, 4, 3
SHARED = levels.shared()
AT = (150, 450, 750)


@pytest.fixture(autouse=True)
def small(shallow):
    """One thread, and networks of two levels: there are many steps to take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def states(captions: Sequence[str]) -> Tensor:
    return torch.stack([torch.randn(WORDS, 32, generator=generator(0, "text", text)) for text in captions])


def trainer(family: str = "animatediff-v2", **said: Any) -> Trainer:
    config = FinetuneConfig(**{"model": "random", "warmup_steps": 0, **said})
    model = random.load(family)
    model.unet.requires_grad_(False)
    tools = Tools(model.unet, config, config.blocks, config.steps)
    chosen = select(model.unet, config.blocks, config.train, rank=config.lora_rank, seed=config.seed)
    model.unet.train()
    model.unet.gradient_checkpointing = config.gradient_checkpointing
    return Trainer(
        model.unet,
        tools,
        config.prediction or "eps",
        model.schedule.zero_terminal() if config.zero_terminal_snr else model.schedule,
        chosen.blocks,
        rates(chosen, config),
        states,
        config,
        device=torch.device("cpu"),
        dtype={"auto": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.dtype],
        processes=Processes(),
    )


def batch(
    *numbers: int,
    frames: int = FRAMES,
    side: int = SIDE,
    clips: int | None = None,
    kind: levels.Levels = SHARED,
) -> Batch:
    """Samples of these numbers, of a data set of so many clips that move."""
    which = [number % clips if clips else number for number in numbers]
    mean = torch.stack([torch.randn(4, 1, side, side, generator=generator(0, "clip", clip)) for clip in which])
    drift = torch.stack([torch.randn(4, 1, side, side, generator=generator(0, "drift", clip)) for clip in which])
    mean = mean + drift * torch.arange(frames)[:, None, None] / frames
    captions = [f"clip {clip}" for clip in which]
    draws = draw(0, list(numbers), (4, frames, side, side), kind, 1000)
    return Batch(numbers, mean, torch.full_like(mean, 0.1), captions, states(captions), draws, fps=8.0)


def weights(of: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in of.trained.items()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def steps(trainer: Trainer, first: int, last: int, size: int = 1, clips: int | None = None) -> list[dict[str, float]]:
    return [trainer.step([batch(*range(at * size, (at + 1) * size), clips=clips)])[0] for at in range(first, last)]


# --- training


@pytest.mark.parametrize("family", ["animatediff-v2", slow("videocrafter2")])
def test_the_loss_falls(family):
    of = trainer(family, steps=60, learning_rate=5e-3, lr_schedule="cosine", caption_dropout=0.0)
    held = [batch(*range(4))]  # of the same clips, at other noise
    before = of.evaluate(held, AT)
    rows = steps(of, 0, 60, clips=4)
    after = of.evaluate(held, AT)
    for name in ("held_out/mse", "held_out/diff", *(f"held_out/mse@{at}" for at in AT)):
        assert after[name] < 0.9 * before[name], name
    first, last = (sum(row["loss"] for row in part) / 15 for part in (rows[:15], rows[-15:]))
    assert last < 0.85 * first


@pytest.mark.parametrize("family", ["animatediff-v2", "videocrafter2"])
@pytest.mark.parametrize(
    ("blocks", "train"), [("down,mid", "motion"), ("up.1", "full"), ("mid", "motion-lora"), ("all", "spatial")]
)
def test_nothing_else_changes_by_one_bit(family, blocks, train):
    of = trainer(family, blocks=blocks, train=train, learning_rate=1e-2)
    before = {name: x.clone() for name, x in of.unet.state_dict().items()}
    steps(of, 0, 2)
    changed = {name for name, x in of.unet.state_dict().items() if not torch.equal(x, before[name])}
    assert changed <= of.trained.keys()
    assert len(changed) > 0.9 * len(of.trained)  # positions beyond the clip have no gradient


def test_a_step_in_parts_is_the_whole():
    said = {"blocks": "down,mid,up.0"}  # up.1 ends in biases that a norm takes away again
    whole, parts = trainer(batch_size=4, **said), trainer(batch_size=2, accumulate=2, **said)
    for step in range(3):
        # Large enough that the coarsest level is not one pixel: a group norm of two numbers turns rounding into signs.
        one, first, second = (
            batch(*(4 * step + i for i in part), frames=2, side=16) for part in (range(4), (0, 1), (2, 3))
        )
        one, _ = whole.step([one])
        other, _ = parts.step([first, second])
        for name in ("loss", "mse", "diff", "grad_norm", "grad_norm/middle"):
            assert other[name] == pytest.approx(one[name], rel=1e-5), name
    assert largest_difference(weights(whole), weights(parts)) < 1e-6


def test_pictures_and_clips_share_a_step():
    mixed, alone = trainer(batch_size=2), trainer()
    picture, clip = batch(1, frames=1), batch(0)
    losses = [alone.losses(one).sample.item() for one in (picture, clip)]
    found, _ = mixed.step([picture, clip])
    assert found["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert 0 < found["entropy/middle"] <= 1  # of the clip
    found, _ = trainer().step([picture])
    assert math.isfinite(found["loss"]) and "entropy/middle" not in found


def test_pieces_are_seen_apart():
    """A clip in pieces of one frame is as many pictures; in one piece it is itself."""
    of, whole = trainer(), batch(0, 1)
    apart = replace(whole, piece=1)
    assert torch.equal(of.losses(replace(whole, piece=FRAMES)).sample, of.losses(whole).sample)
    assert (of.losses(apart).sample - of.losses(whole).sample).abs().min() > 1e-6
    one = {"mean": whole.mean[:, :, :1], "std": whole.std[:, :, :1]}
    draws = {name: getattr(whole.draws, name)[:, :, :1] for name in ("noise", "posterior")}
    alone = replace(whole, **one, draws=replace(whole.draws, **draws, timestep=whole.draws.timestep[:, :1]))
    moved = replace(apart, mean=apart.mean.clone())
    moved.mean[:, :, 1:] += 1  # what other pieces show changes nothing in the first
    seen = []
    of.unet.conv_out.register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    for one_batch in (alone, apart, moved):
        of.losses(one_batch)
    picture, first, other = seen[0], seen[1][::FRAMES], seen[2][::FRAMES]
    torch.testing.assert_close(first, picture, atol=1e-5, rtol=0)
    torch.testing.assert_close(first, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["animatediff-v2", "videocrafter2"])
def test_gradient_checkpointing_gives_the_same_gradients(family):
    found = []
    for wanted in (False, True):
        of = trainer(family, gradient_checkpointing=wanted, max_grad_norm=0, entropy_hinge=10.0, entropy_slack=0.0)
        steps(of, 0, 2, size=2)
        found.append({name: p.grad for name, p in of.trained.items()})
    assert largest_difference(*found) < 1e-6


def test_what_layers_draw_is_the_sample_s_own():
    """VideoCrafter2 has dropout, which knows torch's global numbers only."""
    found = []
    for seed in (1, 2):
        of = trainer("videocrafter2")
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        steps(of, 0, 2)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights(of))
    assert largest_difference(*found) == 0
    of.unet.eval()
    assert of.losses(batch(5)).total != trainer("videocrafter2").losses(batch(5)).total  # it is at work


# --- the parts of a step, by hand


def answer(of: Trainer, monkeypatch: pytest.MonkeyPatch, output: Tensor | float) -> list[tuple[Tensor, ...]]:
    """Make the network say this; what it is asked, (x, timestep, text, fps) each."""
    asked = []

    def forward(x: Tensor, timestep: Tensor, text: Any, fps: Tensor, **_: Any) -> Tensor:
        asked.append((x, timestep, text, fps))
        return torch.zeros_like(x) + output

    monkeypatch.setattr(of.unet, "forward", forward)
    monkeypatch.setattr(of.unet, "text_keys", lambda text: text)
    return asked


@pytest.mark.parametrize("kind", [levels.shared(), levels.independent(), levels.diagonal(2)])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_what_the_network_is_to_say(monkeypatch, prediction, kind):
    of = trainer(prediction=prediction, loss="mse", weighting="uniform", zero_terminal_snr=prediction == "v")
    asked = answer(of, monkeypatch, 0.0)
    one = batch(3, 4, kind=kind)
    found = of.losses(one)
    ((x, timestep, text, fps),) = asked
    assert torch.equal(timestep, one.draws.timestep) and torch.equal(text, states(one.captions))
    assert fps.tolist() == [8, 8]
    abar = random.load().schedule.abar
    if prediction == "v":
        abar = NoiseSchedule(abar).zero_terminal().abar
        assert abar[-1] == 0
    alpha, sigma = (power.sqrt()[timestep][:, None, :, None, None].float() for power in (abar, 1 - abar))
    x0 = one.mean + one.std * one.draws.posterior
    noise = one.draws.noise
    torch.testing.assert_close(x, alpha * x0 + sigma * noise)
    target = {"eps": noise, "v": alpha * noise - sigma * x0, "x0": x0}[prediction]
    torch.testing.assert_close(found.sample, target.square().mean((1, 2, 3, 4)))
    torch.testing.assert_close(found.mse, found.sample)


def test_the_last_step_of_a_zero_terminal_schedule_is_finite():
    for space in ("native", "x0", "eps"):
        of = trainer(prediction="v", zero_terminal_snr=True, loss_space=space)
        assert of.losses(batch(0), torch.full((1, FRAMES), 999)).total.isfinite()


def test_captions_are_dropped_by_the_share_and_the_sample_s_draw(monkeypatch):
    of = trainer(caption_dropout=0.3)
    asked = answer(of, monkeypatch, 0.0)
    many = batch(*range(300))
    of.losses(many)
    null = states([""])[0]
    dropped = torch.stack([torch.equal(text, null) * torch.ones(()) for text in asked[0][2]]).bool()
    assert torch.equal(dropped, many.draws.drop < 0.3) and 0.24 < dropped.float().mean() < 0.36
    assert torch.equal(asked[0][2][~dropped], many.text[~dropped])
    of.losses(replace(many, text=None))  # encoded in the step
    assert torch.equal(asked[1][2], asked[0][2])
    of.evaluate([replace(many, draws=replace(many.draws, drop=torch.ones(300)))], [500])
    assert torch.equal(asked[2][2], many.text)


def test_mix_rises_with_the_run(monkeypatch):
    """Measured parts, mixed by hand."""
    of = trainer(loss="mix", mix_warmup=0.5, mix_weight=0.8, steps=4, anchor="expected", learning_rate=1e-9)
    for step, share in enumerate((0.0, 0.4, 0.8, 0.8)):
        found, _ = of.step([batch(step)])
        assert found["loss"] == pytest.approx((1 - share) * found["mse"] + share * found["diff"], rel=1e-5)


def test_the_average_by_hand():
    of = trainer(ema=0.2, learning_rate=1e-2)
    average = weights(of)
    for step in range(3):
        steps(of, step, step + 1)
        decay = min(0.2, (1 + step) / (10 + step))  # 0.1, 2/11, 0.2
        average = {name: decay * average[name] + (1 - decay) * now for name, now in weights(of).items()}
    assert largest_difference(of.average, average) < 1e-6
    trained = weights(of)
    with of.averaged():
        assert largest_difference(weights(of), average) < 1e-6
        measured = of.losses(batch(7)).total
    assert largest_difference(weights(of), trained) == 0
    assert of.losses(batch(7)).total != measured
    assert of.evaluate([batch(7)], [500]) != trainer().evaluate([batch(7)], [500])


def test_rates_by_hand():
    assert [factor(RATES["constant"], step, 10, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [factor(RATES["linear"], step, 6, 2) for step in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    cosine = [factor(RATES["cosine"], step, 4, 0) for step in range(4)]
    assert cosine == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert [factor(RATES["trapezoid"], step, 10, 0) for step in range(10)] == pytest.approx([1] * 9 + [0.5])
    of = trainer(
        steps=6, warmup_steps=2, lr_schedule="linear", learning_rate=1e-3, block_lr=["up=0.1"], max_grad_norm=0
    )
    before = weights(of)
    (first, second) = steps(of, 0, 2)
    assert (first["lr"], second["lr"]) == pytest.approx((0.5e-3, 1e-3))
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in of.trained.items()}
    # Adam's first two steps are of the rate's size.
    assert moved["middle.temporal.proj_out.weight"] == pytest.approx(1.5e-3, rel=0.05)
    assert moved["up.1.0.temporal.proj_out.weight"] == pytest.approx(1.5e-4, rel=0.05)


def test_gradients_are_clipped_to_their_norm(monkeypatch):
    of = trainer(max_grad_norm=0.01)
    found, _ = of.step([batch(0)])
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in of.trained.values()))
    assert found["grad_norm"] > 0.02 and norm == pytest.approx(0.01, rel=1e-4)
    assert found["grad_norm"] == pytest.approx(
        math.sqrt(sum(found[f"grad_norm/{block}"] ** 2 for block in of.blocks)), rel=1e-5
    )


# --- precision


def test_bf16_is_close_and_keeps_what_trains_in_fp32():
    exact, rough = trainer(), trainer(dtype="bf16")
    for p in rough.unet.parameters():
        if not p.requires_grad:
            p.data = p.data.bfloat16()
    rows = [steps(of, 0, 3) for of in (exact, rough)]
    for one, other in zip(*rows, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02) and other["loss"] != one["loss"]
    assert {p.dtype for p in rough.trained.values()} == {torch.float32}
    assert 0 < largest_difference(weights(exact), weights(rough)) < 1e-3


def test_fp16_scales_its_loss(monkeypatch):
    scale = LossScale(8.0)
    for finite in [True] * 2000 + [False] + [True] * 1999:
        scale.note(finite)
    assert scale == LossScale(8.0, 1999)  # doubled, halved, soon doubled again
    of = trainer(dtype="fp16", learning_rate=1e-3)
    before = weights(of)
    of.loss_scale.scale = 2.0**60  # no gradient can hold it
    (_, actions), halved = of.step([batch(0)]), of.loss_scale.scale
    assert halved == 2.0**59 and [type(action) for action in actions] == [Skip] and "fp16" in actions[0].cause
    assert largest_difference(weights(of), before) == 0 and of.done == 1
    of.loss_scale.scale = 2.0**4
    found, actions = of.step([batch(0)])
    assert actions == [] and largest_difference(weights(of), before) > 0
    assert found["loss"] == pytest.approx(trainer().step([batch(0)])[0]["loss"], rel=0.02)


# --- what is remembered


def copied(state: State) -> State:
    return {name: x.clone() for name, x in state[0].items()}, state[1]


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("animatediff-v2", {"ema": 0.9, "optimizer": "muon"}),
        slow("videocrafter2", {"ema": 0.9, "lr_schedule": "cosine", "anchor": "batch"}),
        slow("animatediff-v2", {"train": "motion-lora", "lora_rank": 2}),
        ("animatediff-v2", {"sigma_reparam": True, "skip_scale": "annealed", "entropy_hinge": 1.0}),
        slow("animatediff-v2", {"qk_clip_floor": 0.01, "qk_clip_factor": 1.01}),
    ],
)
def test_a_state_continues_bit_for_bit(family, said):
    said = {"learning_rate": 1e-2, "probe_every": 1, "steps": 5, **said}
    whole = trainer(family, **said)
    rows = steps(whole, 0, 5)
    first = trainer(family, **said)
    steps(first, 0, 3)
    state = copied(first.state())
    again = trainer(family, **said)
    again.restore(state)
    more = steps(again, 3, 5)
    for name, x in whole.state()[0].items():
        assert torch.equal(again.state()[0][name], x), name
    assert again.state()[1] == whole.state()[1]
    assert [{**row, "seconds": 0} for row in more] == [{**row, "seconds": 0} for row in rows[3:]]


def test_actions_of_the_guards_are_carried_out(monkeypatch):
    of = trainer(learning_rate=1e-2)
    steps(of, 0, 1)
    before, block = weights(of), "up.1.0"
    judge = of.guards.judge
    monkeypatch.setattr(of.guards, "judge", lambda *_: [Skip("a test"), of.guards._lower(block, 0.5, True, "a test")])
    _, (_, lower) = of.step([batch(1)])
    assert largest_difference(weights(of), before) == 0 and of.done == 2 and lower.block == block
    assert of.optimizer.scale[block] == 0.5 and of.optimizer.scale["middle"] == 1
    moments = {path.rpartition("/")[0] for path in of.optimizer.state()}
    assert moments == of.trained.keys() - of.blocks[block].keys()
    monkeypatch.setattr(of.guards, "judge", judge)
    steps(of, 2, 3)
    assert largest_difference(weights(of), before) > 0


class Shelf:
    """Good states in memory, and the places that batches were asked for."""

    def __init__(self, of: Trainer, nan: Callable[[int], bool] = lambda number: False) -> None:
        self.of, self.nan = of, nan
        self.states: dict[int, State] = {}
        self.places: list[int] = []

    def batches(self, place: int):
        self.places.append(place)
        while True:
            one = batch(place)
            yield [replace(one, mean=one.mean * math.nan) if self.nan(place) else one]
            place += 1

    def run(self, stop: Callable[[], bool] = lambda: False):
        return list(fit(self.of, self.batches, keep=self.keep, recall=self.states.__getitem__, stop=stop))

    def keep(self, step: int, state: State) -> None:
        self.states[step] = copied(state)


def test_a_loss_that_is_no_number_brings_an_older_state_back():
    of = trainer(steps=8, ring_every=2, ring_age=2, ring_quiet=1)
    shelf = Shelf(of, nan=lambda number: number == 5)
    rows = shelf.run()
    ((restore,),) = [actions for _, actions in rows if actions]
    assert isinstance(restore, Restore) and restore.step == 2 and restore.cause == "the loss is not finite"
    assert len(rows) == 8 == of.done and all(
        math.isfinite(found["loss"]) for found, _ in rows if found is not rows[5][0]
    )
    assert shelf.places == [0, 6 + 8]  # data that no step has seen
    assert of.optimizer.scale["middle"] == 0.5
    assert all(p.isfinite().all() for p in of.trained.values())


def test_beyond_repair():
    of = trainer(steps=50, ring_every=2, ring_age=2, ring_quiet=1, restores=2)
    with pytest.raises(NonFinite, match="the loss is not finite, after 2 restored states; the state of step 2 is kept"):
        Shelf(of, nan=lambda number: number > 4).run()
    assert all(p.isfinite().all() for p in of.trained.values())


def test_without_guards_the_first_such_number_ends_the_run():
    of = trainer(steps=9, guards=False)
    with pytest.raises(NonFinite, match="of step 3 is not finite, and --no-guards is set"):
        Shelf(of, nan=lambda number: number == 3).run()
    assert all(p.isfinite().all() for p in of.trained.values())


def test_a_stop_ends_between_two_steps():
    of = trainer(steps=9)
    assert len(Shelf(of).run(stop=lambda: of.done == 4)) == 4 == of.done
