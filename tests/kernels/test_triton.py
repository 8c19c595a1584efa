"""The Triton kernels under the interpreter against the reference in fp64."""

import os

import pytest
import torch

os.environ["VIDLOSE_KERNELS"] = "triton"

from tests.kernels.matrix import FULL, TOLERANCE, Call, Case, Guarded, assert_near, cases
from vidlose import kernels
from vidlose.errors import UsageError
from vidlose.kernels import attention, diff, norm, ops, reference
from vidlose.kernels.tune import Setting


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    memory = Guarded()
    monkeypatch.setattr(attention, "empty", memory)
    monkeypatch.setattr(diff, "empty", memory)
    monkeypatch.setattr(norm, "empty", memory)
    yield
    memory.check()


@pytest.mark.parametrize("case", cases(), ids=str)
def test_attention(case):
    call = Call.of(case)
    assert_near(call(), call(fp64=True), TOLERANCE[case.dtype])


@pytest.mark.parametrize("options", [(), ("pair_mask", "bias", "relative")], ids=["plain", "options"])
def test_rows_may_be_heads_or_pixels(options):
    """Both orders of rows, of every number of heads beside what a program holds, which may be more than is usual."""
    for heads, one, other in ((1, 2, 8), (5, 8, 2)):
        call = Call.of(Case(5, 24, options=options, heads=heads))
        x = [call.leaves[name] for name in "qkv"] + [heads, call.rest.get("key_mask"), call.leaves.get("bias")]
        if options:
            x += [ops.by_distance(call.leaves[name], 5) for name in ("relative_k", "relative_v")]
        found = []
        for setting in (Setting(one, 4, by_token=True), Setting(other, 4, by_token=False)):
            back = attention.backward(call.grad, *x, wants_tables=True, setting=setting)
            found.append((*attention.forward(*x, return_entropy=True, setting=setting), *back))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [(), ("pair_mask", "bias", "relative", "cache")], ids=["plain", "options"])
def test_packed(options):
    """Queries, keys and values in one tensor have their gradient in one, and the same numbers."""
    call = Call.of(Case(5, 24, options=options))
    whole = torch.cat([call.leaves.pop(name) for name in "qkv"], -1).requires_grad_()
    more = {name: x.requires_grad_() for name, x in call.leaves.items()} | call.rest
    results = []
    for given in ((whole, None, None), whole.chunk(3, -1)):
        out, _ = kernels.temporal_attention(*given, call.heads, **more)
        results.append((out, *torch.autograd.grad(out, [whole, *call.leaves.values()], call.grad)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    expected, _ = reference.temporal_attention(whole, None, None, call.heads, **more)
    torch.testing.assert_close(results[0][0], expected, atol=1e-5, rtol=1e-5)


def test_repeats_to_the_bit():
    call = Call.of(Case(5, 40, options=FULL, pixels=1))
    one, other = call(), call()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_cache_of_no_weight_changes_nothing():
    call = Call.of(Case(5, 40, torch.float16, options=("cache",)))
    call.rest["q_weight"] = torch.ones(2, 5)
    without = Call({name: call.leaves[name] for name in "qkv"}, {}, call.grad, call.heads)()
    assert all(torch.equal(x, without[name]) for name, x in call().items() if name in without)
    call.rest["q_weight"] = torch.zeros(2, 5)
    without = Call({**call.leaves, "q": call.leaves["q_cache"]}, {}, call.grad, call.heads)
    del without.leaves["q_cache"]
    assert torch.equal(call()["out"], without()["out"])


def test_entropy_is_asked_for():
    call = Call.of(Case(3, 16))
    out, entropy = kernels.temporal_attention(*call.leaves.values(), call.heads)
    assert entropy is None
    asked, entropy = kernels.temporal_attention(*call.leaves.values(), call.heads, return_entropy=True)
    assert torch.equal(out, asked) and entropy.dtype == torch.float32 and not entropy.requires_grad


def test_gradients_of_any_layout():
    """A sum's gradient has strides of 0, a transposed one's channels lie apart."""
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 3, 2, 16))
    out, _ = kernels.temporal_attention(q, k, v, 1)
    expected, _ = reference.temporal_attention(q, k, v, 1)
    for grad in (torch.ones(()).expand(out.shape), torch.randn(16, 2, 3, 1).permute(3, 2, 1, 0)):
        found = torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)
        wanted = torch.autograd.grad(expected, (q, k, v), grad, retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("penalty", reference.PENALTIES)
@pytest.mark.parametrize(
    ("frames", "count", "dtype", "layout"),
    [
        (1, 1, torch.float32, "bcfhw"),
        (5, 4, torch.float32, "bfchw"),
        (16, 33, torch.float16, "bfhwc"),
        (33, 3, torch.bfloat16, "bfchw"),
        (64, 2, torch.float32, "bcfhw"),
    ],
)
def test_diff_loss(penalty, frames, count, dtype, layout, monkeypatch):
    """Of any strides, bounded on all sides by NaN; a row of weight 0 is only measured."""
    generator = torch.Generator().manual_seed(frames)
    sizes = dict(zip("bcfhw", (2, 3, frames, 5, 37), strict=True))

    def clip() -> torch.Tensor:
        around = torch.full([sizes[x] + 2 for x in layout], float("nan"), dtype=dtype)
        inside = around[tuple(slice(1, -1) for _ in layout)]
        inside.copy_(torch.randn(inside.shape, generator=generator))
        return inside.permute([layout.index(x) for x in "bcfhw"])

    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: torch.full_like(x, float("nan"), **kw))
    pred, target = clip(), clip()
    rows, weight = torch.randn(2, count, frames, generator=generator), torch.rand(2, count, generator=generator)
    weight[0, 0] = 0
    factor = torch.tensor([1.5, -2.0])
    results = []
    for of, leaves in ((kernels, (pred, target)), (reference, (pred.double(), target.double()))):
        leaves = [x.detach().requires_grad_() for x in leaves]
        loss, energy = of.diff_loss(*leaves, rows.double(), weight.double(), penalty=penalty, delta=0.8)
        assert not energy.requires_grad and loss.dtype == energy.dtype
        results.append((loss, energy, *torch.autograd.grad((loss * factor).sum(), leaves)))
    (loss, energy, *grads), (loss64, energy64, *grads64) = results
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), loss64, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(energy.double(), energy64, rtol=1e-6, atol=1e-7)
    for one, other in zip(grads, grads64, strict=True):
        error = (one.double() - other).norm() / other.norm()
        assert one.dtype == dtype and error < {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]


