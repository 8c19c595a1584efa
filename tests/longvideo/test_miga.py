"""MIGA against the original's recordings, and its second stage as a stream against passes over the whole video."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.longvideo.test_fifo import to_uint8
from vidlose.diffusion.denoiser import Condition, Denoiser
from vidlose.diffusion.sampling import Sampler, SeededNoise, ddim_step
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import InputError
from vidlose.longvideo import miga, reflection, tails
from vidlose.longvideo.queue import Queue, fill
from vidlose.longvideo.refine import Refine
from vidlose.longvideo.reflection import Reflection, likeness_of_means

SCHEDULE = NoiseSchedule.of("scaled_linear")
TOLERANCE = 3e-5


class Recorded(Refine):
    """Draws by pass and frame, as passes over the whole video do; keeps what the queue gave."""

    def recorded(self, passes: list[Tensor], again: Tensor) -> "Recorded":
        self.noise_of_pass, self.noise_again, self.taken = passes, again, []
        return self

    def _take(self) -> None:
        super()._take()
        self.taken.append(self.latents[-1])

    def drawn(self, written: list[int]) -> Tensor:
        frames = [slot + self.begin for slot in written]
        if {self.levels[slot] for slot in written} == {self.sampler.ladder.floor}:
            return self.noise_again[frames]
        passed = [sum(frame < done for done in self.done) for frame in frames]
        return torch.stack([self.noise_of_pass[at][frame] for at, frame in zip(passed, frames, strict=True)])


INIT, REFLECT, STAGE1 = range(3)


def draws(t: dict[str, Tensor], zigzag: int) -> tuple[list[Tensor], list[Tensor]]:
    """A golden's noise: what the queue asks for, in that order, and for each pass of the second stage `[N C h w]`."""
    sweeps: list[tuple[int, Tensor]] = []
    begin = 0
    for (phase, *_), calls in itertools.groupby(t["call_meta"].tolist(), lambda call: (call[0], call[1], call[6])):
        kept = sum(max(0, at + n - max(at, 3 * zigzag if phase == REFLECT else 0)) for _, _, at, n, *_ in calls)
        sweeps.append((phase, t["step_noise"][begin : begin + kept]))
        begin += kept
    assert begin == len(t["step_noise"])
    init, stage1, reflect = (
        list(t.get(f"noise_{name}_tail", torch.zeros(0)).split(zigzag)) for name in ("init", "stage1", "reflect")
    )
    queue = [torch.cat([t["noise_init_base"], init.pop(0)])]
    for at, (phase, noise) in enumerate(sweeps):
        if phase == REFLECT:
            queue.append(reflect.pop(0))
        queue.append(noise) if phase <= STAGE1 else None
        after = sweeps[at + 1][0] if at + 1 < len(sweeps) else None
        if phase == STAGE1:
            queue.append(stage1.pop(0))
        elif phase <= REFLECT and after != REFLECT and init:
            queue.append(init.pop(0))
    return queue, [noise for phase, noise in sweeps if phase > STAGE1]


