"""The plain temporal attention against the formula written out in fp64 loops, with every option."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from vidlose import kernels

B, F, S, HEADS, D = 2, 5, 3, 2, 4


def spelled_out(q, k, v, heads, mask=None, bias=None, rel_k=None, rel_v=None, cache=None, weight=None, shift=None):
    """One number at a time."""
    q, k, v = (t.double() for t in (q, k, v))
    batch, frames, pixels, width = q.shape
    dim = width // heads
    if shift is not None:
        q, k, v = (x + shift.double()[:, None, i * width : (i + 1) * width] for i, x in enumerate((q, k, v)))
    out, entropy = torch.zeros_like(q), torch.zeros(batch * pixels, heads, dtype=torch.float64)

    def row(table: Tensor, i: int, j: int) -> Tensor:
        reach = (len(table) - 1) // 2
        return table[max(-reach, min(reach, j - i)) + reach].double()

    for b, s, h in itertools.product(range(batch), range(pixels), range(heads)):
        own = slice(h * dim, (h + 1) * dim)
        for i in range(frames):
            query = q[b, i, s, own]
            if cache is not None:
                query = weight[b, i] * query + (1 - weight[b, i]) * cache[b, i, s, own].double()
            keys = [j for j in range(frames) if mask is None or (mask[b, j] if mask.dim() == 2 else mask[b, i, j])]
            logits = []
            for j in keys:
                key = k[b, j, s, own] + (row(rel_k, i, j) if rel_k is not None else 0)
                logits.append(float(query @ key) / math.sqrt(dim) + (float(bias[h, i, j]) if bias is not None else 0))
            weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
            for p, j in zip(weights, keys, strict=True):
                out[b, i, s, own] += p * (v[b, j, s, own] + (row(rel_v, i, j) if rel_v is not None else 0))
            entropy[b * pixels + s, h] -= (weights * weights.log()).sum() / frames
    return out, entropy


def tensors(dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.randn(B, F, S, 3 * HEADS * D, generator=torch.Generator().manual_seed(1)).to(dtype)
    return packed.chunk(3, -1)  # views: any strides are allowed


OPTIONS = {
    "plain": {},
    "key_mask": {"mask": torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]).bool()},
    "pair_mask": {"mask": torch.rand(B, F, F, generator=torch.Generator().manual_seed(3)) > 0.4},
    "bias": {"bias": torch.randn(HEADS, F, F)},
    "relative": {"rel_k": torch.randn(2 * 2 + 1, D), "rel_v": torch.randn(2 * 2 + 1, D)},
    "cache": {"cache": torch.randn(B, F, S, HEADS * D), "weight": torch.rand(B, F)},
    "shift": {"shift": torch.randn(F, 3 * HEADS * D)},
}
OPTIONS["all"] = {key: value for option in OPTIONS.values() for key, value in option.items()}
NAMES = {
    "mask": "key_mask",
    "rel_k": "relative_k",
    "rel_v": "relative_v",
    "cache": "q_cache",
    "weight": "q_weight",
    "bias": "bias",
    "shift": "shift",
}


def call(q, k, v, options, **more):
    return kernels.temporal_attention(q, k, v, HEADS, **{NAMES[key]: value for key, value in options.items()}, **more)


@pytest.mark.parametrize("name", OPTIONS)
def test_against_the_formula(name):
    options = OPTIONS[name]
    q, k, v = tensors()
    expected, entropy = spelled_out(q, k, v, HEADS, **options)
    plain, nothing = call(q, k, v, options)
    out, found = call(q, k, v, options, return_entropy=True)
    assert nothing is None and found.dtype == torch.float32 and found.shape == (B * S, HEADS)
    torch.testing.assert_close(plain.double(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.double(), entropy, atol=2e-6, rtol=0)


def test_a_query_that_sees_nothing_gives_nothing():
    q, k, v = (t.clone().requires_grad_() for t in tensors())
    mask = torch.ones(B, F, F, dtype=torch.bool)
    mask[1, 2] = False
    out, entropy = kernels.temporal_attention(q, k, v, HEADS, key_mask=mask, return_entropy=True)
    assert (out[1, 2] == 0).all() and (out[1, 1] != 0).all()
    out.sum().backward()
    assert (q.grad[1, 2] == 0).all() and entropy.isfinite().all() and not entropy.requires_grad
    assert all(t.grad.isfinite().all() for t in (q, k, v))


@pytest.mark.parametrize("name", ["plain", "all"])
def test_gradients(name):
    q, k, v = (t.double().requires_grad_() for t in tensors())
    options = {key: value.double() if value.is_floating_point() else value for key, value in OPTIONS[name].items()}
    assert torch.autograd.gradcheck(lambda q, k, v: call(q, k, v, options)[0], (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(dtype):
    q, k, v = tensors(dtype)
    for options in (OPTIONS["plain"], OPTIONS["key_mask"]):
        out, _ = call(q, k, v, options)
        expected, _ = spelled_out(q, k, v, HEADS, **options)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"key_mask": torch.ones(B, F + 1, dtype=torch.bool)},
            r"key_mask is \(2, 6\), expected \(2, 5\) or \(2, 5, 5\)",
        ),
        ({"key_mask": torch.ones(B, F)}, "key_mask is of torch.float32, expected torch.bool"),
        ({"bias": torch.ones(1, F, F)}, r"bias is \(1, 5, 5\)"),
        ({"relative_k": torch.ones(4, D)}, r"relative_k is \(4, 4\)"),
        ({"q_cache": torch.ones(B, F, S, HEADS * D)}, "go together"),
        ({"shift": torch.ones(F, HEADS * D)}, r"shift is \(5, 8\), expected \(5, 24\)"),
    ],
)
def test_shapes_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        kernels.temporal_attention(*tensors(), HEADS, **wrong)
    with pytest.raises(ValueError, match="do not split into 3 heads"):
        kernels.temporal_attention(*tensors(), 3)
    q, k, v = tensors()
    for given, message in (
        ((q[..., 1:], None, None), "7 channels do not split into queries, keys and values"),
        ((q, k, None), "k and v go together"),
        ((q, k, v[1:]), r"q, k, v differ in shape: \(2, 5, 3, 8\), \(2, 5, 3, 8\), \(1, 5, 3, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.temporal_attention(*given, HEADS)


@pytest.mark.parametrize("name", OPTIONS)
def test_autocast_rounds_what_comes_in_and_no_more(name):
    """Tables and caches may be of another type than queries, with autocast or without."""
    half = tensors(torch.bfloat16)
    plain, _ = call(*half, OPTIONS[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [call(*given, OPTIONS[name])[0] for given in (half, [x.float() for x in half])]
    assert plain.dtype == torch.bfloat16 and all(torch.equal(out, plain) for out in found)


def test_packed():
    packed = torch.cat(tensors(), -1)
    assert torch.equal(call(packed, None, None, OPTIONS["all"])[0], call(*tensors(), OPTIONS["all"])[0])


@pytest.mark.parametrize("joint", [False, True], ids=["per frame", "joint"])
def test_group_norm_tokens(joint):
    """Against the formula in loops; and what does not fit."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 6, 2, 3, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    found = kernels.group_norm_tokens(images, 2, 3, weight, bias, 1e-5, joint=joint)
    assert found.shape == (2, 2, 6, 6)
    for b, f, c in itertools.product(range(2), range(2), range(6)):
        frames = slice(2 * b, 2 * b + 2) if joint else 2 * b + f
        group = images[frames, ..., c // 2 * 2 : c // 2 * 2 + 2, :, :]
        std = (group.var(correction=0) + 1e-5).sqrt()
        expected = (images[2 * b + f, c].flatten() - group.mean()) / std * weight[c] + bias[c]
        torch.testing.assert_close(found[b, f, :, c], expected)
    for wrong, message in (
        ((images, 3, 3, weight, bias, 1e-5), r"of 3 frames, 3 groups"),
        ((images, 2, 4, weight, bias, 1e-5), r"of 2 frames, 4 groups"),
        ((images, 2, 3, weight[1:], bias, 1e-5), r"weight is \(5,\), expected \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.group_norm_tokens(*wrong)
