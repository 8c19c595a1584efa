"""The losses against explicit matrices, the formulas' own numbers, and each other."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vidlose.config import LOSS_OPERATORS, LOSSES, LossConfig, names
from vidlose.diffusion.denoiser import PREDICTIONS, TARGETS, Prediction, training_pair
from vidlose.errors import InputError
from vidlose.training import losses
from vidlose.training.losses import AnchorDraws, Criterion, Losses, mixing
from vidlose.training.masks import runs
from vidlose.training.operators import NORMALISERS, OPERATORS, operator

WEIGHTS = [0.5, 2.0, 1.0]
FRAMES = [1, 2, 3, 8, 16]


def config(loss: str, **more) -> LossConfig:
    """Without warm-up; what may not stand alone stands in a mix."""
    how = {"mix_with": loss} if loss == "diff_naive" else {"loss": loss}
    return LossConfig(**{"spectral_weights": WEIGHTS, "mix_warmup": 0.0, **how, **more})


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lose(cfg: LossConfig, error: Tensor, prediction: str = "eps", **more) -> Losses:
    """Of an error `[B C F h w]`, all else plain."""
    batch = len(error)
    sample = (torch.arange(batch) + 0.5) / batch
    given = {"log_snr": torch.zeros(batch), "draws": AnchorDraws(sample, 0.4), "progress": 0.5, "step": 0, **more}
    return Criterion(cfg, prediction)(error, torch.zeros_like(error), **given)


def clip(*frames: float) -> Tensor:
    return torch.tensor(frames, dtype=torch.float64)[None, None, :, None, None]


# Explicit matrices, one row at a time.


def row(frames: int, **places: float) -> Tensor:
    out = torch.zeros(frames, dtype=torch.float64)
    for place, value in places.items():
        out[int(place[1:])] = value
    return out


def anchored(frames: int, s: int, weight: float = 1.0) -> Tensor:
    """D_s of the author: differences that point away from frame s."""
    away = [row(frames, **{f"f{i}": 1, f"f{i + 1 if i < s else i - 1}": -1}) for i in range(frames) if i != s]
    return torch.stack([row(frames, **{f"f{s}": weight}), *away])


def starred(frames: int, s: int, weight: float = 1.0) -> Tensor:
    away = [row(frames, **{f"f{i}": 1, f"f{s}": -1}) for i in range(frames) if i != s]
    return torch.stack([row(frames, **{f"f{s}": weight}), *away])


EXPLICIT = {"diff": anchored, "star": starred}


def mean_form(name: str, frames: int) -> Tensor:
    return sum(EXPLICIT[name](frames, s).mT @ EXPLICIT[name](frames, s) for s in range(frames)) / frames


def dct(frames: int) -> Tensor:
    """Orthonormal DCT-II `[k F]`."""
    k, n = torch.arange(frames, dtype=torch.float64)[:, None], torch.arange(frames, dtype=torch.float64)
    out = torch.cos(torch.pi * k * (n + 0.5) / frames) * (2 / frames) ** 0.5
    out[0] /= 2**0.5
    return out


def waves(frames: int) -> Tensor:
    """4 sin^2(pi k / 2F)."""
    return 4 * torch.sin(torch.pi * torch.arange(frames, dtype=torch.float64) / (2 * frames)) ** 2


def test_the_registry_is_the_config():
    assert tuple(OPERATORS) == LOSS_OPERATORS and tuple(losses.LOSSES) == LOSSES


def test_the_essay_s_example():
    """A clip that is off by one, and one that flickers: the same to mse, not to the others."""
    shifted, flicker = clip(1, 1, 1), clip(-1, 1, -1)
    for anchor in ("sample", "first", "expected"):
        diff = config("diff", normalise="none", anchor=anchor)
        assert lose(diff, shifted).total == pytest.approx(1 / 3, abs=1e-15)
        assert lose(diff, flicker).total == pytest.approx(3, abs=1e-14)
    for error in (shifted, flicker):
        assert lose(config("mse"), error).total == 1
    naive = config("diff_naive", normalise="none", mix_weight=0.5)
    assert lose(naive, shifted).total == 0.5 and lose(naive, flicker).total == 0.5 + 0.5 * 4


@pytest.mark.parametrize("frames", FRAMES[1:])
def test_spectra(frames):
    """Of the mean over anchors: diagonal in DCT-II."""
    flat = torch.full((frames,), 2.0, dtype=torch.float64)
    flat[0] = 0
    symbols = {("diff", 1): waves(frames), ("star", 1): flat}
    symbols |= {("diff_p", order): waves(frames) ** order for order in (1, 2, 3)}
    for (name, order), symbol in symbols.items():
        cfg = config(name, normalise="none", diff_order=order)
        form = operator(name, frames, None, cfg).form()
        mean = sum(operator(name, frames, s, cfg).form() for s in range(frames)) / frames
        torch.testing.assert_close(form, mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(
            dct(frames) @ form @ dct(frames).mT, torch.diag(symbol + 1 / frames), atol=1e-12, rtol=0
        )


def test_table_of_sixteen_frames():
    """The numbers that describe the losses: trace, largest and smallest eigenvalue, gradient noise."""
    cfg = config("diff", normalise="none")
    expected = {  # largest of a draw, of the mean; E tr(A^2)/F
        "diff": ((3.96, 4.24), 4.024, 5.80),
        "star": ((16.94, 16.94), 2.0625, 18.8),
    }
    for name, (largest, of_mean, noise) in expected.items():
        draws = [operator(name, 16, s, cfg).form() for s in range(16)]
        tops = [torch.linalg.eigvalsh(form)[-1].item() for form in draws]
        assert all(form.trace() / 16 == pytest.approx(1.9375) for form in draws)
        assert (min(tops), max(tops)) == pytest.approx(largest, abs=0.006)
        mean = torch.linalg.eigvalsh(operator(name, 16, None, cfg).form())
        assert mean[-1] == pytest.approx(of_mean, abs=5e-4) and mean[0] == pytest.approx(0.0625)
        assert sum((form @ form).trace() / 16 for form in draws) / 16 == pytest.approx(noise, abs=0.05)
    mixed = 0.5 * torch.eye(16) + 0.5 * operator("diff", 16, None, config("diff")).form()
    eigenvalues = torch.linalg.eigvalsh(mixed)
    assert eigenvalues[0] == pytest.approx(0.516, abs=5e-4) and eigenvalues[-1] == pytest.approx(1.538, abs=5e-4)


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("kind", NORMALISERS)
def test_normalisers(frames, kind):
    for name in EXPLICIT:
        mean = mean_form(name, frames)
        scale = {"none": 1, "trace": mean.trace() / frames, "lmax": torch.linalg.eigvalsh(mean)[-1]}[kind]
        scale = 1 if frames == 1 else scale
        for s in range(frames):
            rows = EXPLICIT[name](frames, s)
            found = operator(name, frames, s, config(name, normalise=kind)).form()
            torch.testing.assert_close(found, rows.mT @ rows / scale, atol=1e-12, rtol=0)
        first = EXPLICIT[name](frames, 0).mT @ EXPLICIT[name](frames, 0)
        top = torch.linalg.eigvalsh(first)[-1] if kind == "lmax" else scale
        found = operator(name, frames, 0, config(name, normalise=kind, anchor="first")).form()
        torch.testing.assert_close(found, first / (1 if frames == 1 else top), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LOSS_OPERATORS)
def test_white_errors_weigh_as_in_mse(name):
    for frames in FRAMES:
        for anchor in (0, None):
            form = operator(name, frames, anchor, config("diff")).form()
            assert form.trace() / frames == pytest.approx(1)
        largest = operator(name, frames, None, config("diff", normalise="lmax", anchor="expected")).form()
        assert torch.linalg.eigvalsh(largest)[-1] == pytest.approx(1)


def test_only_naive_differences_are_blind_to_a_shift():
    for name in LOSS_OPERATORS:
        for anchor in (0, 5, None):
            smallest = torch.linalg.eigvalsh(operator(name, 8, anchor, config("diff", diff_order=3)).form())[0]
            assert (smallest > 1e-5) == (name != "diff_naive")


def test_multistride_is_the_sum_of_its_strides():
    cfg = config("multistride", strides=[1, 3, 9], normalise="none")
    steps = {d: torch.eye(5, dtype=torch.float64)[d:] - torch.eye(5, dtype=torch.float64)[:-d] for d in (1, 3)}
    forms = {d: step.mT @ step for d, step in steps.items()}
    whole = sum(form * (8 / 2) / form.trace() for form in forms.values()) + torch.eye(5, dtype=torch.float64) / 5
    torch.testing.assert_close(operator("multistride", 5, None, cfg).form(), whole, atol=1e-12, rtol=0)
    alone = replace(cfg, strides=[1])
    assert torch.equal(operator("multistride", 5, 2, alone).form(), operator("diff", 5, 2, cfg).form())


def test_spectral_weights_are_of_the_frequencies():
    given = [0.5, 1.0, 3.0, 2.0, 4.0]
    cfg = config("spectral", spectral_weights=given, normalise="none")
    form = dct(5).mT @ torch.diag(torch.tensor(given, dtype=torch.float64)) @ dct(5)
    torch.testing.assert_close(operator("spectral", 5, None, cfg).form(), form, atol=1e-12, rtol=0)
    between = operator("spectral", 9, None, cfg).weight
    torch.testing.assert_close(between[::2], torch.tensor(given, dtype=torch.float64))
    torch.testing.assert_close(between[1::2], (between[:-2:2] + between[2::2]) / 2)


# Spaces and weights.


def noised(per_frame: bool) -> tuple[Prediction, Tensor, Tensor, Tensor, Tensor]:
    """Parts, alpha and sigma `[B 1 F 1 1]`, x, log SNR `[B]` or `[B F]`."""
    log_snr = torch.tensor([[-4.0], [0.5], [3.0]]) + normal(3, 6 if per_frame else 1, seed=5)
    level = log_snr.expand(3, 6)[:, None, :, None, None]
    alpha, sigma = level.sigmoid().sqrt(), (-level).sigmoid().sqrt()
    parts = Prediction(normal(3, 2, 6, 4, 3, seed=1), normal(3, 2, 6, 4, 3, seed=2))
    return parts, alpha, sigma, alpha * parts.x0 + sigma * parts.eps, log_snr.squeeze(1)


def told(cfg: LossConfig, prediction: str, per_frame: bool = False) -> Losses:
    """The loss of what a network of this kind might say, in the config's space."""
    parts, alpha, sigma, x, log_snr = noised(per_frame)
    pred, target = training_pair(prediction, normal(*x.shape, seed=3), x, parts, alpha, sigma, cfg.loss_space)
    return lose(cfg, pred - target, prediction, log_snr=log_snr)


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs() / other.abs()).max().item()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("loss", ["mse", "diff", "star", "mix"])
def test_spaces_differ_by_a_factor(prediction, loss):
    """|D(x0^ - x0)|^2 = |D(eps^ - eps)|^2 / SNR = sigma^2 |D(v^ - v)|^2, with one level for the clip; |..| by roots."""
    log_snr = noised(per_frame=False)[-1]
    for penalty, power in (("square", 1.0), ("abs", 0.5)):
        if loss == "mix" and penalty == "abs":
            continue
        found = {
            space: told(config(loss, loss_space=space, weighting="uniform", penalty=penalty), prediction).sample
            for space in TARGETS
        }
        assert relative(found["eps"] * (-log_snr).exp() ** power, found["x0"]) < 1e-6
        assert relative(found["v"] * (-log_snr).sigmoid() ** power, found["x0"]) < 1e-6


