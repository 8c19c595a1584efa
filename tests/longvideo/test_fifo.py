"""FIFO against the original's recordings, and against a plain telling of its loop at other settings."""

import itertools

import pytest
import torch
from torch import Tensor

from vidlose.diffusion.denoiser import Condition, Denoiser, Prediction, View
from vidlose.diffusion.sampling import Sampler, SeededNoise, ddim_step
from vidlose.diffusion.schedule import NoiseSchedule, per_frame
from vidlose.errors import InputError
from vidlose.longvideo import fifo
from vidlose.longvideo.queue import Queue, fill

SCHEDULE = NoiseSchedule.of("scaled_linear")
TOLERANCE = 2e-5


def to_uint8(latents: Tensor) -> Tensor:
    """The goldens' stub autoencoder and the reference's truncating conversion: `[N 4 h w]` -> `[N h w 3]`."""
    pixels = (0.5 * latents[:, :3]).clamp(-1, 1)
    return ((pixels + 1) / 2 * 255).byte().permute(0, 2, 3, 1)


@pytest.mark.parametrize("window_batch", [None, 1, 3])
@pytest.mark.parametrize("case", ["a_64s_f16_plain", "b_64s_f16_lookahead", "e_64s_f16_uniform_lookahead"])
@torch.no_grad()
def test_goldens(golden, replay, stub, case, window_batch):
    g = golden(f"fifo/{case}")
    t, facts = g.tensors, g.note["config"]
    steps, frames, lookahead = facts["num_inference_steps"], facts["video_length"], facts["lookahead_denoising"]
    schedule = NoiseSchedule.of("scaled_linear", scale_to=facts["scale_b"])
    condition = Condition(t["context"], t["uncond_context"])
    sampler = Sampler(Denoiser(stub), schedule.ladder("linspace", steps), facts["cfg_scale"], facts["eta"])
    base = sampler.clip(sampler.bind(condition), t["base_x_T"], replay(t["base_noise"]))
    torch.testing.assert_close(base, t["base_x0"], atol=TOLERANCE, rtol=0)

    ladder = schedule.ladder("linspace", steps, scaled=False)
    start = {"default": "reference", "uniform": "uniform"}[facts["extension"]]
    plan = fifo.plan(ladder, frames, lookahead, start)
    latents = fill(base[0], plan, ladder, replay([t["prepare_noise"].transpose(0, 1)]))
    torch.testing.assert_close(latents.transpose(0, 1)[None], t["queue_init"], atol=TOLERANCE, rtol=0)
    assert [level - ladder.floor for level in plan.levels] == t["queue_level_index"].tolist()

    draws = []
    for step, tail in zip(t["step_noise"], t["tail_noise"], strict=True):  # [R C F h w], [C h w]
        draws += [step[:, :, plan.lead :].transpose(1, 2).flatten(0, 1), tail[None]]
    sampler = Sampler(Denoiser(stub), ladder, facts["cfg_scale"], facts["eta"])
    denoise = sampler.bind(condition)
    queue = Queue(plan, sampler, lambda _: denoise, replay(draws), latents, window_batch=window_batch)
    emitted = torch.cat(list(itertools.islice(queue, facts["iterations"])))
    torch.testing.assert_close(emitted, t["emitted_latents"], atol=TOLERANCE, rtol=0)
    assert torch.equal(to_uint8(emitted), t["emitted_frames"])
    assert queue.iteration == facts["iterations"] - 1  # the last frame needed no further sweep
    next(queue)
    torch.testing.assert_close(queue.latents.transpose(0, 1)[None], t["queue_final"], atol=TOLERANCE, rtol=0)
    dropped = fifo.STARTS["reference"].warmup(steps, frames)
    assert dropped == facts["warmup_frames_dropped"]


