"""Deep features that sweeps share: whose they are, when they are computed anew, and that a state holds them."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from tests.networks import WholeClips
from vidlose.diffusion.denoiser import Condition, Denoiser
from vidlose.diffusion.sampling import Sampler, SeededNoise
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import InputError
from vidlose.longvideo import fifo
from vidlose.longvideo.queue import Queue, fill
from vidlose.longvideo.reuse import DeepFeatures


class Deepened(WholeClips):
    """Its deep features are what it is given: it says so, and how often it made some."""

    def __init__(self) -> None:
        self.made, self.off = 0, []

    def clips(self, x: Tensor, timestep: Tensor, text: Tensor, fps: Tensor | None) -> Tensor:
        return 0.5 * x

    def __call__(self, x, timestep, text, fps, *, branches=1, windows=None, keep=None, deep=None) -> Tensor:
        shown = x[0][:, windows.flatten()].transpose(0, 1)  # [(R F) C h w]
        if deep is not None and deep.features is None:
            self.made += 1
            deep.features = torch.cat([shown] * branches)
        elif deep is not None:
            assert deep.features.shape == (branches * len(shown), *shown.shape[1:])
            # A frame's features are its own of a sweep or more ago: not far off, but for the one that has just entered.
            self.off.append((deep.features[: len(shown)] - shown).abs().amax((1, 2, 3)))
        return super().__call__(x, timestep, text, fps, branches=branches, windows=windows, keep=keep)


def queue_of(network: Deepened, deep: DeepFeatures | None, window_batch: int | None = None) -> Queue:
    ladder = NoiseSchedule.of("scaled_linear").ladder("linspace", 32)
    sampler = Sampler(Denoiser(network), ladder, guidance=2.0, eta=0.0)
    plan, noise = fifo.plan(ladder, 8, lookahead=True), SeededNoise(0)
    denoise = sampler.bind(Condition(torch.zeros(1, 3, 6), torch.ones(1, 3, 6)))
    latents = fill(torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(1)), plan, ladder, noise)
    return Queue(plan, sampler, lambda _: denoise, noise, latents, window_batch=window_batch, deep=deep)


@pytest.mark.parametrize("window_batch", [None, 1, 3])
@pytest.mark.parametrize("every", [2, 3])
@torch.no_grad()
def test_features_move_with_their_frames(every, window_batch):
    network = Deepened()
    queue = queue_of(network, DeepFeatures(1, every), window_batch)
    list(islice(queue, 13))  # 12 sweeps
    calls = 1 if window_batch is None else -(-8 // window_batch)
    assert network.made == 12 // every * calls
    assert len(network.off) == (12 - 12 // every) * calls
    last = network.off[calls - 1]  # with the frame that entered last
    assert torch.cat(network.off[:calls])[: len(torch.cat(network.off[:calls])) - 1].max() < 0.5 < last[-1]


@torch.no_grad()
def test_a_state_holds_them():
    frames = []
    for cut in (None, 4, 5, 6):
        queue = queue_of(Deepened(), DeepFeatures(1, 3))
        if cut is not None:
            list(islice(queue, cut))
            state, rng = queue.state(), queue.noise.generator.get_state()
            queue = queue_of(Deepened(), DeepFeatures(1, 3))
            queue.restore(state)
            queue.noise.generator.set_state(rng)
        frames.append(torch.cat(list(islice(queue, 12 - (cut or 0)))))
    assert all(torch.equal(frames[0][cut:], some) for cut, some in zip((4, 5, 6), frames[1:], strict=True))


@torch.no_grad()
def test_a_state_holds_only_what_is_wanted_again():
    queue = queue_of(Deepened(), DeepFeatures(1, 2))
    kept = []
    for _ in range(6):
        next(queue)
        kept.append("deep.features" in queue.state())
    assert kept == [False, True, False, True, False, True]  # the first frame needs no sweep


@torch.no_grad()
@pytest.mark.parametrize("spoil", [lambda x: x[:, 1:], lambda x: x.flatten(1), lambda x: x * float("nan")])
def test_features_of_another_queue(spoil):
    queue = queue_of(Deepened(), DeepFeatures(1, 3))
    list(islice(queue, 2))
    state = queue.state()
    with pytest.raises(InputError, match="deep features are not those of its queue"):
        queue.restore({**state, "deep.features": spoil(state["deep.features"])})
