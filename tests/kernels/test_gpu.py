"""The kernels on a card: all cases in every type, sizes beyond 16 and 32 bits, to the bit, in CUDA graphs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from tests.kernels.matrix import FULL, TOLERANCE, Call, Case, Guarded, assert_near, cases
from vidlose import kernels
from vidlose.kernels import reference, tune

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def triton_or_an_error(monkeypatch):
    monkeypatch.setenv("VIDLOSE_KERNELS", "triton")
    torch.manual_seed(0)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture
def guarded(monkeypatch):
    from vidlose.kernels import attention, diff, norm

    memory = Guarded()
    monkeypatch.setattr(attention, "empty", memory)
    monkeypatch.setattr(diff, "empty", memory)
    monkeypatch.setattr(norm, "empty", memory)
    yield
    memory.check()


def room_for(gib: int) -> None:
    """What is free: another process may be at work on the same card."""
    if torch.cuda.mem_get_info()[0] < gib * 2**30:
        pytest.skip(f"needs {gib} GiB")


def packed(batch: int, frames: int, pixels: int, channels: int) -> Tensor:
    shape = (batch, frames, pixels, 3 * channels)
    return torch.empty(shape, device=DEVICE, dtype=torch.bfloat16).normal_(generator=torch.Generator(DEVICE))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", sorted(set(replace(case, dtype=torch.float32) for case in cases()), key=str), ids=str)
def test_attention(case, dtype, guarded):
    call = Call.of(replace(case, dtype=dtype), DEVICE)
    assert_near(call(), call(fp64=True), TOLERANCE[dtype])


def test_tf32_where_it_is_allowed():
    call = Call.of(Case(16, 64), DEVICE)
    exact = call(fp64=True)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert_near(call(), exact, 5e-3)


def test_packed():
    x, grad = packed(2, 16, 333, 320).requires_grad_(), packed(2, 16, 333, 320)[..., :320]
    results = []
    for given in ((x, None, None), x.chunk(3, -1)):
        out, _ = kernels.temporal_attention(*given, 8)
        results.append((out, *torch.autograd.grad(out, x, grad)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(("chosen", "seen"), [("triton", None), ("eager", None), ("eager", True)])
def test_more_sequences_than_16_bits_count(chosen, seen, monkeypatch):
    """FIFO's 8 windows of two branches at 64x64 are 65,536. Plain torch takes another way where there is a mask."""
    monkeypatch.setenv("VIDLOSE_KERNELS", chosen)
    x = packed(2, 3, 33000, 16).requires_grad_()
    mask = None if seen is None else torch.full((2, 3), seen, device=DEVICE)
    out, _ = kernels.temporal_attention(*x.chunk(3, -1), 2, key_mask=mask)
    (grad,) = torch.autograd.grad(out.float().square().sum(), x)
    ends = torch.tensor([0, 1, 16383, 32766, 32999], device=DEVICE)
    near = x.detach()[:, :, ends].double().requires_grad_()
    expected, _ = reference.temporal_attention(*near.chunk(3, -1), 2)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), near)
    assert (out[:, :, ends] - expected).norm() < 1e-2 * expected.norm()
    assert (grad[:, :, ends] - expected_grad).norm() < 3e-2 * expected_grad.norm()


