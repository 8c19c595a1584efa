"""Temporal attention in Triton: a program holds a few whole rows, so that neither sums nor maxima leave it.

A row is one pixel and one head over all frames: `[F D]`. Tensors `[B F S C]` are read where they lie; the width D of a
head is cut into two powers of two (40 = 32 + 8 of 16, 80 = 64 + 16, 160 = 128 + 32). Nothing is summed between
programs but by torch afterwards, in a fixed order: results repeat to the bit.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidlose.kernels import tune
from vidlose.kernels.reference import apart
from vidlose.kernels.tune import Setting

INTERPRETED = bool(triton.knobs.runtime.interpret)  # as triton.jit finds it below
MAX_FRAMES, MAX_WIDTH = 64, 256
MAX_HELD_FP32, MAX_HELD_TABLES = 64 * 80, 64 * 128  # beyond, shared memory of smaller cards runs out
LOG2_E = tl.constexpr(1.4426950408889634)
# Triton 3.6 has every warp do all of a batch of one, which for 64 frames is more than registers hold; 3.9 does not.
FLAT = tl.constexpr(tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 9))


@triton.jit
def _rows(heads, ROWS: tl.constexpr, BY_TOKEN: tl.constexpr):
    """The sequences and heads `[ROWS]` of this program: neighbouring heads of a token, or pixels of one head."""
    program = tl.program_id(0)
    if BY_TOKEN:
        row = program * ROWS + tl.arange(0, ROWS)
        sequence = row // heads
        head = row % heads
    else:
        sequence = program // heads * ROWS + tl.arange(0, ROWS)
        head = tl.zeros([ROWS], tl.int32) + program % heads
    return sequence, head


@triton.jit
def _load_part(base, frame, live, START: tl.constexpr, SIZE: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr):
    """`[ROWS BF SIZE]`: a head's channels from START on; 0 where there is nothing."""
    channel = START + tl.arange(0, SIZE)
    mask = live[:, :, None]
    if START + SIZE > D:
        mask = mask & (channel < D)[None, None, :]
    x = tl.load(base[:, None, None] + frame[None, :, None] + channel[None, None, :], mask=mask, other=0.0)
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def _load(base, frame, live, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, UPCAST: tl.constexpr):
    """Both parts of the heads; the second is the first where there is none."""
    x0 = _load_part(base, frame, live, 0, D0, D, UPCAST)
    x1 = x0
    if D1 > 0:
        x1 = _load_part(base, frame, live, D0, D1, D, UPCAST)
    return x0, x1


@triton.jit
def _plus(x0, x1, base, frame, live, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, UPCAST: tl.constexpr):
    """Both parts of the heads, and what lies at base added."""
    y0, y1 = _load(base, frame, live, D, D0, D1, UPCAST)
    x0 += y0
    if D1 > 0:
        x1 += y1
    return x0, x1


@triton.jit
def _store(base, frame, live, x, START: tl.constexpr, SIZE: tl.constexpr, D: tl.constexpr):
    """`[ROWS BF SIZE]` to a head's channels from START on."""
    channel = START + tl.arange(0, SIZE)
    mask = live[:, :, None]
    if START + SIZE > D:
        mask = mask & (channel < D)[None, None, :]
    to = base[:, None, None] + frame[None, :, None] + channel[None, None, :]
    tl.store(to, x.to(to.dtype.element_ty), mask=mask)


