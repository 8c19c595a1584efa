"""Predictions, steps, guidance and the clip loop: against an oracle that knows the answer, and the originals."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from vidlose import checkpoints
from vidlose.config import ModelConfig
from vidlose.diffusion.denoiser import PREDICTIONS, Condition, Denoiser, Prediction, View
from vidlose.diffusion.guidance import Guidance
from vidlose.diffusion.sampling import Sampler, SeededNoise, ddim_step
from vidlose.diffusion.schedule import NoiseSchedule, per_frame

SCHEDULE = NoiseSchedule.of("scaled_linear", scale_to=0.7)


class Oracle:
    """A Denoise that knows the clean clip."""

    def __init__(self, x0: Tensor, ladder) -> None:
        self.x0, self.ladder = x0, ladder

    def __call__(self, x: Tensor, level: Tensor) -> Prediction:
        alpha, sigma = (per_frame(table, level, x) for table in (self.ladder.alpha, self.ladder.sigma))
        return Prediction(self.x0.expand_as(x), (x - alpha * self.x0) / sigma.clamp_min(1e-6))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scaled", [True, False])
def test_predictions_agree(prediction, scaled):
    """Fed with the exact answer in its own space, each gives back both parts."""
    ladder = SCHEDULE.ladder("linspace", 10, scaled=scaled)
    x0, eps, level = torch.randn(2, 4, 10, 3, 3), torch.randn(2, 4, 10, 3, 3), torch.arange(1, 11).expand(2, 10)
    x = ladder.add_noise(x0, eps, level)
    alpha, sigma = per_frame(ladder.alpha, level, x), per_frame(ladder.sigma, level, x)
    answer = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]
    found = PREDICTIONS[prediction](x, answer, alpha, sigma)
    torch.testing.assert_close(found.x0, x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.eps, eps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "every"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_oracle_clip_lands_on_the_answer(spacing, eta):
    ladder = SCHEDULE.ladder(spacing, 10)
    x0 = torch.randn(1, 4, 3, 5, 2)
    sampler = Sampler(Denoiser(network=None), ladder, eta=eta)
    out = sampler.clip(Oracle(x0, ladder), torch.randn(x0.shape), SeededNoise(0))
    residue = out - ladder.alpha[ladder.floor].float() * x0
    if ladder.floor == 0:
        torch.testing.assert_close(out, x0, atol=1e-5, rtol=0)
    else:  # timestep 0's own noise stays: 2.9 %
        assert 0.01 < residue.std() < 0.06


def test_given_frames_stay_and_are_seen_clean():
    ladder = SCHEDULE.ladder("trailing", 10)
    floor, top = ladder.floor, ladder.top
    x0, seen = torch.randn(1, 4, 3, 5, 2), []

    def denoise(x: Tensor, level: Tensor) -> Prediction:
        seen.append((x[:, :, 0].clone(), level[0].tolist()))
        return Oracle(x0, ladder)(x, level)

    sampler = Sampler(Denoiser(network=None), ladder, eta=1.0)
    out = sampler.clip(denoise, torch.randn(x0.shape), SeededNoise(0), given=x0[:, :, :1])
    assert all(torch.equal(x, x0[:, :, 0]) for x, _ in seen)
    assert [level for _, level in seen] == [[floor, row, row] for row in range(top, floor, -1)]
    torch.testing.assert_close(out, x0, atol=1e-5, rtol=0)


def test_a_first_frame_alone_is_drawn_as_an_image():
    ladder, x = SCHEDULE.ladder("trailing", 10), torch.randn(1, 4, 3, 5, 2)

    def denoise(x: Tensor, level: Tensor) -> Prediction:  # whose frames know of each other
        return Prediction(x.mean(2, keepdim=True).expand_as(x), x)

    sampler = Sampler(Denoiser(network=None), ladder)
    first = sampler.clip(denoise, x[:, :, :1], SeededNoise(0))
    out = replace(sampler, first_alone=True).clip(denoise, x, SeededNoise(0))
    assert torch.equal(out[:, :, :1], first)
    assert torch.equal(out, sampler.clip(denoise, x, SeededNoise(0), given=first))
    assert not torch.equal(out[:, :, 1:], sampler.clip(denoise, x, SeededNoise(0))[:, :, 1:])


def test_step_moves_every_frame_by_its_own_amount():
    """Noise to noise: with the oracle, a DDIM step at eta 0 keeps the frame's eps exactly."""
    ladder = SCHEDULE.ladder("linspace", 16)
    x0, eps = torch.randn(1, 4, 4, 3, 3), torch.randn(1, 4, 4, 3, 3)
    level, target = torch.tensor([[16, 9, 2, 0]]), torch.tensor([[12, 1, 2, 0]])
    x = ladder.add_noise(x0, eps, level)
    out = ddim_step(x, Oracle(x0, ladder)(x, level), level, target, ladder, None, 0.0)
    torch.testing.assert_close(out, ladder.add_noise(x0, eps, target), atol=2e-4, rtol=0)
    assert torch.equal(out[:, :, 2:], x[:, :, 2:])  # who stays is not touched