@pytest.mark.parametrize("penalty", ["square", "abs", "huber"])
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
@pytest.mark.parametrize("per_frame", [False, True])
def test_a_weighting_is_the_same_from_every_space(penalty, weighting, per_frame):
    """The weights of x0, eps and v undo what the spaces differ by, frame by frame."""
    for loss in ("diff", "product"):
        cfg = config(loss, weighting=weighting, penalty=penalty)
        values = [told(replace(cfg, loss_space=space), "v", per_frame) for space in TARGETS]
        for other in values[1:]:
            assert relative(other.sample, values[0].sample) < 1e-6
            assert relative(other.mse, values[0].mse) < 1e-6  # measured in the network's own space
            assert relative(other.diff, values[0].diff) < 1e-6


def test_table_of_weights():
    """Of the squared error, by space: SCIENCE has W of x0, W / SNR of eps, W / (SNR + 1) of v."""
    level = torch.tensor([-4.0, -0.3, 0.8, 2.0, 5.0], dtype=torch.float64)
    snr, one = level.exp(), torch.ones(5, dtype=torch.float64)
    expected = {
        "uniform": {"x0": one, "eps": one, "v": one},
        "min-snr": {"x0": snr.clamp_max(5), "eps": snr.clamp_max(5) / snr, "v": snr.clamp_max(5) / (snr + 1)},
        "truncated-snr": {"x0": snr.clamp_min(1), "eps": snr.clamp_min(1) / snr, "v": snr.clamp_min(1) / (snr + 1)},
        "sqrt-snr": {"x0": snr.sqrt(), "eps": 1 / snr.sqrt(), "v": snr.sqrt() / (snr + 1)},
        "vdm-v": {"x0": snr + 1, "eps": (snr + 1) / snr, "v": one},
    }
    error = normal(1, 2, 6, 3, 3).expand(5, -1, -1, -1, -1)
    for weighting, spaces in expected.items():
        for space, weight in spaces.items():
            found = lose(config("mse", weighting=weighting), error, space, log_snr=level).sample
            torch.testing.assert_close(found, weight * error[0].square().mean(), rtol=1e-9, atol=0)
    for space, default in (("x0", "min-snr"), ("eps", "uniform"), ("v", "uniform")):
        assert Criterion(config("mse"), space).weighting == default
        assert Criterion(config("mse", loss_space=space), "eps").weighting == default


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
@pytest.mark.parametrize("space", TARGETS)
def test_clean_and_empty_frames_weigh_a_number(weighting, space):
    level = torch.tensor([[float("inf"), float("-inf"), 0.0]])
    found = lose(config("diff", weighting=weighting), normal(1, 2, 3, 2, 2), space, log_snr=level)
    assert found.total.isfinite()