@triton.jit
def _load_table(TABLE, frames, START: tl.constexpr, SIZE: tl.constexpr, D: tl.constexpr, BF: tl.constexpr):
    """`[2BF SIZE]` of a table `[2F-1 D]`; 0 where there is nothing."""
    distance = tl.arange(0, 2 * BF)
    channel = START + tl.arange(0, SIZE)
    mask = (distance < 2 * frames - 1)[:, None] & (channel < D)[None, :]
    return tl.load(TABLE + distance[:, None] * D + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """`[ROWS M K]` by `[ROWS K N]` -> fp32 `[ROWS M N]`."""
    if FLAT and a.shape[0] == 1 and a.shape[1] == 64:
        flat = tl.dot(tl.reshape(a, a.shape[1:]), tl.reshape(b, b.shape[1:]), input_precision=PRECISION)
        out = tl.reshape(flat, (1, a.shape[1], b.shape[2]))
    else:
        out = tl.dot(a, b, input_precision=PRECISION)
    return out


@triton.jit
def _products(a0, a1, b0, b1, D1: tl.constexpr, PRECISION: tl.constexpr):
    """a b^T of every row: `[ROWS BF D]` twice -> fp32 `[ROWS BF BF]`."""
    out = _dot(a0, tl.permute(b0, (0, 2, 1)), PRECISION)
    if D1 > 0:
        out += _dot(a1, tl.permute(b1, (0, 2, 1)), PRECISION)
    return out


@triton.jit
def _flat(x):
    """`[ROWS BF N]` -> `[ROWS*BF N]`."""
    return tl.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]))


@triton.jit
def _by_key(x, frames, BF: tl.constexpr):
    """`[ROWS BF 2BF]` by distance -> `[ROWS BF BF]` by key: query i finds key j at distance j - i + F - 1."""
    f = tl.arange(0, BF)
    at = f[None, :] - f[:, None] + frames - 1
    at = tl.minimum(tl.maximum(at, 0), 2 * BF - 1)
    return tl.gather(x, tl.broadcast_to(at[None, :, :], (x.shape[0], BF, BF)), 2)


@triton.jit
def _by_distance(x, frames, BF: tl.constexpr):
    """`[ROWS BF BF]` by key -> `[ROWS BF 2BF]` by distance, 0 where there is no such key."""
    key = tl.arange(0, 2 * BF)[None, :] + tl.arange(0, BF)[:, None] - (frames - 1)
    inside = (key >= 0) & (key < frames)
    at = tl.minimum(tl.maximum(key, 0), BF - 1)
    found = tl.gather(x, tl.broadcast_to(at[None, :, :], (x.shape[0], BF, 2 * BF)), 2)
    return tl.where(inside[None, :, :], found, 0.0)