def told(denoise, base, ladder, frames, lookahead, start, eta, noise, iterations):
    """FIFO-Diffusion (arXiv 2405.11473) as its reference does it: windows descending and in place, one at a time."""
    steps = ladder.top
    lead = frames // 2 if lookahead else 0
    levels = [1] * lead + list(range(1, steps + 1))
    place = {"reference": lambda i: max(0, i - (steps - frames)), "uniform": lambda i: i // (steps // frames)}[start]
    drawn = noise(len(levels), *base.shape[:1], *base.shape[2:])
    queue = []
    for slot, level in enumerate(levels):
        clean = base[:, 0] if slot < lead else base[:, place(slot - lead)]
        queue.append(ladder.alpha[level].float() * clean + ladder.sigma[level].float() * drawn[slot])
    out = []
    for _ in range(iterations):
        drawn = torch.zeros(len(levels), *queue[0].shape)
        if eta:
            drawn[lead:] = noise(steps, *queue[0].shape)
        hop = frames // 2 if lookahead else frames
        for s in reversed(range(0, len(levels) - frames + 1, hop)):
            slots = range(s, s + frames)
            x = torch.stack([queue[i] for i in slots], 1)[None]
            level = torch.tensor([[levels[i] for i in slots]])
            z = torch.stack([drawn[i] for i in slots], 1)[None]
            y = ddim_step(x, denoise(x, level), level, ladder.down(level), ladder, z, eta)[0]
            for k, i in enumerate(slots):
                if k >= lead:
                    queue[i] = y[:, k]
        out.append(queue[lead])
        queue = [*queue[1:], noise(1, *queue[0].shape)[0]]
    return torch.stack(out)


@pytest.mark.parametrize("start", ["reference", "uniform"])
@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize(
    ("partitions", "frames", "eta", "guidance"),
    [(1, 16, 1.0, 1.0), (3, 8, 0.5, 7.5), (2, 6, 0.0, 12.0), (5, 4, 1.0, 7.5)],
)
@torch.no_grad()
def test_other_settings(stub, start, lookahead, partitions, frames, eta, guidance):
    ladder = SCHEDULE.ladder("linspace", partitions * frames)
    sampler = Sampler(Denoiser(stub), ladder, guidance, eta)
    torch.manual_seed(0)
    denoise = sampler.bind(Condition(torch.randn(1, 3, 6), torch.randn(1, 3, 6)))
    base = torch.randn(4, frames, 2, 5)
    plan = fifo.plan(ladder, frames, lookahead, start)
    noise = SeededNoise(1)
    queue = Queue(plan, sampler, lambda _: denoise, noise, fill(base, plan, ladder, noise))
    ours = torch.cat(list(itertools.islice(queue, 20)))
    theirs = told(denoise, base, ladder, frames, lookahead, start, eta, SeededNoise(1), 20)
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_odd_windows_without_lookahead(stub):
    ladder = SCHEDULE.ladder("linspace", 10)
    with pytest.raises(InputError, match="even number of window frames, not 5"):
        fifo.plan(ladder, 5, lookahead=True)
    plan = fifo.plan(ladder, 5, lookahead=False)
    assert [(call.slots[0], len(call.write)) for call in plan.layout(0, 10)] == [(0, 5), (5, 5)]


class Perfect:
    """Knows that every frame k of the video is the constant k (in the order in which frames leave)."""

    def __init__(self, ladder) -> None:
        self.ladder, self.seen = ladder, []

    def __call__(self, x: Tensor, level: Tensor, view: View) -> Prediction:
        self.seen.append(level)
        x, level = view.kept(x, 2), view.kept(level, 1)
        alpha, sigma = (per_frame(table, level, x) for table in (self.ladder.alpha, self.ladder.sigma))
        answer = torch.full_like(x, 0.25)
        return Prediction(answer, (x - alpha * answer) / sigma)


@torch.no_grad()
def test_with_an_oracle_every_frame_is_the_answer():
    ladder = SCHEDULE.ladder("linspace", 16)
    sampler = Sampler(Denoiser(network=None), ladder, eta=1.0)
    plan = fifo.plan(ladder, 8, lookahead=True)
    oracle = Perfect(ladder)
    for denoised in (False, True):
        noise = SeededNoise(0)
        start = fill(torch.zeros(4, 8, 6, 6), plan, ladder, noise)
        queue = Queue(plan, sampler, lambda _: oracle, noise, start, denoised=denoised)
        frames = torch.cat(list(itertools.islice(queue, 40)))[17:]
        error = frames - 0.25
        if denoised:  # the clean estimate is the answer itself
            assert error.abs().max() < 1e-5
        else:  # the last level's noise stays: 2.9 %
            assert abs(error.std() - ladder.sigma[ladder.floor].float()) < 0.003
    assert queue.latents.shape[0] == 16 + 4  # constant memory
    assert all(level.min() >= ladder.floor for level in oracle.seen)


def test_starts_hold_the_documented_frames():
    reference, uniform = fifo.STARTS["reference"], fifo.STARTS["uniform"]
    assert [reference.frame(i, 64, 16) for i in (0, 48, 49, 63)] == [0, 0, 1, 15]
    assert [uniform.frame(i, 64, 16) for i in range(64)] == [i // 4 for i in range(64)]
    assert [uniform.frame(i, 12, 4) for i in range(12)] == [i // 3 for i in range(12)]
    assert reference.warmup(64, 16) == 48 and uniform.warmup(64, 16) == 64


@torch.no_grad()
def test_state_continues_bit_by_bit(stub):
    ladder = SCHEDULE.ladder("linspace", 12)
    sampler = Sampler(Denoiser(stub), ladder, 7.5, 1.0)
    denoise = sampler.bind(Condition(torch.randn(1, 3, 6), torch.randn(1, 3, 6)))
    plan = fifo.plan(ladder, 4, lookahead=True, start="uniform")
    for denoised, cut in ((False, 0), (False, 7), (True, 7)):
        noise = SeededNoise(2)
        start = fill(torch.randn(4, 4, 2, 3), plan, ladder, noise)
        queue = Queue(plan, sampler, lambda _: denoise, noise, start, denoised=denoised)
        list(itertools.islice(queue, cut))
        state = {name: tensor.clone() for name, tensor in queue.state().items()}
        rng = noise.generator.get_state()
        expected = torch.cat(list(itertools.islice(queue, 9)))
        again = SeededNoise(99)
        again.generator.set_state(rng)
        fresh = Queue(plan, sampler, lambda _: denoise, again, start, denoised=denoised)
        fresh.restore(state)
        assert torch.equal(torch.cat(list(itertools.islice(fresh, 9))), expected)
    with pytest.raises(InputError, match="queue is"):
        fresh.restore({**state, "latents": state["latents"][1:]})


@torch.no_grad()
def test_windows_that_do_not_fit_are_halved(stub):
    """A batch that runs out of memory is computed in parts, and the next ones are no larger; one window must fit."""
    ladder = SCHEDULE.ladder("linspace", 16)
    plan = fifo.plan(ladder, 4, lookahead=True)
    base = torch.randn(4, 4, 2, 3)

    def video(room: int, window_batch: int | None) -> tuple[Tensor, list[int]]:
        tried: list[int] = []

        def denoise(x: Tensor, level: Tensor, view: View) -> Prediction:
            tried.append(len(view.windows))
            if tried[-1] > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return bound(x, level, view)

        bound = Sampler(Denoiser(stub), ladder).bind(Condition(torch.zeros(1, 3, 6)))
        noise = SeededNoise(0)
        queue = Queue(
            plan,
            Sampler(Denoiser(stub), ladder, eta=1.0),
            lambda _: denoise,
            noise,
            fill(base, plan, ladder, noise),
            window_batch=window_batch,
        )
        return torch.cat(list(itertools.islice(queue, 3))), tried

    whole, calls = video(room=9, window_batch=None)
    assert set(calls) == {8}
    parts, calls = video(room=3, window_batch=None)
    assert calls[:6] == [8, 4, 2, 2, 2, 2] and set(calls[6:]) == {2}
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(torch.OutOfMemoryError):
        video(room=0, window_batch=4)


@torch.no_grad()
def test_the_whole_queue_turns_to_a_new_prompt(stub):
    """Prompts change by iteration: before the change nothing differs, from it on everything in flight does."""
    ladder = SCHEDULE.ladder("linspace", 8)
    sampler = Sampler(Denoiser(stub), ladder, eta=0.0)
    plan = fifo.plan(ladder, 4, lookahead=True)
    calm, storm = (sampler.bind(Condition(torch.full((1, 3, 6), value))) for value in (0.0, 3.0))
    base = torch.randn(4, 4, 2, 3)

    def video(at: int) -> Tensor:
        noise = SeededNoise(0)
        start = fill(base, plan, ladder, noise)
        queue = Queue(plan, sampler, lambda it: storm if it >= at else calm, noise, start)
        return torch.cat(list(itertools.islice(queue, 24)))

    plain, turned = video(99), video(10)
    change = (turned - plain).abs().amax((1, 2, 3))
    assert (change[:11] == 0).all() and (change[11:] > 0).all()
    assert change[12] < change[18]  # what was nearly clean hardly moves


def test_windows_tile_any_queue():
    """Also one whose slots are no multiple of them: the last window reaches back."""
    for lookahead, lead in ((True, 4), (False, 0)):
        for slots in range(8 + lead, 40):
            calls = fifo.windows(slots, 8, lookahead)
            assert [slot for call in calls for slot in call.written] == list(range(lead, slots))
            assert all(len(call.slots) == 8 and call.slots[-1] < slots for call in calls)


@torch.no_grad()
def test_zigzag_and_an_exit_above_the_floor():
    """Blocks of three move together; at the exit they leave at once, and what is above it goes on without them."""
    ladder = SCHEDULE.ladder("linspace", 12)
    sampler = Sampler(Denoiser(network=None), ladder, eta=1.0)
    for lookahead, exit in itertools.product((True, False), (None, 3)):
        plan = fifo.plan(ladder, 6, lookahead, zigzag=3, exit=exit)
        noise = SeededNoise(0)
        start = fill(torch.full((4, 6, 9, 9), 0.25), plan, ladder, noise)
        queue = Queue(plan, sampler, lambda _: Perfect(ladder), noise, start)
        frames = torch.cat(list(itertools.islice(queue, 60)))
        row = exit or ladder.floor
        error = frames - ladder.alpha[row].float() * 0.25
        assert abs(error.std() / ladder.sigma[row] - 1) < 0.03
        assert queue.iteration == 19 and plan.frame(queue.iteration) == 57
        own = queue.levels[plan.lead :]
        assert queue.levels[: plan.lead] == [row] * plan.lead
        assert own == [level for level in range(row + (exit is not None), 13) for _ in range(3)]