@pytest.mark.parametrize("loss", ["mse", "diff", "star", "spectral"])
def test_levels_per_frame(loss):
    """With e' = sqrt(W) e: the form of the scaled error, which with one level for all is W times the loss."""
    error, level = normal(2, 3, 6, 2, 2), 2 * normal(2, 6, seed=9)
    cfg = config(loss, weighting="min-snr", anchor="first")
    root = (level.exp().clamp_max(5) / level.exp()).sqrt()[:, None, :, None, None]
    form = operator(loss, 6, 0, cfg).form()
    expected = torch.einsum("bcfhw,fg,bcghw->b", root * error, form, root * error) / (6 * 3 * 2 * 2)
    torch.testing.assert_close(lose(cfg, error, log_snr=level).sample, expected, rtol=1e-12, atol=0)
    same = level[:, :1].expand(2, 6)
    once, often = lose(cfg, error, log_snr=level[:, 0]), lose(cfg, error, log_snr=same)
    assert torch.equal(once.sample, often.sample)


def test_sides_are_the_network_s_own_or_the_parts():
    parts, alpha, sigma, x, _ = noised(per_frame=True)
    for prediction in PREDICTIONS:
        answer = TARGETS[prediction](parts, alpha, sigma)
        for space in TARGETS:
            pred, target = training_pair(prediction, answer, x, parts, alpha, sigma, space)
            torch.testing.assert_close(pred, target, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(target, {"x0": parts.x0, "eps": parts.eps}.get(space, target))
        said = answer.bfloat16()
        for space in ("native", prediction):
            assert training_pair(prediction, said, x, parts, alpha, sigma, space)[0] is said
    with pytest.raises(InputError, match="unknown loss space 'z'"):
        training_pair("eps", x, x, parts, alpha, sigma, "z")
    halves = [t.bfloat16() for t in (x, alpha, sigma)]
    assert training_pair("eps", said, halves[0], parts, *halves[1:], "x0")[0].dtype == torch.float32


# Masks.

MASK = torch.tensor(
    [
        [0, 0, 0, 0, 1, 1, 1, 2],  # two clips and a picture
        [0, 0, -1, 0, 0, 0, -1, 3],  # a hole, padding, a picture
        [0, 0, 0, 0, 0, 0, 0, 0],
        [5, -1, 4, -1, 3, -1, 2, 1],  # pictures
        [-1, -1, -1, -1, -1, -1, -1, -1],
    ]
)


def test_runs():
    found = [[(run.start, run.stop) for run in row] for row in runs(MASK)]
    assert found[0] == [(0, 4), (4, 7), (7, 8)] and found[1] == [(0, 2), (3, 6), (7, 8)]
    assert found[2] == [(0, 8)] and len(found[3]) == 5 and found[4] == []
    assert runs(torch.tensor([[True, False, True, True]])) == [[slice(0, 1), slice(2, 4)]]


@pytest.mark.parametrize("anchor", ["sample", "batch", "first", "expected"])
@pytest.mark.parametrize("name", EXPLICIT)
@pytest.mark.parametrize("kind", NORMALISERS)
def test_masks_against_dense_matrices(name, anchor, kind):
    """One matrix a sample: the block of every run divided by its own normaliser."""
    error, sample = normal(5, 3, 8, 2, 3), torch.tensor([0.0, 0.999, 0.5, 0.3, 0.1])
    cfg = config(name, anchor=anchor, normalise=kind, anchor_weight=0.7)
    found = lose(cfg, error, mask=MASK, draws=AnchorDraws(sample, 0.6))
    plain = lose(config("mse"), error, mask=MASK)
    for b, stretches in enumerate(runs(MASK)):
        whole = torch.zeros(8, 8, dtype=torch.float64)
        for run in stretches:
            n = run.stop - run.start
            forms = [rows.mT @ rows for rows in (EXPLICIT[name](n, s, 0.7) for s in range(n))]
            chosen = {"sample": int(sample[b] * n), "batch": int(0.6 * n), "first": 0}.get(anchor)
            mean = forms[0] if anchor == "first" else sum(forms) / n
            scale = {"none": 1, "trace": mean.trace() / n, "lmax": torch.linalg.eigvalsh(mean)[-1]}[kind]
            form = (sum(forms) / n if chosen is None else forms[chosen]) / scale
            whole[run, run] = torch.eye(1, dtype=torch.float64) if n == 1 else form
        counted = max(1, (MASK[b] >= 0).sum().item())
        expected = torch.einsum("cfhw,fg,cghw->", error[b], whole, error[b]) / (counted * 3 * 2 * 3)
        assert found.sample[b] == pytest.approx(expected.item(), rel=1e-12)
        frames = error[b][:, MASK[b] >= 0]
        assert found.mse[b] == pytest.approx(frames.square().mean().item() if frames.numel() else 0, rel=1e-12)
    assert found.sample[3] == pytest.approx(plain.mse[3].item(), rel=1e-12)  # pictures: mse
    torch.testing.assert_close(found.mse, plain.sample, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_masked_frames_have_no_say(loss):
    cfg = config(loss)
    error, other = normal(5, 2, 8, 2, 2), normal(5, 2, 8, 2, 2, seed=1)
    other = torch.where((MASK >= 0)[:, None, :, None, None], error, other)
    assert torch.equal(lose(cfg, error, mask=MASK).sample, lose(cfg, other, mask=MASK).sample)
    # Alone in a tensor of its own, a clip loses the same.
    inside = lose(cfg, error[1:2], mask=torch.tensor([[-1, -1, -1, 0, 0, 0, -1, -1]]), draws=draw(0.9))
    torch.testing.assert_close(inside.sample, lose(cfg, error[1:2, :, 3:6], draws=draw(0.9)).sample)
    images = lose(cfg, error[:, :, :1])
    torch.testing.assert_close(images.sample, error[:, :, :1].square().mean((1, 2, 3, 4)))
    torch.testing.assert_close(images.diff, images.mse)


def draw(number: float) -> AnchorDraws:
    return AnchorDraws(torch.tensor([number]), 0.4)


# Draws, processes, schedules.


@pytest.mark.parametrize("loss", ["diff", "star", "multistride", "diff_p"])
@pytest.mark.parametrize("penalty", ["square", "abs"])
def test_random_anchors_have_the_expected_form_as_mean(loss, penalty):
    error = normal(1, 2, 6, 3, 3)
    for anchor in ("sample", "batch"):
        cfg = config(loss, anchor=anchor, penalty=penalty, anchor_weight=1.3)
        each = [lose(cfg, error, draws=AnchorDraws(torch.tensor([u]), u)).total for u in (torch.arange(6) + 0.5) / 6]
        expected = lose(replace(cfg, anchor="expected"), error).total
        assert torch.stack(each).mean() == pytest.approx(expected.item(), rel=1e-12)
        assert torch.stack(each).std() > 1e-4


def test_what_is_measured_does_not_depend_on_what_is_minimised():
    error = normal(3, 2, 6, 3, 3)
    expected = torch.einsum("bcfhw,fg,bcghw->b", error, mean_form("diff", 6), error) / (6 * 2 * 9) / (11 / 6)
    for loss in LOSSES:
        for anchor in ("sample", "first"):
            cfg = config(loss, anchor=anchor, normalise="none", anchor_weight=2.0, penalty="abs", weighting="vdm-v")
            found = lose(cfg, error, log_snr=torch.tensor([-2.0, 0.0, 1.0]))
            torch.testing.assert_close(found.mse, error.square().mean((1, 2, 3, 4)))
            torch.testing.assert_close(found.diff, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_equal_one(loss):
    cfg = config(loss, weighting="min-snr")
    pred, target = normal(4, 2, 6, 3, 3).requires_grad_(), normal(4, 2, 6, 3, 3, seed=1)
    sample, log_snr, mask = torch.rand(4), normal(4, 6, seed=2), MASK[:4, :6]

    def of(part: slice) -> Losses:
        return Criterion(cfg, "eps")(
            pred[part],
            target[part],
            log_snr=log_snr[part],
            draws=AnchorDraws(sample[part], 0.7),
            progress=0.5,
            step=4,
            mask=mask[part],
        )

    whole, parts = of(slice(0, 4)), [of(slice(0, 2)), of(slice(2, 4))]
    for name in ("sample", "mse", "diff"):
        joined = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(joined, getattr(whole, name), rtol=1e-14, atol=0)
        assert getattr(whole, name).requires_grad == (name == "sample")
    expected = torch.autograd.grad(whole.total, pred)[0]
    halves = sum(torch.autograd.grad(part.total, pred)[0] for part in parts) / 2
    torch.testing.assert_close(halves, expected, rtol=1e-13, atol=1e-16)


def test_alternate_takes_turns():
    error = normal(2, 2, 6, 3, 3)
    cfg = config("alternate", anchor="first", normalise="none")
    odd, even = (lose(cfg, error, step=step).sample for step in (7, 8))
    assert torch.equal(odd, lose(config("mse"), error).sample)
    assert torch.equal(even, lose(config("diff", anchor="first", normalise="none"), error).sample)


def test_mix_warms_up_and_anneals():
    cfg = LossConfig(mix_weight=0.4, mix_warmup=0.2, mix_anneal=0.25)
    curve = [(0, 0), (0.1, 0.2), (0.2, 0.4), (0.5, 0.4), (0.75, 0.4), (0.875, 0.2), (1, 0)]
    for progress, share in curve:
        assert mixing(cfg, progress) == pytest.approx(share, abs=1e-12)
    assert mixing(LossConfig(mix_warmup=0, mix_anneal=0), 0) == mixing(LossConfig(mix_warmup=0), 1) == 0.5
    error = normal(2, 2, 6, 3, 3)
    mse, diff = (lose(config(loss), error).sample for loss in ("mse", "diff"))
    for progress, share in curve:
        torch.testing.assert_close(lose(cfg, error, progress=progress).sample, (1 - share) * mse + share * diff)


def test_product():
    """|e| |De| and e^2 (De)^2, over all frames but the first."""
    error = normal(2, 2, 6, 3, 3)
    later, steps = error[:, :, 1:], error[:, :, 1:] - error[:, :, :-1]
    found = lose(config("product", penalty="abs"), error).sample
    torch.testing.assert_close(found, (later.abs() * steps.abs()).mean((1, 2, 3, 4)))
    found = lose(config("product"), error, log_snr=torch.tensor([0.0, 3.0])).sample
    torch.testing.assert_close(found, (later * steps).square().mean((1, 2, 3, 4)))
    level = torch.tensor([-1.0, 3.0], dtype=torch.float64)
    weighted = lose(config("product", weighting="vdm-v"), error, log_snr=level).sample
    torch.testing.assert_close(weighted, found * (1 + (-level).exp()) ** 2)  # of sqrt(W) e, like all


# Numbers.


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(loss, dtype):
    pred, target = normal(2, 2, 6, 3, 3, dtype=torch.float32), normal(2, 2, 6, 3, 3, seed=1, dtype=torch.float32)
    pred, target = pred.to(dtype).requires_grad_(), target.to(dtype)
    given = {"log_snr": torch.zeros(2), "draws": AnchorDraws(torch.rand(2), 0.3), "progress": 0.5, "step": 0}
    criterion = Criterion(config(loss), "eps")
    plain = criterion(pred.float(), target.float(), **given)
    with torch.autocast("cpu", dtype=dtype):
        cast = criterion(pred, target, **given)
    for name in ("total", "sample", "mse", "diff"):
        assert getattr(cast, name).dtype == torch.float32
        assert torch.equal(getattr(cast, name), getattr(plain, name))
    cast.total.backward()
    assert pred.grad.dtype == dtype and pred.grad.isfinite().all()


@pytest.mark.parametrize("penalty", ["square", "huber"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss, penalty):
    pred, target = normal(2, 1, 5, 1, 2).requires_grad_(), normal(2, 1, 5, 1, 2, seed=1)
    criterion = Criterion(config(loss, penalty=penalty, weighting="truncated-snr"), "eps")
    draws, level = AnchorDraws(torch.tensor([0.1, 0.7]), 0.2), normal(2, 5, seed=2)

    def total(pred: Tensor) -> Tensor:
        mask = MASK[:2, :5]
        return criterion(pred, target, log_snr=level, draws=draws, progress=0.5, step=2, mask=mask).total

    assert torch.autograd.gradcheck(total, pred) and torch.autograd.gradgradcheck(total, pred)


def test_every_field_changes_the_value():
    """No knob without effect: for each, a config it matters in, and another value of it."""
    plain = LossConfig(spectral_weights=WEIGHTS)
    changes = {
        "loss": (plain, [name for name in LOSSES if name not in ("mix", "diff_naive")]),
        "loss_space": (plain, ["x0"]),
        "penalty": (plain, ["abs", "huber"]),
        "huber_delta": (replace(plain, penalty="huber"), [0.5]),
        "normalise": (plain, ["none", "lmax"]),
        "anchor": (plain, ["batch", "first", "expected"]),
        "anchor_weight": (plain, [0.5]),
        "weighting": (plain, list(losses.WEIGHTINGS)),
        "snr_gamma": (replace(plain, weighting="min-snr"), [1.0]),
        "mix_with": (plain, ["diff_naive", "star", "diff_p", "multistride", "spectral"]),
        "mix_weight": (plain, [0.4, 1.0]),
        "mix_warmup": (plain, [0.8]),
        "mix_anneal": (plain, [0.8]),
        "diff_order": (replace(plain, loss="diff_p"), [1, 3]),
        "strides": (replace(plain, loss="multistride"), [[1], [1, 2]]),
        "spectral_weights": (replace(plain, loss="spectral"), [[1.0], [2.0, 1.0]]),
    }
    assert changes.keys() == names(LossConfig)
    error, draws = normal(2, 2, 6, 3, 3), AnchorDraws(torch.tensor([0.5, 0.1]), 0.9)
    for name, (base, others) in changes.items():
        values = []
        for value in [getattr(base, name), *others]:
            cfg = replace(base, **{name: value})
            found = lose(cfg, error, draws=draws, log_snr=torch.tensor([2.5, -1.5]), progress=0.5)
            values.append(round(found.total.item(), 9))
        assert values[0] not in values[1:], (name, values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "diff_naive"}, "cannot see a shift of the whole clip; use it in mix"),
        ({"mix_with": "diff_naive", "mix_weight": 1}, "cannot see a shift"),
        ({"loss": "dif"}, "unknown loss 'dif'; choose from mse, diff"),
        ({"mix_with": "mse"}, "unknown mix with 'mse'"),
        ({"loss": "spectral"}, "needs --spectral-weights"),
        ({"loss": "mix", "mix_with": "spectral"}, "needs --spectral-weights"),
        ({"loss": "spectral", "spectral_weights": [0.0, 1.0]}, "greater than 0"),
        ({"strides": [0, 1]}, "1 frame or more"),
        ({"strides": []}, "1 frame or more"),
        ({"snr_gamma": 0.0}, "--snr-gamma is 0.0"),
        ({"mix_weight": float("nan")}, "--mix-weight is nan"),
        ({"mix_warmup": 0.6, "mix_anneal": 0.6}, "exceed the training"),
        ({"diff_order": 9}, "between 1 and 8"),
    ],
)
def test_refusals(wrong, message):
    with pytest.raises(InputError, match=message):
        LossConfig(**wrong)


def test_shapes_are_checked():
    error = normal(2, 2, 6, 3, 3)
    for wrong, message in (
        ({"log_snr": torch.zeros(3)}, r"log_snr is \(3,\), expected \(2,\) or \(2, 6\)"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, r"mask is \(2, 5\), expected \(2, 6\)"),
        ({"draws": draw(0.5)}, r"draws is \(1,\), expected \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            lose(config("diff"), error, **wrong)