@triton.jit
def _table_products(a0, a1, TABLE, frames, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """a . table[j - i] of every row: `[ROWS BF D]` -> fp32 `[ROWS BF BF]`."""
    BF: tl.constexpr = a0.shape[1]
    t0 = _load_table(TABLE, frames, 0, D0, D, BF).to(a0.dtype)
    out = tl.dot(_flat(a0), tl.trans(t0), input_precision=PRECISION)
    if D1 > 0:
        t1 = _load_table(TABLE, frames, D0, D1, D, BF).to(a0.dtype)
        out = tl.dot(_flat(a1), tl.trans(t1), out, input_precision=PRECISION)
    return _by_key(tl.reshape(out, (a0.shape[0], BF, 2 * BF)), frames, BF)


@triton.jit
def _table_sum(weights, TABLE, frames, START: tl.constexpr, SIZE: tl.constexpr, D: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """sum over j of weights[i, j] table[j - i], from weights by distance `[ROWS BF 2BF]`: fp32 `[ROWS BF SIZE]`."""
    BF: tl.constexpr = weights.shape[1]
    table = _load_table(TABLE, frames, START, SIZE, D, BF).to(weights.dtype)
    out = tl.dot(_flat(weights), table, input_precision=PRECISION)
    return tl.reshape(out, (weights.shape[0], BF, SIZE))


@triton.jit
def _softmax(logits, BIAS, MASK, batch, head, live, frames, smb, smq, smk, BF: tl.constexpr):
    """fp32 logits `[ROWS BF BF]`, before bias and mask -> weights, logits after them, and each row's max and sum.

    A query that may see nothing has weights 0.
    """
    f = tl.arange(0, BF)
    inside = live[:, :, None] & (f < frames)[None, None, :]
    if BIAS is not None:
        at = head[:, None, None] * (frames * frames) + f[None, :, None] * frames + f[None, None, :]
        logits += tl.load(BIAS + at, mask=inside, other=0.0).to(tl.float32)
    if MASK is not None:
        at = batch[:, None, None] * smb + f[None, :, None] * smq + f[None, None, :] * smk
        seen = tl.load(MASK + at, mask=inside, other=0) != 0
    else:
        seen = (f < frames)[None, None, :]  # queries beyond the last stay finite
    logits = tl.where(seen, logits, float("-inf"))
    peak = tl.max(logits, 2)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    weights = tl.exp2((logits - peak[:, :, None]) * LOG2_E)
    total = tl.sum(weights, 2)
    weights = weights * tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)[:, :, None]
    return weights, logits, peak, total


@triton.jit
def _forward(
    Q, K, V, OUT, SHIFT, CACHE, WEIGHT, BIAS, MASK, TABLE_K, TABLE_V, ENTROPY,
    sequences, pixels, frames, heads, scale,
    sqb, sqf, sqs, skb, skf, sks, svb, svf, svs, sob, sof, sos, scb, scf, scs, swb, swf, smb, smq, smk,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    BY_TOKEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """OUT `[B F S C]` and, if given, ENTROPY `[B*S heads]`; absent tensors are None."""
    sequence, head = _rows(heads, ROWS, BY_TOKEN)
    there = sequence < sequences
    batch = (sequence // pixels).to(tl.int64)
    pixel = (sequence % pixels).to(tl.int64)
    f = tl.arange(0, BF)
    live = there[:, None] & (f < frames)[None, :]
    channel = head * D

    q0, q1 = _load(Q + (batch * sqb + pixel * sqs + channel), f * sqf, live, D, D0, D1, UPCAST)
    k0, k1 = _load(K + (batch * skb + pixel * sks + channel), f * skf, live, D, D0, D1, UPCAST)
    v0, v1 = _load(V + (batch * svb + pixel * svs + channel), f * svf, live, D, D0, D1, UPCAST)
    if SHIFT is not None:  # [F 3C]
        channels = heads * D
        row = f * (3 * channels)
        q0, q1 = _plus(q0, q1, SHIFT + channel, row, live, D, D0, D1, UPCAST)
        k0, k1 = _plus(k0, k1, SHIFT + channels + channel, row, live, D, D0, D1, UPCAST)
        v0, v1 = _plus(v0, v1, SHIFT + 2 * channels + channel, row, live, D, D0, D1, UPCAST)
    if CACHE is not None:
        own = tl.load(WEIGHT + (batch[:, None] * swb + f[None, :] * swf), mask=live, other=1.0)[:, :, None]
        c0, c1 = _load(CACHE + (batch * scb + pixel * scs + channel), f * scf, live, D, D0, D1, UPCAST)
        q0 = (own * q0.to(tl.float32) + (1.0 - own) * c0.to(tl.float32)).to(q0.dtype)
        if D1 > 0:
            q1 = (own * q1.to(tl.float32) + (1.0 - own) * c1.to(tl.float32)).to(q1.dtype)

    logits = _products(q0, q1, k0, k1, D1, PRECISION)
    if TABLE_K is not None:
        logits += _table_products(q0, q1, TABLE_K, frames, D, D0, D1, PRECISION)
    weights, logits, peak, total = _softmax(
        logits * scale, BIAS, MASK, batch, head, live, frames, smb, smq, smk, BF
    )  # fmt: skip
    if ENTROPY is not None:  # peak + ln total - sum of weight * logit
        mean = tl.sum(weights * tl.where(weights > 0, logits, 0.0), 2)
        seen = live & (total > 0)
        entropy = tl.where(seen, peak + tl.log(tl.where(total > 0, total, 1.0)) - mean, 0.0)
        tl.store(ENTROPY + (sequence * heads + head), tl.sum(entropy, 1) / frames, mask=there)

    weights = weights.to(v0.dtype)
    o0 = _dot(weights, v0, PRECISION)
    o1 = o0
    if D1 > 0:
        o1 = _dot(weights, v1, PRECISION)
    if TABLE_V is not None:
        spread = _by_distance(weights, frames, BF)
        o0 += _table_sum(spread, TABLE_V, frames, 0, D0, D, PRECISION)
        if D1 > 0:
            o1 += _table_sum(spread, TABLE_V, frames, D0, D1, D, PRECISION)
    out = OUT + (batch * sob + pixel * sos + channel)
    _store(out, f * sof, live, o0, 0, D0, D)
    if D1 > 0:
        _store(out, f * sof, live, o1, D0, D1, D)


@triton.jit
def _store_table(PARTIAL, frames, weights, x0, x1, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """This program's share of a table's gradient, weights^T x by distance, to PARTIAL `[programs 2F-1 D]` fp32."""
    BF: tl.constexpr = weights.shape[1]
    distance = tl.arange(0, 2 * BF)
    turned = tl.trans(_flat(weights))
    base = PARTIAL + tl.program_id(0).to(tl.int64) * ((2 * frames - 1) * D)
    for part in tl.static_range(2):
        if part == 0 or D1 > 0:
            channel = (0 if part == 0 else D0) + tl.arange(0, D0 if part == 0 else D1)
            mask = (distance < 2 * frames - 1)[:, None] & (channel < D)[None, :]
            share = tl.dot(turned, _flat(x0 if part == 0 else x1), input_precision=PRECISION)
            tl.store(base + (distance[:, None] * D + channel[None, :]), share, mask=mask)


@triton.jit
def _backward(
    Q, K, V, GRAD, DQ, DK, DV, BIAS, MASK, TABLE_K, TABLE_V, DBIAS, DTABLE_K, DTABLE_V,
    sequences, pixels, frames, heads, scale,
    sqb, sqf, sqs, skb, skf, sks, svb, svf, svs, sgb, sgf, sgs, sob, sof, sos, smb, smq, smk,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    BY_TOKEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """From GRAD, that of the output: DQ, DK, DV, of one layout, and programs' shares of the constants' gradients.

    Softmax is done again from Q and K: rows are whole here, and nothing was kept of them. DBIAS wants BY_TOKEN False.
    """
    sequence, head = _rows(heads, ROWS, BY_TOKEN)
    there = sequence < sequences
    batch = (sequence // pixels).to(tl.int64)
    pixel = (sequence % pixels).to(tl.int64)
    f = tl.arange(0, BF)
    live = there[:, None] & (f < frames)[None, :]
    channel = head * D

    q0, q1 = _load(Q + (batch * sqb + pixel * sqs + channel), f * sqf, live, D, D0, D1, UPCAST)
    k0, k1 = _load(K + (batch * skb + pixel * sks + channel), f * skf, live, D, D0, D1, UPCAST)
    v0, v1 = _load(V + (batch * svb + pixel * svs + channel), f * svf, live, D, D0, D1, UPCAST)
    g0, g1 = _load(GRAD + (batch * sgb + pixel * sgs + channel), f * sgf, live, D, D0, D1, UPCAST)
    logits = _products(q0, q1, k0, k1, D1, PRECISION)
    d_weights = _products(g0, g1, v0, v1, D1, PRECISION)
    if TABLE_K is not None:
        logits += _table_products(q0, q1, TABLE_K, frames, D, D0, D1, PRECISION)
    if TABLE_V is not None:
        d_weights += _table_products(g0, g1, TABLE_V, frames, D, D0, D1, PRECISION)
    weights, logits, peak, total = _softmax(
        logits * scale, BIAS, MASK, batch, head, live, frames, smb, smq, smk, BF
    )  # fmt: skip
    d_logits = weights * (d_weights - tl.sum(weights * d_weights, 2)[:, :, None])
    if DBIAS is not None:  # [blocks heads F F]: a program has its own place
        share = tl.sum(tl.where(live[:, :, None], d_logits, 0.0), 0)
        place = tl.program_id(0).to(tl.int64) * (frames * frames)
        inside = (f < frames)[:, None] & (f < frames)[None, :]
        tl.store(DBIAS + (place + f[:, None] * frames + f[None, :]), share, mask=inside)

    weights = weights.to(g0.dtype)
    d_logits = (d_logits * scale).to(k0.dtype)
    turned, d_turned = tl.permute(weights, (0, 2, 1)), tl.permute(d_logits, (0, 2, 1))
    at = batch * sob + pixel * sos + channel
    fo = f * sof
    _store(DV + at, fo, live, _dot(turned, g0, PRECISION), 0, D0, D)
    _store(DK + at, fo, live, _dot(d_turned, q0, PRECISION), 0, D0, D)
    if D1 > 0:
        _store(DV + at, fo, live, _dot(turned, g1, PRECISION), D0, D1, D)
        _store(DK + at, fo, live, _dot(d_turned, q1, PRECISION), D0, D1, D)
    dq0 = _dot(d_logits, k0, PRECISION)
    dq1 = dq0
    if D1 > 0:
        dq1 = _dot(d_logits, k1, PRECISION)
    if TABLE_K is not None:
        spread = _by_distance(d_logits, frames, BF)
        dq0 += _table_sum(spread, TABLE_K, frames, 0, D0, D, PRECISION)
        if D1 > 0:
            dq1 += _table_sum(spread, TABLE_K, frames, D0, D1, D, PRECISION)
        if DTABLE_K is not None:
            _store_table(DTABLE_K, frames, spread, q0, q1, D, D0, D1, PRECISION)
    if DTABLE_V is not None:
        _store_table(DTABLE_V, frames, _by_distance(weights, frames, BF), g0, g1, D, D0, D1, PRECISION)
    _store(DQ + at, fo, live, dq0, 0, D0, D)
    if D1 > 0:
        _store(DQ + at, fo, live, dq1, D0, D1, D)


def split(width: int) -> tuple[int, int]:
    """A head's width in two powers of two of at least 16, the second 0 where one is enough."""
    first = max(16, 1 << (width.bit_length() - 1))
    rest = width - first
    return first, max(16, triton.next_power_of_2(rest)) if rest > 0 else 0


def held(frames: int, width: int) -> int:
    """Numbers in the block of one tensor's row."""
    return tune.padded(frames) * sum(split(width))


def constants(frames: int, width: int, dtype: torch.dtype, setting: Setting) -> dict[str, Any]:
    """What a kernel is compiled for, `num_warps` included."""
    first, second = split(width)
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return {
        "D": width,
        "D0": first,
        "D1": second,
        "BF": tune.padded(frames),
        "ROWS": setting.rows,
        "BY_TOKEN": setting.by_token,
        "PRECISION": "tf32" if tf32 else "ieee",
        "UPCAST": INTERPRETED,
        "num_warps": setting.warps,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def _strides(x: Tensor | None) -> tuple[int, ...]:
    """Of `[B F S C]` but the channels' 1."""
    return (0, 0, 0) if x is None else x.stride()[:3]


def _mask(key_mask: Tensor | None, frames: int) -> tuple[Tensor | None, tuple[int, ...]]:
    """bool `[B F]` or `[B F F]` -> bytes `[B F F]`, a view, and strides."""
    if key_mask is None:
        return None, (0, 0, 0)
    seen = key_mask if key_mask.dim() == 3 else key_mask[:, None, :].expand(-1, frames, -1)
    return seen.view(torch.uint8), seen.stride()


def empty(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a kernel to fill; tests fill it with NaN."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def forward(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    heads: int,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    table_k: Tensor | None = None,
    table_v: Tensor | None = None,
    q_cache: Tensor | None = None,
    q_weight: Tensor | None = None,
    shift: Tensor | None = None,
    return_entropy: bool = False,
    setting: Setting | None = None,
) -> tuple[Tensor, Tensor]:
    """q, k, v `[B F S C]` of channel stride 1, or q of all three, -> `[B F S C]`, entropy `[B*S heads]` fp32 or `[0]`.

    table_k, table_v: `[2F-1 D]`, by distance j - i + F - 1, contiguous as bias and shift are. setting: the
    launch's, `tune.setting` if absent.
    """
    q, k, v = apart(q, k, v)
    batch, frames, pixels, channels = q.shape
    out = empty(batch, frames, pixels, channels, like=q)
    entropy = empty(*((batch * pixels, heads) if return_entropy else (0,)), like=q, dtype=torch.float32)
    mask, mask_strides = _mask(key_mask, frames)
    tables = table_k is not None or table_v is not None
    plain = key_mask is None and bias is None and q_cache is None and not return_entropy
    kernel, width = "forward" if shift is None else "shifted", channels // heads
    setting = setting or tune.setting(kernel, frames, width, q.dtype, q.device, plain=plain, tables=tables)
    with torch.cuda.device_of(q):
        _forward[(_programs(batch * pixels, heads, setting),)](
            q, k, v, out, shift, q_cache, q_weight, bias, mask, table_k, table_v, entropy if return_entropy else None,
            batch * pixels, pixels, frames, heads, width**-0.5,
            *_strides(q), *_strides(k), *_strides(v), *_strides(out), *_strides(q_cache),
            *((0, 0) if q_weight is None else q_weight.stride()), *mask_strides,
            **constants(frames, width, q.dtype, setting),
        )  # fmt: skip
    return out, entropy


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    heads: int,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    table_k: Tensor | None = None,
    table_v: Tensor | None = None,
    wants_bias: bool = False,
    wants_tables: bool = False,
    setting: Setting | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of q (as it entered the products), k and v side by side, `[B F S 3C]`; then fp32 of bias and both
    tables, `[0]` where not wanted."""
    q, k, v = apart(q, k, v)
    batch, frames, pixels, channels = q.shape
    width = channels // heads
    tables = table_k is not None or table_v is not None
    plain = key_mask is None and bias is None
    setting = setting or tune.setting("backward", frames, width, q.dtype, q.device, plain=plain, tables=tables)
    if wants_bias:
        setting = setting._replace(by_token=False)
    programs = _programs(batch * pixels, heads, setting)
    packed = empty(batch, frames, pixels, 3 * channels, like=q)
    dq, dk, dv = packed.chunk(3, -1)

    def shares(wanted: bool, *shape: int) -> Tensor | None:
        return empty(programs, *shape, like=q, dtype=torch.float32) if wanted else None

    d_bias = shares(wants_bias, frames, frames)
    d_table_k = shares(wants_tables and table_k is not None, 2 * frames - 1, width)
    d_table_v = shares(wants_tables and table_v is not None, 2 * frames - 1, width)
    mask, mask_strides = _mask(key_mask, frames)
    with torch.cuda.device_of(q):
        _backward[(programs,)](
            q, k, v, grad, dq, dk, dv, bias, mask, table_k, table_v, d_bias, d_table_k, d_table_v,
            batch * pixels, pixels, frames, heads, width**-0.5,
            *_strides(q), *_strides(k), *_strides(v), *_strides(grad), *_strides(dq), *mask_strides,
            **constants(frames, width, q.dtype, setting),
        )  # fmt: skip
    none = q.new_empty(0, dtype=torch.float32)
    return (
        packed,
        none if d_bias is None else d_bias.unflatten(0, (-1, heads)).sum(0),
        *(none.clone() if share is None else share.sum(0) for share in (d_table_k, d_table_v)),
    )


def _programs(sequences: int, heads: int, setting: Setting) -> int:
    rows = setting.rows
    return triton.cdiv(sequences * heads, rows) if setting.by_token else triton.cdiv(sequences, rows) * heads