def test_diff_loss_without_gradient():
    pred, target = torch.randn(2, 1, 3, 2, 3, 3).unbind()
    with torch.no_grad():
        loss, energy = kernels.diff_loss(pred.requires_grad_(), target, torch.eye(2).expand(1, 2, 2), torch.ones(1, 2))
    assert not loss.requires_grad
    torch.testing.assert_close(loss, energy.sum(1))


@pytest.mark.parametrize("joint", [False, True], ids=["per frame", "joint"])
@pytest.mark.parametrize(
    ("channels", "side", "dtype"),
    [(64, (5, 7), torch.float32), (96, (1, 1), torch.float32), (160, (32, 33), torch.float32)]
    + [(128, (8, 16), dtype) for dtype in (torch.float16, torch.bfloat16)],  # as many tiles one way as the other
)
def test_group_norm_tokens(channels, side, dtype, joint):
    """Far from 0, where sums of squares would lose everything; frames differ; all of any strides."""
    generator = torch.Generator().manual_seed(channels)
    images = torch.randn(6, *side, channels, generator=generator).permute(0, 3, 1, 2)
    images = (images + 20 + 3 * torch.arange(6)[:, None, None, None]).to(dtype)
    weight, bias = torch.randn(channels, 2, generator=generator).to(dtype).unbind(1)
    grad = torch.randn(2, 3, channels, side[0] * side[1], generator=generator).transpose(2, 3).to(dtype)
    results = []
    for of, kind in ((kernels, dtype), (reference, torch.float64), (reference, torch.float32)):
        leaves = [x.to(kind).detach().requires_grad_() for x in (images, weight, bias)]
        tokens = of.group_norm_tokens(leaves[0], 3, 32, *leaves[1:], 1e-6, joint=joint)
        results.append((tokens, *torch.autograd.grad(tokens, leaves, grad.to(kind))))
    ours = results[0][0]
    assert ours.dtype == dtype and ours.is_contiguous() and ours.shape == (2, 3, side[0] * side[1], channels)
    for found, expected, theirs in zip(*results, strict=True):
        assert found.shape == expected.shape
        # Three numbers that are nearly alike, far from 0, have a gradient that nobody knows well.
        allowed = max(TOLERANCE[dtype] * expected.norm(), 2 * (theirs - expected).norm())
        assert (found.double() - expected).norm() < allowed