def test_eta_keeps_the_marginal():
    """Whatever eta, a step from level to target leaves noise of the target's own strength."""
    ladder = SCHEDULE.ladder("linspace", 16)
    x0, level = torch.zeros(1, 1, 1, 200, 200), torch.tensor([[12]])
    x = ladder.add_noise(x0, torch.randn(x0.shape), level)
    for eta in (0.0, 0.5, 1.0):
        out = ddim_step(x, Oracle(x0, ladder)(x, level), level, level - 4, ladder, torch.randn(x0.shape), eta)
        assert abs(out.std() / ladder.sigma[8] - 1) < 0.02


class OneBuffer:
    """A network that gives out the same memory at every call, as a CUDA graph does."""

    def __init__(self) -> None:
        self.out = torch.zeros(1, 4, 2, 3, 3)

    def text_keys(self, text: Tensor) -> Tensor:
        return text

    def __call__(self, x: Tensor, timestep: Tensor, text: Tensor, fps: None, *, branches: int) -> Tensor:
        return self.out.add_(1)


def test_a_prediction_outlives_the_next_call():
    ladder = NoiseSchedule.of("linear").ladder("leading", 5)
    denoise = Denoiser(OneBuffer()).bind(Condition(torch.zeros(1, 77, 8)), ladder)
    ones, twos = (denoise(torch.zeros(1, 4, 2, 3, 3), torch.ones(1, 2, dtype=torch.long)).eps for _ in range(2))
    assert (ones == 1).all() and (twos == 2).all()


@pytest.fixture
def counting(stub):
    """The stub, which keeps how many clips each of its batches has."""

    class Counting(type(stub)):
        batches: list[int] = []

        def clips(self, x, *rest):
            self.batches.append(len(x))
            return super().clips(x, *rest)

        def __call__(self, *inputs, deep=None, **more):
            return super().__call__(*inputs, **more)

    return Counting()


def test_guidance_runs_one_batch_and_mixes(stub, counting):
    ladder = SCHEDULE.ladder("linspace", 8)
    batches = counting.batches
    text, null = torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    x, level = torch.randn(2, 4, 3, 5, 5), torch.tensor([[1, 2, 3], [6, 7, 8]])
    one, other = (Sampler(Denoiser(stub), ladder).bind(Condition(of))(x, level) for of in (text, null))
    guided = Sampler(Denoiser(counting), ladder, guidance=7.5).bind(Condition(text, null))(x, level)
    torch.testing.assert_close(guided.eps, other.eps + 7.5 * (one.eps - other.eps))
    assert batches == [4]
    unguided = Sampler(Denoiser(counting), ladder, guidance=1.0).bind(Condition(text, null))(x, level)
    torch.testing.assert_close(unguided.eps, one.eps)
    assert batches == [4, 2]


def test_guidance_by_level(stub, counting):
    """Each frame has its level's weight; where nothing is guided, only the conditional branch runs."""
    ladder = SCHEDULE.ladder("linspace", 5)
    guidance = Guidance(9.0, clean=5.0, low=0.2, high=0.8)
    assert guidance.weights(ladder)[1:].tolist() == pytest.approx([1, 6, 7, 8, 1], abs=1e-2)
    batches = counting.batches
    text, null = torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    x, level = torch.randn(1, 4, 5, 3, 3), torch.tensor([[1, 2, 3, 4, 5]])
    one, other = (Sampler(Denoiser(stub), ladder).bind(Condition(of))(x, level).eps for of in (text, null))
    bound = Sampler(Denoiser(counting), ladder, guidance).bind(Condition(text, null))
    weight = guidance.weights(ladder)[1:].float()[None, None, :, None, None]
    torch.testing.assert_close(bound(x, level).eps, other + weight * (one - other))
    bound(x[:, :, :2], torch.tensor([[1, 5]]))
    windows = torch.tensor([[0, 1, 2], [2, 3, 4]])
    bound(x, level, View(windows, torch.tensor([0, 5])))  # the frames that are wanted count
    assert batches == [2, 1, 2]
    # A window of which no frame that is wanted is guided runs by itself.
    view = View(torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4]]), torch.tensor([0, 4, 8]))
    found = bound(x, level, view).eps
    assert batches == [2, 1, 2, 2, 2]  # of three windows, one under both texts and two under one
    torch.testing.assert_close(bound(x, level, replace(view, deep="kept")).eps, found, atol=1e-4, rtol=1e-5)
    assert batches[5:] == [6]  # deep features are of both branches
    one, other = (Sampler(Denoiser(stub), ladder).bind(Condition(of))(x, level, view).eps for of in (text, null))
    weight = torch.tensor([1, 7, 1])[None, None, :, None, None]
    torch.testing.assert_close(found, other + weight * (one - other), atol=1e-4, rtol=1e-5)


