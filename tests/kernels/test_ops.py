"""The kernels as torch operators: registration, torch.compile, autocast, meta tensors, checkpointing."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

os.environ["VIDLOSE_KERNELS"] = "triton"

from vidlose import kernels
from vidlose.kernels import attention, ops, reference
from vidlose.models.layers import Context
from vidlose.models.rows import Rows
from vidlose.models.temporal import TemporalAttention

B, F, S, HEADS, D = 2, 5, 3, 2, 16
C = HEADS * D
MASK = torch.tensor([[1, 1, 1, 0, 1], [0, 1, 1, 1, 1]]).bool()


def normal(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


def attention_arguments(options: bool) -> tuple:
    q, k, v = normal(B, F, S, 3 * C, grad=False).chunk(3, -1)
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    if not options:
        return q, k, v, HEADS, None, None, None, None, None, None, None, False
    tables = normal(2 * F - 1, D), normal(2 * F - 1, D)
    cache = normal(B, F, S, C), torch.rand(B, F)
    return q, k, v, HEADS, MASK, normal(HEADS, F, F), *tables, *cache, None, True


class Layer(nn.Module):
    """Linear, attention, linear, and the diff loss of what comes out against 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out, self.table = nn.Linear(C, 3 * C), nn.Linear(C, C), nn.Parameter(torch.randn(5, D))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, -1)
        out, entropy = kernels.temporal_attention(
            q, k, v, HEADS, key_mask=MASK, relative_k=self.table, relative_v=self.table, return_entropy=True
        )
        clip = self.out(out).permute(0, 3, 1, 2)[..., None]  # [B C F S 1]
        loss, _ = kernels.diff_loss(clip, torch.zeros_like(clip), torch.eye(F).expand(B, F, F), torch.ones(B, F))
        return loss.sum(), out, entropy

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, tuple(self.parameters()))


@pytest.mark.parametrize("options", [False, True])
def test_registration_of_attention(options):
    torch.library.opcheck(ops._attention, attention_arguments(options))


def test_registration_of_packed_attention():
    arguments = attention_arguments(True)
    packed = torch.cat(arguments[:3], -1).detach().requires_grad_()
    torch.library.opcheck(ops._attention, (packed, None, None, *arguments[3:]))


def test_registration_of_shifted_attention():
    arguments = [x.detach() if isinstance(x, Tensor) else x for x in attention_arguments(True)]
    arguments[10] = normal(F, 3 * C, grad=False)
    torch.library.opcheck(ops._attention, tuple(arguments))


def test_registration_of_attention_backward():
    q, k, v, heads, mask, bias, table_k, table_v, *_ = (
        x.detach() if isinstance(x, Tensor) else x for x in attention_arguments(True)
    )
    packed = torch.cat([q, k, v], -1)
    for parts, *wants in (((q, k, v), False, False), ((q, k, v), True, True), ((packed, None, None), True, True)):
        arguments = (normal(B, F, S, C, grad=False), *parts, heads, mask, bias, table_k, table_v, *wants)
        torch.library.opcheck(ops._attention_backward, arguments)


@pytest.mark.parametrize("wants_grad", [False, True])
def test_registration_of_the_diff_loss(wants_grad):
    clips = (normal(B, 3, F, 2, 4, grad=wants_grad), normal(B, F, 3, 2, 4, grad=wants_grad).transpose(1, 2))
    given = (*clips, normal(B, 2, F, grad=False), normal(B, 2, grad=False), "huber", 0.5, wants_grad)
    torch.library.opcheck(ops._diff_loss, given)


