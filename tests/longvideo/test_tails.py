"""Tails against Ouroboros-Diffusion's recording, and what each of them leaves of the frames before."""

import itertools

import pytest
import torch

from vidlose.diffusion.denoiser import Condition, Denoiser
from vidlose.diffusion.sampling import Sampler, SeededNoise
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import InputError
from vidlose.longvideo import fifo, tails
from vidlose.longvideo.queue import Queue, fill

SCHEDULE = NoiseSchedule.of("scaled_linear")


def queue_of(plan, ladder, noise, latents, levels=None, memory=None, denoise=None) -> Queue:
    sampler = Sampler(Denoiser(network=None), ladder)
    return Queue(plan, sampler, lambda _: denoise, noise, latents, levels, memory=memory)


def test_golden(golden, replay):
    """The neighbour's low frequencies: filter, jump to the top level, and what enters."""
    t = golden("miga/ouroboros_coherent_tail").tensors
    ladder = SCHEDULE.ladder("linspace", 64)
    plan = fifo.plan(ladder, 16, lookahead=False, tail=tails.tail("coherent-reference"))
    source = replay([draw[None] for draw in t["draws_for_formula"]])
    queue = queue_of(plan, ladder, source, t["queue_after_denoise"], (t["levels"] + 1).tolist())
    queue._drop()
    queue.enter()
    height, width = t["low_pass"].shape
    shifted = torch.fft.fftshift(tails.low_pass_reference(height, width)).float()
    torch.testing.assert_close(shifted, t["low_pass"], atol=1e-6, rtol=0)
    torch.testing.assert_close(queue.latents, t["queue_after_shift"], atol=3e-5, rtol=0)
    assert len(queue.levels) == 64 and queue.levels[-1] == 64


def test_a_top_of_noise_alone():
    """What is left of the newest slot there is nothing: it is taken as it is, and white noise stays white."""
    ladder = SCHEDULE.zero_terminal().ladder("linspace", 16)
    assert not ladder.alpha[16]
    noise = torch.randn(16, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    for name in ("coherent", "coherent-reference"):
        plan = fifo.plan(ladder, 16, lookahead=False, zigzag=64, tail=tails.tail(name))
        queue = queue_of(plan, ladder, SeededNoise(0), noise, list(range(1, 17)))
        queue.levels[-1] = 15
        entered = torch.fft.fft2(plan.tail(queue), norm="ortho")
        newest = torch.fft.fft2(noise[-1], norm="ortho")
        low = (tails.low_pass(16, 24) > 0.5) & (tails.low_pass(16, 24) < 1)
        alike = (entered[..., low] * newest[..., low].conj()).real.mean() / newest[..., low].abs().square().mean()
        assert alike > 0.4, name
        assert abs(entered.abs().square().mean((0, 1))[tails.low_pass(16, 24) < 0.01].mean() - 1) < 0.05, name
        if name == "coherent":
            assert abs(entered.abs().square().mean() - 1) < 0.05


@pytest.mark.parametrize("size", [(16, 24), (15, 9)])
def test_filters(size):
    """Ours is 1 at frequency 0, and white noise through it stays white; the original's takes low frequencies away."""
    ladder = SCHEDULE.ladder("linspace", 16)
    flat = torch.ones(16, 4, *size)
    for name, mean, variance in [("coherent", 1.0, 1.0), ("coherent-reference", 0.61, 0.5)]:
        plan = fifo.plan(ladder, 16, lookahead=False, zigzag=64, tail=tails.tail(name))
        noise = torch.randn(16, 4, *size, generator=torch.Generator().manual_seed(0))
        queue = queue_of(plan, ladder, SeededNoise(0), noise, list(range(1, 17)))
        queue.levels[-1] = 15
        assert plan.tail(queue).shape == (64, 4, *size)
        power = torch.fft.fft2(plan.tail(queue), norm="ortho").abs().square().mean((0, 1))
        low = (tails.low_pass(*size) > 0.5) & (tails.low_pass(*size) < 1)
        assert abs(power[low].mean() - variance) < 0.15, name
        assert abs(power[tails.low_pass(*size) < 0.01].mean() - 1) < 0.05, name
        queue = queue_of(plan, ladder, SeededNoise(0), 1000 * flat, list(range(1, 17)))
        queue.levels[-1] = 15
        kept = plan.tail(queue).mean() / 1000 * ladder.alpha[15] / ladder.alpha[16]
        if size[0] % 2 == 0 or name == "coherent":
            assert abs(kept - mean) < 0.01, name


def test_the_base_tail_has_what_the_top_level_leaves():
    ladder = SCHEDULE.ladder("linspace", 16)
    base = torch.full((4, 16, 2, 3), 1000.0)
    plan = fifo.plan(ladder, 16, lookahead=False, tail=tails.tail("base"))
    memory = tails.memory("base", 0, base, noise := SeededNoise(0))
    queue = queue_of(plan, ladder, noise, torch.zeros(16, 4, 2, 3), memory=memory)
    assert abs(plan.tail(queue).mean() / 1000 - 0.0683) < 1e-3


@torch.no_grad()
def test_noise_is_used_again(stub):
    """The first N draws come again and again, in other orders; what they are is part of the state."""
    ladder = SCHEDULE.ladder("linspace", 12)
    sampler = Sampler(Denoiser(stub), ladder, eta=0.0)
    denoise = sampler.bind(Condition(torch.zeros(1, 3, 6)))
    base = torch.randn(4, 4, 2, 3)
    plan = fifo.plan(ladder, 4, lookahead=True, zigzag=2, tail=tails.tail("noise", reuse=True))

    def new() -> Queue:
        noise = SeededNoise(0)
        memory = tails.memory("noise", 6, base, noise)
        return Queue(plan, sampler, lambda _: denoise, noise, fill(base, plan, ladder, noise), memory=memory)

    queue, entered = new(), []
    for _ in range(12):
        queue._advance()
        entered += [tuple(slot.flatten().tolist()) for slot in queue.latents[-2:]]
        queue.left = True  # as if it had been given out
    first = entered[:6]
    orders = [[first.index(slot) for slot in entered[at : at + 6]] for at in (0, 6, 12, 18)]
    assert all(sorted(order) == list(range(6)) for order in orders) and len(set(map(tuple, orders))) == 4

    queue, again = new(), new()
    list(itertools.islice(queue, 9))
    state = {name: tensor.clone() for name, tensor in queue.state().items()}
    again.noise.generator.set_state(queue.noise.generator.get_state())
    again.restore(state)
    for _ in range(25):
        assert torch.equal(next(queue), next(again))
    with pytest.raises(InputError, match="keeps"):
        again.restore({name: x for name, x in state.items() if name != "memory.pool"})
    with pytest.raises(InputError, match="unknown tail 'ball'"):
        tails.tail("ball")