@pytest.mark.parametrize("case", ["miga_a_default_k10", "miga_b_reflect_k18"])
@torch.no_grad()
def test_goldens(golden, replay, stub, case):
    g = golden(f"miga/{case}")
    t, facts = g.tensors, g.note["config"]
    frames, zigzag = facts["video_length"], facts["saw_width"]
    ladder = SCHEDULE.ladder("linspace", facts["num_inference_steps"])
    plan = miga.plan(
        ladder,
        frames,
        zigzag=zigzag,
        guide_frames=facts["temporal_memory_len"],
        exit=miga.stage_level(ladder),
        reflection=Reflection(0.001, score=likeness_of_means, noisy=True) if facts["involve_resample"] else None,
        blocks=facts["long_iter_nums"],
    )
    base, drawn = t["base_x0"][0], draws(t, zigzag)
    sampler = Sampler(Denoiser(stub), ladder, facts["cfg_scale"], facts["eta"])
    denoise = sampler.bind(Condition(t["context"], t["uncond_context"]))
    source, count = replay(drawn[0]), facts["frames_out"]
    memory = tails.memory("base", 0, base, source) | reflection.memory()
    queue = Queue(plan, sampler, lambda _: denoise, source, fill(base, plan, ladder, source), memory=memory)
    for _ in range(facts["long_iter_nums"]):
        queue._advance()
    torch.testing.assert_close(queue.latents.transpose(0, 1)[None], t["queue_init"], atol=TOLERANCE, rtol=0)
    assert [level - 1 for level in queue.levels] == t["queue_init_levels"].tolist()

    refine = Recorded(queue, lambda _: denoise, frames, total=count).recorded(drawn[1], t["noise_renoise"])
    final = torch.cat(list(refine))
    torch.testing.assert_close(torch.stack(refine.taken), t["stage1_latents"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(final, t["final_latents"], atol=TOLERANCE, rtol=0)
    assert torch.equal(to_uint8(final), t["final_frames"])
    assert not source.draws and refine.begin == 0  # so short a video is refined in one go


def told(denoise, base, ladder, zigzag, guides, blocks, eta, noise):
    """MIGA's first stage (arXiv 2605.18233), one window after the other as in the original: what leaves it."""
    frames, steps = base.shape[1], ladder.top
    new, top = frames - guides, steps - 1
    queue, level = [], []

    def enter(clean, at, drawn):
        level.append(at)
        row = at + 1
        queue.append(drawn if clean is None else ladder.alpha[row].float() * clean + ladder.sigma[row].float() * drawn)

    def sweep(offset):
        z = noise(len(queue), *queue[0].shape) if eta else torch.zeros(len(queue), *queue[0].shape)
        count, rest = divmod(len(queue) - offset - new, 8)
        starts = [(0, offset), *((offset + 8 * i, 8) for i in range(count)), (len(queue) - new - rest, rest)]
        for start, kept in [*starts, (len(queue) - new, new)]:
            if start < guides:
                seen = list(range(start, min(start + frames, len(queue))))
            else:
                step = start // guides
                far = [start - (zigzag // 2 + k * zigzag) for k in reversed(range(guides))]
                near = [start - (k + 1) * step for k in reversed(range(guides))]
                seen = (far if start >= guides * zigzag else near) + list(range(start, start + new))
            x, z_ = (torch.stack([of[i] for i in seen], 1)[None] for of in (queue, z))
            at = torch.tensor([[level[i] + 1 for i in seen]])
            y = ddim_step(x, denoise(x, at), at, ladder.down(at), ladder, z_, eta)[0]
            for k, i in enumerate(seen):
                if start <= i < start + kept:
                    queue[i] = y[:, k]
                    level[i] -= 1

    front = top - frames // zigzag
    drawn = noise(frames + zigzag, *base[:, 0].shape)
    for i in range(frames):
        enter(base[:, i], front + i // zigzag, drawn[i])
    for n in range(blocks):
        drawn = drawn[frames:] if n == 0 else noise(zigzag, *base[:, 0].shape)
        for each in drawn:
            enter(base[:, -1], top, each)
        if level[0] <= 11:
            break
        sweep((len(queue) - new) % 8)
    left: list[Tensor] = []
    for iteration in itertools.count():
        sweep(iteration % 8)
        if level[0] <= 9:
            left += queue[:zigzag]
            del queue[:zigzag], level[:zigzag]
            if len(left) == blocks * zigzag:
                return torch.stack(left)
        for each in noise(zigzag, *base[:, 0].shape):
            enter(None, top, each)


@pytest.mark.parametrize(
    ("frames", "zigzag", "guides", "blocks", "eta", "guidance"), [(15, 3, 2, 57, 0.5, 7.5), (12, 2, 3, 20, 0.0, 6.0)]
)
@torch.no_grad()
def test_other_settings(stub, frames, zigzag, guides, blocks, eta, guidance):
    ladder = SCHEDULE.ladder("linspace", 64)
    torch.manual_seed(0)
    denoise = (sampler := Sampler(Denoiser(stub), ladder, guidance, eta)).bind(
        Condition(torch.randn(1, 3, 6), torch.randn(1, 3, 6))
    )
    base, noise = torch.randn(4, frames, 2, 3), SeededNoise(1)
    plan = miga.plan(ladder, frames, zigzag=zigzag, guide_frames=guides, exit=miga.stage_level(ladder), blocks=blocks)
    memory = tails.memory("base", 0, base, noise)
    queue = Queue(plan, sampler, lambda _: denoise, noise, fill(base, plan, ladder, noise), memory=memory)
    ours = torch.cat(list(itertools.islice(queue, blocks * zigzag)))
    theirs = told(denoise, base, ladder, zigzag, guides, blocks, eta, SeededNoise(1))
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


def preset(stub, partitions: int = 1, **options) -> tuple[Queue, Sampler]:
    """The default plan, all of its parts, on a ladder of so many times 16 levels."""
    ladder = SCHEDULE.ladder("linspace", partitions * 16)
    sampler = Sampler(Denoiser(stub), ladder, 3.0, options.pop("eta", 1.0))
    denoise = sampler.bind(Condition(torch.full((1, 3, 6), 0.3), torch.zeros(1, 3, 6)))
    options = {"reflection": Reflection(0.0, candidates=2), **options}
    plan = miga.plan(ladder, 16, exit=miga.stage_level(ladder), **options)
    noise = SeededNoise(3)
    base = torch.randn(4, 16, 2, 3, generator=torch.Generator().manual_seed(5))
    memory = tails.memory("base", 0, base, noise) | reflection.memory()
    return Queue(plan, sampler, lambda _: denoise, noise, fill(base, plan, ladder, noise), memory=memory)


class Given(Queue):
    """A queue that gives frames of noise at once."""

    def __next__(self) -> Tensor:
        return torch.randn(1, 4, 2, 3, generator=self.frames)


def given(queue: Queue) -> Queue:
    queue.__class__, queue.frames = Given, torch.Generator().manual_seed(0)
    return queue


@torch.no_grad()
def test_the_second_stage_streams_exactly(stub):
    """A video without end, in a ring, against passes over the whole of one: a frame hangs on 278 later ones at most."""
    whole, stream = (
        Refine(given(queue := preset(stub, 4, eta=0.0)), queue.denoise_at, 16, total=total) for total in (350, None)
    )
    everything = torch.cat(list(whole))
    assert len(everything) == 350 and whole.begin > 0
    ring = []
    for frame in everything[: 350 - 278]:
        torch.testing.assert_close(next(stream)[0], frame, atol=2e-6, rtol=0)
        ring.append(len(stream.latents))
    assert max(ring) <= 288


@torch.no_grad()
def test_any_number_of_levels(stub):
    """Blocks follow each other without a gap, stand still in number, and each passes every level once."""
    for partitions in (1, 2, 4):
        queue = preset(stub, partitions)
        top, leaves = 16 * partitions, queue.plan.exit
        assert leaves == {1: 2, 2: 5, 4: 10}[partitions]
        frames = list(itertools.islice(queue, 40))
        assert queue.iteration == queue.plan.first + 40 // 4 - 1 and queue.plan.frame(queue.iteration) == 36
        assert queue.levels == [level for level in range(leaves + 1, top + 1) for _ in range(4)]
        assert torch.cat(frames).isfinite().all()


def test_windows_keep_every_slot_once_and_are_of_one_length():
    for frames, zigzag, guides, kind in itertools.product((8, 12, 16, 24), (1, 2, 4), (0, 3, 4, 8), ("blocks", "head")):
        if frames - guides < miga.HOP:
            continue
        plan = miga.plan(SCHEDULE.ladder("linspace", 48), frames, zigzag=zigzag, guide_frames=guides, guides=kind)
        for iteration in range(60):
            slots = min(len(plan.levels) + iteration * zigzag, 48 * zigzag)
            calls = plan.layout(iteration, slots)
            assert sorted(slot for call in calls for slot in call.written) == list(range(slots))
            for call in calls:
                assert len(set(call.slots)) == frames and list(call.slots) == sorted(call.slots)
                assert call.slots[0] >= 0 and call.slots[-1] < slots


@torch.no_grad()
def test_state_continues_bit_by_bit(stub):
    """Queue, reflection and ring; in the middle of a block, and while the last frames are given out."""
    for cut, total, denoised in ((0, None, False), (6, None, True), (41, 45, False)):
        queue = preset(stub)
        stream = Refine(queue, queue.denoise_at, 16, total=total, denoised=denoised)
        list(itertools.islice(stream, cut))
        state = {name: tensor.clone() for name, tensor in stream.state().items()}
        rng = queue.noise.generator.get_state()
        expected = torch.cat(list(itertools.islice(stream, 9)))
        queue = preset(stub)
        queue.noise.generator.set_state(rng)
        again = Refine(queue, queue.denoise_at, 16, total=total, denoised=denoised)
        again.restore(state)
        assert torch.equal(torch.cat(list(itertools.islice(again, 9))), expected)
        assert len(expected) == (9 if total is None else total - cut)
    few = Refine(queue, queue.denoise_at, 4)  # windows of less than a hop
    assert torch.cat(list(itertools.islice(few, 9))).isfinite().all() and len(few.latents) < 24
    for name in ("refine.latents", "refine.position", "latents", "levels", "waiting"):
        with pytest.raises(InputError):
            again.restore({**state, name: state[name][1:] if name != "waiting" else torch.zeros(1, 9)})


@torch.no_grad()
def test_a_video_goes_on_behind_its_end(stub):
    """What was given out stays, and what follows is as in a longer video, up to the order of draws."""
    queue = preset(stub, eta=0.0, reflection=None)
    first = Refine(queue, queue.denoise_at, 16, total=30)
    frames = list(first)
    longer = Refine(queue, queue.denoise_at, 16, total=60)
    longer.restore(first.state())
    frames += list(longer)
    queue = preset(stub, eta=0.0, reflection=None)
    whole = torch.cat(list(Refine(queue, queue.denoise_at, 16, total=60)))
    assert len(frames) == 60
    torch.testing.assert_close(torch.cat(frames)[30:], whole[30:], atol=1e-3, rtol=0)


class Finished(Refine):
    """Keeps where its passes stood at the end."""

    def watched(self) -> "Finished":
        self.stood: list[tuple[list[int], int]] = []
        return self

    def _round(self, ended: bool = False) -> bool:
        found = super()._round(ended)
        if ended:
            self.stood.append((self.done, self.total))
        return found


@torch.no_grad()
@pytest.mark.parametrize("more", [1, 10, 30, 43, 44, 200])
def test_a_video_without_end_is_given_one(stub, more):
    """Its ring may have gone on further than that: whatever is given has every pass behind it."""
    queue = preset(stub, eta=0.0, reflection=None)
    endless = Refine(queue, queue.denoise_at, 16)
    list(itertools.islice(endless, 20))
    state = {name: tensor.clone() for name, tensor in endless.state().items()}
    rng = queue.noise.generator.get_state()
    expected = torch.cat(list(itertools.islice(endless, 60)))
    queue = preset(stub, eta=0.0, reflection=None)
    queue.noise.generator.set_state(rng)
    ended = Finished(queue, queue.denoise_at, 16, total=20 + more).watched()
    ended.restore(state)
    shown = torch.cat(list(itertools.islice(ended, more)))
    assert len(shown) == more
    for done, total in ended.stood[-1:]:
        assert set(done) == {total}
    sure = {1: 1, 200: 60}.get(more, 0)  # frames that the end does not reach
    torch.testing.assert_close(shown[:sure], expected[:sure], atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompts_may_change_within_a_round(stub):
    """A prompt that comes back changes nothing in the order in which windows are computed."""
    plain, turning = (given(preset(stub, eta=0.0)) for _ in range(2))
    one, again = plain.denoise_at(0), preset(stub, eta=0.0).denoise_at(0)
    same = Refine(plain, lambda _: one, 16, total=60)
    turns = Refine(turning, lambda frame: again if 20 <= frame < 33 else one, 16, total=60)
    torch.testing.assert_close(torch.cat(list(turns)), torch.cat(list(same)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_end_can_be_interrupted(stub):
    """Between its rounds, too; what a state holds then is the ring before the end."""
    queue = preset(stub, eta=0.0)
    stream = Refine(queue, queue.denoise_at, 16, total=30)
    between = []
    stream.between = lambda: between.append(stream.state()["refine.position"].tolist())
    next(stream)
    assert between[-1] == between[-2] and stream.ended


@torch.no_grad()
def test_frames_that_nobody_sees_are_not_refined(stub):
    """They go by as the queue gives them, and the video begins behind them."""
    queue, source = preset(stub, eta=0.0), preset(stub, eta=0.0)
    stream = Refine(queue, queue.denoise_at, 16, total=30)
    for frame in itertools.islice(source, 12):
        assert torch.equal(stream.skip(), frame)
    assert not len(stream.latents)
    behind = Refine(source, source.denoise_at, 16, total=30)
    assert torch.equal(torch.cat(list(stream)), torch.cat(list(behind)))


@torch.no_grad()
def test_reflection_keeps_the_likest(stub):
    """Only slots from the judged block on change, and only for a better score."""
    queue = preset(stub, 4)
    review, changes = queue.plan.review, []

    def watched(queue: Queue, clean: Tensor) -> None:
        before, last = queue.latents.clone(), queue.memory["score"][0]
        review(queue, clean)
        if not torch.equal(before, queue.latents):
            at = queue.levels.index(miga.judged_level(queue.sampler.ladder))
            assert torch.equal(before[:at], queue.latents[:at])
            assert last > reflection.likeness(clean[at - 12 : at], clean[at : at + 4]) < queue.memory["score"][0]
            changes.append(at)

    object.__setattr__(queue.plan, "review", watched)
    while queue.iteration < 30:
        queue._advance()
    assert changes


@torch.no_grad()
@pytest.mark.parametrize("turns", [False, True])
def test_reflection_lets_a_new_prompt_in(stub, turns):
    """A block that a change of prompt has made unlike those before it is not drawn anew."""
    scored: list[int] = []  # iterations

    def score(guides: Tensor, block: Tensor) -> float:
        scored.append(queue.iteration)
        return 1.0 if len(set(scored)) < 3 else 0.0  # the third block is out of line

    queue, another = (preset(stub, 2, reflection=Reflection(0.5, score=score)) for _ in range(2))
    while len(set(scored)) < 2:
        queue._advance()
    at = queue.iteration
    one, other = queue.denoise_at(at), another.denoise_at(at)
    queue.denoise_at = lambda iteration: other if turns and iteration >= at else one
    queue._advance()
    assert scored.count(at) == (1 if turns else 6)


def test_what_does_not_fit_is_refused():
    ladder = SCHEDULE.ladder("linspace", 16)
    for options, said in [
        ({"zigzag": 5}, "--zigzag 5 does not divide the window's 16 frames"),
        ({"guide_frames": 9}, "--guide-frames 9 leave 7 of a window's 16 frames new: at least 8"),
        ({"zigzag": 1}, "take more --partitions"),
        ({"guides": "tail"}, "unknown kind of guides 'tail'"),
    ]:
        with pytest.raises(InputError, match=said):
            miga.plan(ladder, 16, **options)