def test_registration_of_the_norm():
    affine = torch.ones(32).requires_grad_(), torch.zeros(32).requires_grad_()
    torch.library.opcheck(ops._group_norm_tokens, (normal(4, 32, 3, 2), 2, 32, *affine, 1e-6, True, torch.float32))
    moments, grad = (normal(2, 4, 32, grad=False).abs().unbind(), normal(2, 2, 6, 32, grad=False))
    given = (grad, normal(4, 32, 3, 2, grad=False), *moments, 2, torch.ones(32), 1e-6, True)
    torch.library.opcheck(ops._group_norm_tokens_backward, given)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph(backend):
    layer, x = Layer(), normal(B, F, S, C)
    expected = layer(x)
    torch._dynamo.reset()
    found = torch.compile(layer, backend=backend, fullgraph=True)(x)
    for one, other in zip(
        (*found, *layer.gradients(found[0])), (*expected, *layer.gradients(expected[0])), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_one_graph_of_any_size():
    """Met by torch.compile before anything else has called it."""
    code = """
import torch
from vidlose import kernels

def loss(x):
    out, entropy = kernels.temporal_attention(x, None, None, 2, return_entropy=True)
    clip = out.permute(0, 3, 1, 2)[..., None]
    rows, weight = torch.ones(len(x), 2, x.shape[1]), torch.ones(len(x), 2)
    return kernels.diff_loss(clip, torch.zeros_like(clip), rows, weight)[0].sum() + entropy.sum()

compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
for shape in ((2, 3, 4, 96), (3, 5, 6, 96), (2, 7, 2, 96)):
    x = torch.randn(shape, requires_grad=True)
    results = [(value := of(x), *torch.autograd.grad(value, x)) for of in (compiled, loss)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """Everything becomes autocast's type on the way in; the loss stays in full precision."""
    layer, x = Layer(), normal(B, F, S, C)
    full = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        loss, out, entropy = layer(x)
        direct, _ = kernels.temporal_attention(*normal(3, B, F, S, C).unbind(), HEADS)
    assert out.dtype == direct.dtype == dtype and loss.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(out.float(), full[1], atol=5e-2, rtol=0)
    grads = layer.gradients(loss)
    assert all(grad.dtype == torch.float32 for grad in grads)
    for one, other in zip(grads, layer.gradients(full[0]), strict=True):
        assert (one - other).norm() < 0.05 * other.norm()


def test_meta_tensors_have_shapes():
    arguments = [x.to("meta") if isinstance(x, Tensor) else x for x in attention_arguments(True)]
    out, entropy = ops._attention(*arguments)
    assert out.shape == (B, F, S, C) and out.is_meta and entropy.shape == (B * S, HEADS)
    clip = torch.empty(B, 3, F, 2, 4, device="meta", dtype=torch.bfloat16)
    rows, weight = torch.empty(B, 7, F, device="meta"), torch.empty(B, 7, device="meta")
    assert kernels.temporal_attention(*arguments[:3], HEADS)[0].is_meta
    loss, energy, grad = ops._diff_loss(clip, clip, rows, weight, "square", 1.0, True)
    assert loss.shape == (B,) and energy.shape == (B, 7) and grad.shape == clip.shape and grad.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    layer, x = Layer(), normal(B, F, S, C)
    plain = layer.gradients(layer(x)[0])
    loss = checkpoint(lambda x: layer(x)[0], x, use_reentrant=reentrant)
    loss.backward()
    for parameter, grad in zip(layer.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, grad)


def test_only_what_is_wanted_gets_a_gradient():
    arguments = list(attention_arguments(True))
    for i in (0, 1, 2, 6, 8):
        arguments[i] = arguments[i].detach()
    out, _ = ops._attention(*arguments)
    grads = torch.autograd.grad(out.sum(), (arguments[5], arguments[7]))
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


def test_a_second_derivative_is_refused():
    q, k, v = (normal(1, 3, 1, 16, grad=False).clone().requires_grad_() for _ in range(3))
    out, _ = kernels.temporal_attention(q, k, v, 1)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        grad.square().sum().backward()


def test_a_second_derivative_of_the_diff_loss_is_refused():
    """Not taken for that of a constant."""
    pred, target = normal(2, 1, 2, 3, 2, 2, grad=False).unbind()
    loss, _ = kernels.diff_loss(pred.requires_grad_(), target, torch.eye(3)[None], torch.ones(1, 3))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss.square().sum(), pred, create_graph=True)


def test_frames_out_of_reach_are_brought_near():
    """Offsets between frames have 32 bits: gradients and cached queries may be views of anything."""
    for apart, stays in ((2**20, True), (2**30, False)):
        x = torch.empty_strided((1, 3, 2, 16), (1, apart, 16, 1), device="meta")
        assert (ops._readable(x, x.dtype) is x) == stays and ops._readable(x, x.dtype).stride(3) == 1
        assert ops._readable(x, x.dtype).stride(1) == (apart if stays else 32)


@torch.no_grad()
def test_positions_come_in_where_the_kernel_reads(monkeypatch):
    layer, x = TemporalAttention(C, HEADS, positions=8), normal(B, F, S, C)
    context = Context(frames=F, rows=Rows(B * F), embedding=x.new_empty(0), text=[])
    expected = layer(x, context)
    shifts, forward = [], attention.forward
    monkeypatch.setattr(attention, "forward", lambda *args: (shifts.append(args[10]), forward(*args))[1])
    layer.fuse()
    torch.testing.assert_close(layer(x, context), expected, atol=1e-5, rtol=0)
    assert [shift.shape for shift in shifts] == [(F, 3 * C)]


@pytest.mark.parametrize(("frames", "reach"), [(1, 2), (4, 3), (4, 8), (9, 3), (5, 0)])
def test_tables_by_distance(frames, reach):
    table = torch.randn(2 * reach + 1, 4)
    place = torch.arange(frames)
    found = ops.by_distance(table, frames)
    assert found.shape == (2 * frames - 1, 4)
    expected = reference.relative_rows(frames, table)
    assert torch.equal(found[place[None, :] - place[:, None] + frames - 1], expected)