@pytest.mark.parametrize(("chosen", "batch"), [("triton", 64), ("eager", 20)])  # plain torch copies it again and again
def test_more_elements_than_32_bits_count(chosen, batch, monkeypatch):
    room_for(75)
    monkeypatch.setenv("VIDLOSE_KERNELS", chosen)
    x = packed(batch, 16, 8192, 320).requires_grad_()
    out, _ = kernels.temporal_attention(*x.chunk(3, -1), 8)
    assert (out if chosen == "triton" else x).numel() > 2**31
    (grad,) = torch.autograd.grad(out, x, out.detach())
    for b, s in ((0, 0), (batch // 2, 4000), (batch - 1, 8191)):
        near = x.detach()[b : b + 1, :, s : s + 1].double().requires_grad_()
        expected, _ = reference.temporal_attention(*near.chunk(3, -1), 8)
        (expected_grad,) = torch.autograd.grad(expected, near, out[b : b + 1, :, s : s + 1].double())
        assert (out[b, :, s] - expected[0, :, 0]).norm() < 1e-2 * expected.norm()
        assert (grad[b, :, s] - expected_grad[0, :, 0]).norm() < 3e-2 * expected_grad.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_repeats_to_the_bit(dtype):
    call = Call.of(Case(16, 40, dtype, options=FULL, pixels=333, heads=8), DEVICE)
    one, other = call(), call()
    assert all(torch.equal(one[name], other[name]) for name in one)
    pred, target = torch.randn(2, 2, 4, 16, 33, 65, device=DEVICE, dtype=dtype).unbind()
    rows, weight = torch.randn(2, 48, 16), torch.rand(2, 48)
    found = [kernels.diff_loss(pred, target, rows, weight) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("penalty", reference.PENALTIES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_diff_loss(penalty, dtype, guarded):
    """As the network leaves it, `(b f) c h w`."""
    pred, target = torch.randn(2, 2, 16, 4, 33, 64, device=DEVICE).to(dtype).transpose(2, 3).unbind()
    rows, weight, factor = torch.randn(2, 48, 16), torch.rand(2, 48), torch.tensor([1.5, -2.0], device=DEVICE)
    results = []
    for of, kind in ((kernels, dtype), (reference, torch.float64)):
        leaf = pred.to(kind).detach().requires_grad_()
        loss, energy = of.diff_loss(leaf, target.to(kind), rows, weight, penalty=penalty, delta=0.8)
        results.append((loss, energy, *torch.autograd.grad((loss * factor).sum(), leaf)))
    for one, other, tolerance in zip(*results, (2e-6, 2e-6, TOLERANCE[dtype]), strict=True):
        assert (one.double() - other).norm() < tolerance * other.norm()


@pytest.mark.parametrize("joint", [False, True], ids=["per frame", "joint"])
@pytest.mark.parametrize(("channels", "side"), [(320, (40, 64)), (320, (40, 65)), (640, (8, 8)), (96, (7, 5))], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_group_norm_tokens(dtype, channels, side, joint, guarded):
    """At networks' own sizes and at odd ones, with gradients, and the same to the bit again."""
    images = torch.randn(32, channels, *side, device=DEVICE).add_(5).to(dtype)
    weight, bias = torch.randn(2, channels, device=DEVICE).to(dtype)
    grad = torch.randn(2, 16, side[0] * side[1], channels, device=DEVICE).to(dtype)
    results = []
    for of, kind in ((kernels, dtype), (kernels, dtype), (reference, torch.float64)):
        leaves = [x.to(kind).detach().requires_grad_() for x in (images, weight, bias)]
        tokens = of.group_norm_tokens(leaves[0], 16, 32, *leaves[1:], 1e-6, joint=joint)
        results.append((tokens, *torch.autograd.grad(tokens, leaves, grad.to(kind))))
    assert results[0][0].is_contiguous()
    for found, again, expected in zip(*results, strict=True):
        assert torch.equal(found, again)
        assert (found.double() - expected).norm() < 3 * TOLERANCE[dtype] * expected.norm()


def test_group_norm_tokens_beyond_32_bits():
    """The last image's offset is more than 2^31 elements."""
    room_for(14)
    images = torch.empty(54, 640, 256, 256, device=DEVICE, dtype=torch.bfloat16)
    images.normal_(generator=torch.Generator(DEVICE))
    weight, bias = torch.randn(2, 640, device=DEVICE, dtype=torch.bfloat16)
    found = kernels.group_norm_tokens(images, 2, 32, weight, bias, 1e-6)[-1]
    expected = reference.group_norm_tokens(images[-2:].float(), 2, 32, weight.float(), bias.float(), 1e-6, False)[0]
    assert images[:-2].numel() > 2**31
    assert (found.float() - expected).norm() < TOLERANCE[torch.bfloat16] * expected.norm()


def test_in_a_cuda_graph():
    """Captured once, replayed on other numbers: output, loss, the norm's tokens, and the gradient of all."""
    x, mask = packed(2, 16, 100, 320), torch.rand(2, 16, device=DEVICE) > 0.2
    rows, weight = torch.eye(16, device=DEVICE).expand(2, 16, 16), torch.ones(2, 16, device=DEVICE)
    scale = torch.randn(100, device=DEVICE)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        out, _ = kernels.temporal_attention(*leaf.chunk(3, -1), 8, key_mask=mask)
        clip = out.permute(0, 3, 1, 2)[..., None]
        loss, _ = kernels.diff_loss(clip, torch.zeros_like(clip), rows, weight)
        images = leaf.unflatten(-1, (30, 32)).flatten(0, 1)  # [(B F) 100 30 32]
        tokens = kernels.group_norm_tokens(images, 16, 4, scale, scale, 1e-6)
        return out, loss, tokens, *torch.autograd.grad(loss.sum() + (tokens * tokens).sum(), leaf)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(x)
    x.copy_(packed(2, 16, 100, 320) + 1)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, run(x), strict=True))


@pytest.mark.parametrize("width", tune.WIDTHS)
def test_settings_differ_by_rounding(width):
    """All that a measurement may choose."""
    from triton.errors import TritonError

    from vidlose.kernels import attention

    call = Call.of(Case(16, width, torch.bfloat16, pixels=5, heads=8), DEVICE)
    q, k, v = call.leaves.values()
    expected = call(fp64=True)
    for setting in tune.candidates(16):
        try:
            out, _ = attention.forward(q, k, v, 8, setting=setting)
            grads, *_ = attention.backward(call.grad, q, k, v, 8, setting=setting)
        except TritonError:  # more shared memory than the card has
            continue
        found = {"out": out} | dict(zip("qkv", grads.chunk(3, -1), strict=True))
        assert_near(found, {name: expected[name] for name in found}, TOLERANCE[torch.bfloat16])


def test_measured_settings_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "WIDTHS", (40,))
    tune.measured.cache_clear()
    path = tune.measure(torch.device(DEVICE, 0))
    assert path.parent == tmp_path / "vidlose" and path.exists()
    for options in ((), ("shift",)):
        call = Call.of(Case(16, 40, torch.bfloat16, options=options), DEVICE)
        expected = call(fp64=True)
        assert_near(call(), expected, TOLERANCE[torch.bfloat16])
        out, _ = kernels.temporal_attention(*call.leaves.values(), call.heads, **call.rest)  # without entropy: as timed
        assert_near({"out": out}, {"out": expected["out"]}, TOLERANCE[torch.bfloat16])
    tune.measured.cache_clear()


def test_a_timer_measures_the_card():
    """And not what the processor takes to ask for it."""
    x = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    little, much = tune.milliseconds(x[: 2**20].zero_), tune.milliseconds(lambda: [x.zero_() for _ in range(4)])
    assert little < 0.1 < much


@pytest.mark.parametrize("frames", [5, 16, 32])
def test_no_worse_than_sdpa(frames):
    call = Call.of(Case(frames, 40, torch.bfloat16, pixels=64, heads=8), DEVICE)
    q, k, v = (x.unflatten(-1, (8, 40)).permute(0, 2, 3, 1, 4).flatten(0, 1) for x in call.leaves.values())
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the plain one is of fp32 within
        theirs = F.scaled_dot_product_attention(q, k, v)  # [B*S heads F D]
    theirs = theirs.unflatten(0, (-1, 64)).permute(0, 3, 1, 2, 4).flatten(-2)
    exact = call(fp64=True)["out"]
    assert (call()["out"] - exact).norm() <= 1.2 * (theirs - exact).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_compile_and_checkpointing(dtype):
    layer = torch.nn.Linear(320, 960, device=DEVICE)
    x = torch.randn(2, 16, 64, 320, device=DEVICE)

    def loss(x: Tensor) -> Tensor:
        out, _ = kernels.temporal_attention(*layer(x).chunk(3, -1), 8)
        assert out.dtype == dtype
        return out.float().square().sum()  # a mean's gradients would be nothing in fp16

    with torch.autocast("cuda", dtype=dtype):
        plain = torch.autograd.grad(loss(x), layer.weight)[0]
        compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x), layer.weight)[0]
        kept = torch.autograd.grad(checkpoint(loss, x, use_reentrant=False), layer.weight)[0]
    assert torch.equal(plain, kept)
    assert (compiled - plain).norm() < 2e-2 * plain.norm()


def test_chosen_by_itself(monkeypatch):
    """auto: Triton, and the reference where Triton cannot."""
    from vidlose.kernels import ops

    monkeypatch.setenv("VIDLOSE_KERNELS", "auto")
    calls = []
    real = ops.temporal_attention
    monkeypatch.setattr(ops, "temporal_attention", lambda *given: calls.append(1) or real(*given))
    for frames, expected in ((16, 1), (65, 1)):
        kernels.temporal_attention(*torch.randn(3, 1, frames, 2, 16, device=DEVICE), 1)
        assert len(calls) == expected