def test_guidance_of_some_blocks_of_levels():
    """Counted from the noisiest; they make up for the others, of the rows from which a step begins."""
    ladder = SCHEDULE.ladder("linspace", 7)
    first = ladder.floor + 1
    assert Guidance(3.0, every=3, block=1).weights(ladder)[first:].tolist() == [1, 1, 7, 1, 1, 7]
    assert Guidance(3.0, every=2, block=2).weights(ladder)[first:].tolist() == [4, 4, 1, 1, 4, 4]
    ladder = SCHEDULE.ladder("linspace", 32)
    for every, block, (low, high) in product((1, 2, 3, 4, 7, 1000), (1, 2, 4, 8), ((0, 1), (0.2, 0.8))):
        part, full = (
            Guidance(3.0, None, low, high, every=n, block=block).weights(ladder)[first:] - 1 for n in (every, 1)
        )
        assert part.sum() == pytest.approx(float(full.sum())) and not part[full == 0].any()
        assert bool(part[full.nonzero().max()])  # the noisiest is


def test_guidance_rescaled(stub):
    """All the way: a guided frame deviates as the conditional one does."""
    ladder = SCHEDULE.ladder("linspace", 5)
    text, null = torch.full((1, 3, 6), 40.0), torch.zeros(1, 3, 6)
    x, level = torch.randn(1, 4, 5, 9, 9), torch.tensor([[1, 2, 3, 4, 5]])
    out = {
        (weight, rescale): Sampler(Denoiser(stub), ladder, Guidance(weight, rescale=rescale))
        .bind(Condition(text, null))(x, level)
        .eps
        for weight, rescale in [(1, 0), (9, 0), (9, 0.5), (9, 1)]
    }
    of = {key: eps.std((1, 3, 4)) for key, eps in out.items()}
    assert (of[9, 0] > 1.5 * of[1, 0]).all()
    torch.testing.assert_close(of[9, 1], of[1, 0])
    torch.testing.assert_close(of[9, 0.5], (of[9, 0] + of[1, 0]) / 2)


@pytest.fixture
def full_model(videocrafter_file):
    """A golden of VideoCrafter, as a user would load it."""
    return lambda name: checkpoints.load(ModelConfig(model=str(videocrafter_file(name)))).ready(
        torch.device("cpu"), torch.float32
    )


@pytest.mark.parametrize(
    ("name", "file", "spacing"),
    [
        ("vc2_tiny", "ddim", "every"),
        ("vc2_tiny", "ddim_fifofork", "linspace"),
        ("vc1_1024_tiny", "ddim", "every"),
        ("vc1_512_tiny", "ddim", "every"),
    ],
)
def test_trajectories_of_videocrafter(full_model, trajectories, name, file, spacing):
    for found, expected in trajectories(full_model(name), name, file, spacing).values():
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_one_step_of_fifo(golden, full_model):
    t = golden("videocrafter_full/vc2_tiny/fifo_onestep").tensors
    denoiser = full_model("vc2_tiny").denoiser()
    ladder = SCHEDULE.ladder("linspace", 8, scaled=False)
    for eta in (0.0, 1.0):
        for part in ("head", "tail"):
            key = f"eta{int(eta)}_{part}"
            sampler = Sampler(denoiser, ladder, guidance=12.0, eta=eta)
            level = t[f"{key}.indices"][None] + ladder.floor
            x = t[f"{key}.x"]
            pred = sampler.bind(Condition(t["context"], t["uncond_context"], 8))(x, level)
            out = sampler.step(x, pred, level, ladder.down(level), t[f"{key}.noise"])
            torch.testing.assert_close(out, t[f"{key}.x_prev"], atol=2e-4, rtol=0)
            # x0 = (x - sigma eps) / alpha: eps' own rounding, up to 15 times amplified at the noisy end.
            expected = t[f"{key}.pred_x0"]
            torch.testing.assert_close(pred.x0, expected, atol=1e-4 * expected.std().item(), rtol=0)