@pytest.mark.parametrize("wants", [0, 1, 2], ids=["images", "weight", "bias"])
def test_group_norm_tokens_with_one_gradient(wants):
    given = [torch.randn(2, 32, 3, 3), torch.randn(32), torch.randn(32)]
    given[wants].requires_grad_()
    found, expected = (
        torch.autograd.grad(
            of.group_norm_tokens(given[0], 2, 4, *given[1:], 1e-6, joint=True).square().sum(), given[wants]
        )
        for of in (kernels, reference)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_group_norm_tokens_of_what_does_not_vary():
    """A rounding of the mean would be a thousandfold in what is left of them."""
    images = torch.full((2, 64, 33, 31), 0.1)
    assert (kernels.group_norm_tokens(images, 2, 32, torch.ones(64), torch.zeros(64), 1e-6) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_group_norm_tokens_under_autocast(monkeypatch, dtype):
    """In autocast's dtype, as the layer behind it would have them; weights stay as they are, gradients like them."""
    given = [torch.randn(2, 32, 3, 3).to(dtype), torch.randn(32), torch.randn(32)]
    results = []
    for choice in ("triton", "eager"):
        monkeypatch.setenv("VIDLOSE_KERNELS", choice)
        leaves = [x.clone().requires_grad_() for x in given]
        with torch.autocast("cpu", torch.bfloat16):
            tokens = kernels.group_norm_tokens(leaves[0], 2, 8, *leaves[1:], 1e-6, joint=True)
        results.append((tokens, *torch.autograd.grad(tokens.square().sum(), leaves)))
    assert results[0][0].is_contiguous() and results[0][0].dtype == torch.bfloat16
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).norm() < 2e-2 * max(expected.norm(), 1)


def test_group_norm_tokens_of_which_nothing_is_wanted():
    class Cut(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x * 1)
        backward = staticmethod(lambda ctx, grad: None)

    images = torch.randn(1, 8, 3, 3, requires_grad=True)
    tokens = kernels.group_norm_tokens(images, 1, 2, torch.ones(8), torch.ones(8), 1e-6)
    Cut.apply(tokens).sum().backward()
    assert images.grad is None


def test_what_is_not_taken(monkeypatch):
    """A sentence where Triton is wanted, the reference otherwise."""

    def attend(frames=3, width=8, dtype=torch.float32, **more):
        return kernels.temporal_attention(*torch.randn(3, 1, frames, 1, width).to(dtype), 1, **more)

    def normed(images, weight=None):
        ones = torch.ones(32)
        return kernels.group_norm_tokens(images, 1, 32, ones if weight is None else weight, ones, 1e-6)

    table, half = torch.randn(3, 256), torch.ones(32).half()
    vast, nothing = torch.empty(1, 32, 2**14, 2**13, device="meta"), torch.empty(2, 32, device="meta")
    for message, call in (
        ("65 frames of 8 channels a head are more than 64 of 256", lambda: attend(65)),
        ("3 frames of 264 channels", lambda: attend(width=264)),
        ("too much memory", lambda: attend(64, 128)),
        ("too much memory", lambda: attend(64, 256, torch.float16, relative_k=table, relative_v=table)),
        ("torch.float64", lambda: attend(dtype=torch.float64)),
        (
            "a clip is too large",
            lambda: kernels.temporal_attention(*torch.empty(3, 1, 64, 2**20, 64, device="meta"), 1),
        ),
        ("nothing in it", lambda: kernels.temporal_attention(*torch.randn(3, 0, 4, 2, 8), 1)),
        (
            "wants a gradient",
            lambda: attend(q_cache=torch.ones(1, 3, 1, 8), q_weight=torch.ones(1, 3).requires_grad_()),
        ),
        (
            "a gradient is wanted behind a shift",
            lambda: attend(shift=torch.ones(3, 24).requires_grad_()),
        ),
        (
            "65 frames",
            lambda: kernels.diff_loss(*torch.randn(2, 1, 1, 65, 1, 1), torch.ones(1, 1, 65), torch.ones(1, 1)),
        ),
        ("images are torch.float64", lambda: normed(torch.randn(2, 32, 3, 3).double())),
        ("weight is torch.float16 on cpu, images are torch.float32", lambda: normed(torch.randn(2, 32, 3, 3), half)),
        ("weight is .* on meta, images are .* on cpu", lambda: normed(torch.randn(2, 32, 3, 3), half.to("meta"))),
        ("an image is too large", lambda: kernels.group_norm_tokens(vast, 1, 32, *nothing, 1e-6)),
        ("nothing in it", lambda: normed(torch.randn(0, 32, 3, 3))),
    ):
        with pytest.raises(UsageError, match=f"^VIDLOSE_KERNELS=triton, but .*{message}"):
            call()
    monkeypatch.setenv("VIDLOSE_KERNELS", "eager")
    assert attend(65)[0].shape == (1, 65, 1, 8)
