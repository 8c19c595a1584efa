"""Kernels on a card: temporal attention, the diff loss and the norm beside their peers, whole steps with kernels on and
off, and FIFO beside the original's structure of calls.

Shares are of the copy bandwidth measured first: attention need not move more than q, k, v and the output, on the way
back those, two gradients more and the output's. What peers need around them (copies into their layout, and back) is
timed with them, from one `[B F S 3C]` as a linear layer leaves it. Errors are against fp64. Times are the card's own,
with its cache cold: launches that the processor has not got done within a millisecond are waited for, as in a network.

    python -m tests.benchmarks.gpu [PART ...] [--smoke]

Without parts, all of them: whole steps first, whatever peers may do to the card. It takes some minutes, most of them
compilers'; a part alone takes fewer. What fails is told, and makes the exit status 1 where it is our own.

--smoke runs all that a CPU can, tiny and interpreted, and keeps no rows: it proves the file, not the kernels.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.benchmarks import fifo, rows
from vidlose import kernels
from vidlose.kernels import reference, tune
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.layers import Context
from vidlose.models.rows import Rows
from vidlose.models.temporal import TemporalAttention, TemporalTransformer
from vidlose.models.unet import UNet
from vidlose.models.videocrafter import VideoCrafter
from vidlose.recipes import runtime

SEQUENCES = 32768  # a call: a grid's second axis has 16 bits


@dataclass(frozen=True)
class Shape:
    """Temporal attention as a network calls it."""

    name: str
    batch: int
    frames: int
    pixels: int
    heads: int
    width: int

    @property
    def channels(self) -> int:
        return self.heads * self.width

    @property
    def tensor_bytes(self) -> int:
        return 2 * self.batch * self.frames * self.pixels * self.channels


SHAPES = (
    Shape("animatediff 64x64", 2, 16, 4096, 8, 40),
    Shape("animatediff 32x32", 2, 16, 1024, 8, 80),
    Shape("animatediff 16x16", 2, 16, 256, 8, 160),
    Shape("animatediff 64x64, 32 frames", 2, 32, 4096, 8, 40),
    Shape("fifo 64x64, 8 windows", 16, 16, 4096, 8, 40),
    Shape("videocrafter 40x64", 2, 16, 2560, 5, 64),
)
TINY = (Shape("smoke", 1, 5, 3, 2, 40),)


class Bench:
    """Where rows go and how time is taken; what a peer cannot do is said and left out."""

    def __init__(self, smoke: bool) -> None:
        self.smoke, self.device = smoke, "cpu" if smoke else "cuda"
        self.dtype = torch.float32 if smoke else torch.bfloat16
        self.bandwidth = float("nan")  # bytes a second
        self.failed = False

    def row(self, case: str, **metrics: Any) -> None:
        if self.smoke:
            print(f"gpu  {case}  {metrics}", flush=True)
        else:
            rows.append("gpu", case, device="cuda", **metrics)

    def wait(self) -> None:
        """Until the card has done what it was told."""
        if not self.smoke:
            torch.cuda.synchronize()

    def ms(self, run: Callable[[], Any]) -> float:
        """The median, of the card's own time: `tune.milliseconds`."""
        if self.smoke:
            began = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - began)
        return tune.milliseconds(run, budget=200)

    def share(self, moved: int, ms: float) -> float:
        return moved / (ms / 1e3) / self.bandwidth

    @contextmanager
    def peer(self, case: str, *, own: bool = False) -> Iterator[None]:
        """Whatever fails within is said, ours in full; rows of the others follow."""
        try:
            yield
        except Exception as error:  # peers fail in ways of their own
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
            print(f"gpu  {case}: {traceback.format_exc() if own else why}", file=sys.stderr, flush=True)
            self.failed |= own
            if not self.smoke:
                torch.cuda.empty_cache()


@contextmanager
def chosen(choice: str) -> Iterator[None]:
    """VIDLOSE_KERNELS for a while."""
    before = os.environ.get("VIDLOSE_KERNELS")
    os.environ["VIDLOSE_KERNELS"] = choice
    try:
        yield
    finally:
        os.environ.pop("VIDLOSE_KERNELS") if before is None else os.environ.update(VIDLOSE_KERNELS=before)


def measure_copy(bench: Bench) -> None:
    """Bytes read and written a second, of 1 GiB."""
    import triton

    source = torch.empty(2**16 if bench.smoke else 2**30, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.bandwidth = 2 * source.numel() / (bench.ms(lambda: target.copy_(source)) / 1e3)
    bench.row("copy of 1 GiB", tb_per_s=bench.bandwidth / 1e12, triton=triton.__version__)


Attention = Callable[[Tensor, Shape], Tensor]
"""q, k, v packed `[B F S 3C]` -> `[B F S C]`."""


def by_sequence(packed: Tensor, shape: Shape) -> tuple[Tensor, ...]:
    """Copies `[B*S heads F D]`."""
    return tuple(
        x.unflatten(-1, (shape.heads, shape.width)).permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()
        for x in packed.chunk(3, -1)
    )


def by_frame(out: Tensor, shape: Shape) -> Tensor:
    """`[B*S heads F D]` -> `[B F S C]`, a copy."""
    return out.unflatten(0, (shape.batch, -1)).permute(0, 3, 1, 2, 4).flatten(-2)


def joined(parts: list[Tensor]) -> Tensor:
    """One by itself is no copy."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def ours(packed: Tensor, shape: Shape) -> Tensor:
    return kernels.temporal_attention(packed, None, None, shape.heads)[0]


def plain(packed: Tensor, shape: Shape) -> Tensor:
    """Product, softmax, product."""
    q, k, v = by_sequence(packed, shape)
    weights = (q @ k.mT * shape.width**-0.5).float().softmax(-1).to(v.dtype)
    return by_frame(weights @ v, shape)


def sdpa(backend: SDPBackend) -> Attention:
    def attend(packed: Tensor, shape: Shape) -> Tensor:
        parts = zip(*(x.split(SEQUENCES) for x in by_sequence(packed, shape)), strict=True)
        with sdpa_kernel([backend]):
            return by_frame(joined([F.scaled_dot_product_attention(*part) for part in parts]), shape)

    return attend


def flex(packed: Tensor, shape: Shape) -> Tensor:
    """One long sequence, in which frames of one pixel see each other: blocks of 128 hold several pixels."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    frames, tokens = shape.frames, shape.pixels * shape.frames
    if shape not in _MASKS:
        _MASKS[shape] = create_block_mask(
            lambda b, h, i, j: i // frames == j // frames, None, None, tokens, tokens, packed.device
        )
    long = packed.transpose(1, 2).flatten(1, 2).unflatten(-1, (3, shape.heads, -1))  # [B S*F 3 heads D]
    q, k, v = (x.transpose(1, 2) for x in long.unbind(2))
    out = _compiled(flex_attention)(q, k, v, block_mask=_MASKS[shape])  # [B heads S*F D]
    return out.unflatten(2, (-1, frames)).permute(0, 3, 2, 1, 4).flatten(-2)


def xformers(packed: Tensor, shape: Shape) -> Tensor:
    from xformers.ops import memory_efficient_attention

    tokens = packed.transpose(1, 2).flatten(0, 1).unflatten(-1, (3, shape.heads, -1))  # [B*S F 3 heads D]
    parts = zip(*(x.split(SEQUENCES) for x in tokens.unbind(2)), strict=True)
    out = joined([memory_efficient_attention(*part) for part in parts])
    return out.unflatten(0, (shape.batch, -1)).transpose(1, 2).flatten(-2)


_MASKS: dict[Shape, Any] = {}


@cache
def _compiled(function: Any) -> Any:
    """Once: to wrap it anew would be timed."""
    return torch.compile(function, dynamic=False)


PEERS: dict[str, Attention] = {
    "ours": ours,
    **{f"sdpa {name.split('_')[0].lower()}": sdpa(of) for name, of in SDPBackend.__members__.items() if "_" in name},
    "sdpa math": sdpa(SDPBackend.MATH),
    "product, softmax, product": plain,
    "the same, compiled": lambda packed, shape: _compiled(plain)(packed, shape),
    "flex_attention": flex,
    "xformers": xformers,
}


def attention(bench: Bench, shape: Shape) -> None:
    """Forward, and forward and backward, of all peers at one shape."""
    generator = torch.Generator(bench.device).manual_seed(0)
    size = (shape.batch, shape.frames, shape.pixels)
    packed = torch.randn(*size, 3 * shape.channels, generator=generator, device=bench.device).to(bench.dtype)
    grad = torch.randn(*size, shape.channels, generator=generator, device=bench.device).to(bench.dtype)
    few = replace(shape, pixels=min(shape.pixels, 64))
    near = packed[:, :, : few.pixels].double()
    exact, _ = reference.temporal_attention(near, None, None, few.heads)
    leaf = packed.detach().requires_grad_()
    for name, attend in PEERS.items():
        case = f"attention, {shape.name}, {name}"
        with bench.peer(case, own=name == "ours"), chosen("triton"):
            error = (attend(packed, shape)[:, :, : few.pixels].double() - exact).norm() / exact.norm()
            ms = bench.ms(lambda attend=attend: attend(packed, shape))
            share = bench.share(4 * shape.tensor_bytes, ms)
            bench.row(case, forward_ms=ms, forward_share_of_copy=share, error=error.item())
            ms = bench.ms(lambda attend=attend: torch.autograd.grad(attend(leaf, shape), leaf, grad))
            share = bench.share(11 * shape.tensor_bytes, ms)
            bench.row(case, forward_backward_ms=ms, forward_backward_share_of_copy=share)
    _compiled.cache_clear()  # or the next shapes would be too many for one function
    torch._dynamo.reset()


def orders(bench: Bench, shape: Shape) -> None:
    """The kernels alone: rows that are heads of a token, or pixels of a head."""
    from vidlose.kernels import attention as triton_attention

    packed = torch.randn(shape.batch, shape.frames, shape.pixels, 3 * shape.channels, device=bench.device)
    q, k, v = packed.to(bench.dtype).chunk(3, -1)
    usual = tune.rule(shape.frames, shape.width)
    for name, by_token in (("heads of a token", True), ("pixels of a head", False)):
        setting, case = usual._replace(by_token=by_token), f"kernel, {shape.name}, rows are {name}"
        with bench.peer(case, own=True):
            forward = bench.ms(lambda by=setting: triton_attention.forward(q, k, v, shape.heads, setting=by))
            backward = bench.ms(lambda by=setting: triton_attention.backward(q, q, k, v, shape.heads, setting=by))
            bench.row(
                case,
                forward_ms=forward,
                forward_share_of_copy=bench.share(4 * shape.tensor_bytes, forward),
                backward_ms=backward,
                backward_share_of_copy=bench.share(7 * shape.tensor_bytes, backward),
            )


def diff_loss(bench: Bench) -> None:
    """Loss and gradient of latents of 512x512x16 with 48 rows, as training has them."""
    side = 4 if bench.smoke else 64
    pred, target = torch.randn(2, 2, 4, 16, side, side, device=bench.device).to(bench.dtype).unbind()
    operator, weight = torch.randn(2, 48, 16, device=bench.device), torch.rand(2, 48, device=bench.device)
    pred.requires_grad_()

    def run(of: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        return torch.autograd.grad(of(pred, target, operator, weight, penalty="square", delta=1.0)[0].sum(), pred)[0]

    moved = 2 * pred.numel() * pred.element_size() + 4 * pred.numel()
    for name, of in (
        ("ours", kernels.diff_loss),
        ("torch", reference.diff_loss),
        ("torch, compiled", _compiled(reference.diff_loss)),
    ):
        with bench.peer(f"diff loss, {name}", own=name == "ours"), chosen("triton"):
            ms = bench.ms(lambda of=of: run(of))
            bench.row(f"diff loss, {name}", forward_backward_ms=ms, share_of_copy=bench.share(moved, ms))


def norm(bench: Bench) -> None:
    """Group norm into tokens, beside the norm and the copy that it saves, where AnimateDiff is widest and deepest."""
    for shape in ((64, 5, 2),) if bench.smoke else ((320, 64, 16), (1280, 8, 16)):
        norms(bench, *shape)


def norms(bench: Bench, channels: int, side: int, frames: int) -> None:
    """Images `[(2 F) C side side]`."""
    images = torch.randn(2 * frames, channels, side, side, device=bench.device).to(bench.dtype)
    weight, bias = torch.randn(2, channels, device=bench.device, dtype=bench.dtype)
    grad = torch.randn(2, frames, side * side, channels, device=bench.device).to(bench.dtype)
    leaf = images.detach().requires_grad_()
    moved = 3 * images.numel() * images.element_size()  # at least: read for the moments, read again, written
    for name, joint in (("per frame", False), ("joint", True)):
        exact = reference.group_norm_tokens(images.double(), frames, 32, weight.double(), bias.double(), 1e-6, joint)
        for peer, of in (
            ("ours", kernels.group_norm_tokens),
            ("torch", copied_norm),
            ("torch, compiled", _compiled(copied_norm)),
        ):

            def call(x: Tensor, of=of, joint=joint) -> Tensor:
                return of(x, frames, 32, weight, bias, 1e-6, joint=joint)

            case = f"norm to tokens, {channels}x{side}x{side}, {name}, {peer}"
            with bench.peer(case, own=peer == "ours"), chosen("triton"):
                error = (call(images).double() - exact).norm() / exact.norm()
                ms = bench.ms(partial(call, images))
                bench.row(case, forward_ms=ms, forward_share_of_copy=bench.share(moved, ms), error=error.item())
                ms = bench.ms(lambda call=call: torch.autograd.grad(call(leaf), leaf, grad))
                share = bench.share(8 * moved // 3, ms)  # on the way back, images and gradients twice, and written
                bench.row(case, forward_backward_ms=ms, forward_backward_share_of_copy=share)


def copied_norm(*given: Any, joint: bool) -> Tensor:
    """As a linear layer reads it."""
    return reference.group_norm_tokens(*given, joint).contiguous()


def motion_module(bench: Bench) -> None:
    """A whole motion module, and diffusers' of the same width."""
    channels, side, frames = (32, 2, 5) if bench.smoke else (320, 64, 16)
    heads = 2 if bench.smoke else 8
    module = TemporalTransformer(channels, heads, joint_norm=False, positions=32).to(bench.device, bench.dtype)
    x = torch.randn(2 * frames, channels, side, side, device=bench.device).to(bench.dtype)
    context = Context(frames=frames, rows=Rows(len(x)), embedding=x.new_empty(0), text=[])

    def diffusers() -> Callable[[Tensor], Tensor]:
        from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

        theirs = AnimateDiffTransformer3D(
            num_attention_heads=heads,
            attention_head_dim=channels // heads,
            in_channels=channels,
            norm_num_groups=32,
            positional_embeddings="sinusoidal",
            num_positional_embeddings=32,
            activation_fn="geglu",
        ).to(bench.device, bench.dtype)
        return lambda x: theirs(x, num_frames=frames)

    def run(name: str, call: Callable[[Tensor], Tensor], choice: str) -> None:
        with bench.peer(f"motion module, {name}", own="kernels" in name), chosen(choice):
            leaf = x.detach().requires_grad_()
            with torch.no_grad():
                forward = bench.ms(lambda: call(x))
            both = bench.ms(lambda: torch.autograd.grad(call(leaf).float().sum(), leaf))
            bench.row(f"motion module {channels} wide, {name}", forward_ms=forward, forward_backward_ms=both)

    run("kernels on", lambda x: module(x, context), "triton")
    run("kernels off", lambda x: module(x, context), "eager")
    for name, folds in (("fused", False), ("fused, positions folded", True)):
        for layer in module.modules():
            if isinstance(layer, TemporalAttention):
                layer.requires_grad_(False).fuse(folds)
        run(f"kernels on, {name}", lambda x: module(x, context), "triton")
    with bench.peer("motion module, diffusers"):
        run("diffusers", diffusers(), "eager")


SIZES: dict[str, tuple[AnimateDiff | VideoCrafter, tuple[int, int]]] = {
    "animatediff 512x512": (AnimateDiff(motion_middle=True), (64, 64)),
    "videocrafter2 512x320": (VideoCrafter(), (40, 64)),
}
"""Networks of real size, and the height and width of their latents."""


def network(bench: Bench, family: AnimateDiff | VideoCrafter) -> UNet:
    """With random weights."""
    if bench.smoke:
        wide = 64 if isinstance(family, VideoCrafter) else 32  # a head's least
        few = {"channels": (wide, wide), "attention": (True, False), "blocks": 1, "text_width": 16}
        family = type(family)(**{**vars(family), **few})
    torch.manual_seed(0)
    with torch.device(bench.device):
        unet = UNet(family).to(bench.dtype)
        for parameter in unet.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return unet


def peak(bench: Bench, run: Callable[[], Any]) -> float:
    """GiB at most."""
    if bench.smoke:
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**30


def steps(bench: Bench) -> None:
    """A call of the U-Net, and a training step of its motion modules, with kernels on and off."""
    family, size = SIZES["animatediff 512x512"]
    frames, size = (3, (4, 4)) if bench.smoke else (16, size)
    unet = network(bench, family).eval().requires_grad_(False)
    with torch.device(bench.device):
        x = torch.randn(2, 4, frames, *size, dtype=bench.dtype)
        text = torch.randn(2, 77, unet.family.text_width, dtype=bench.dtype)
        given = (x, torch.randint(0, 1000, (2, frames)), text)

    @torch.no_grad()
    def call() -> Tensor:
        return unet(*given)

    names = ("kernels off", "kernels on", "kernels on, fused", "kernels on, fused, positions folded")
    for name in names:
        with bench.peer(f"U-Net, {name}", own=True), chosen("eager" if "off" in name else "triton"):
            if "fused" in name:
                unet.fuse(folds="folded" in name)
            bench.row(f"U-Net 512x512x16, {name}", ms=bench.ms(call), peak_gib=peak(bench, call))
    unet.unfuse()
    trained = [p for layer in unet.modules() if isinstance(layer, TemporalTransformer) for p in layer.parameters()]
    for parameter in trained:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(trained, 1e-5)
    unet.train().gradient_checkpointing = True
    operator = torch.eye(frames, device=bench.device) - torch.eye(frames, device=bench.device).roll(1, 1)
    operator, weight = operator.expand(2, frames, frames), torch.ones(2, frames, device=bench.device)

    def train() -> None:
        loss, _ = kernels.diff_loss(unet(*given), given[0], operator, weight)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for name, choice in (("kernels off", "eager"), ("kernels on", "triton")):
        with bench.peer(f"training step, {name}", own=True), chosen(choice):
            bench.row(f"training step 512x512x16, {name}", ms=bench.ms(train), peak_gib=peak(bench, train))


def measure_products(bench: Bench) -> float:
    """Operations a second, of a product of matrices that leaves nothing to wish for."""
    side = 64 if bench.smoke else 8192
    a, b = torch.randn(2, side, side, device=bench.device).to(bench.dtype).unbind()
    found = 2 * side**3 / (bench.ms(lambda: a @ b) / 1e3)
    bench.row("product of 8192x8192", tflop_per_s=found / 1e12)
    return found


def endless(bench: Bench) -> None:
    """FIFO's sweep at both sizes."""
    most = measure_products(bench)
    for name, (family, size) in SIZES.items():
        sweeps(bench, name, family, size, most)
        torch._dynamo.reset()


@torch.no_grad()
def sweeps(bench: Bench, name: str, family: AnimateDiff | VideoCrafter, size: tuple[int, int], most: float) -> None:
    """The original's structure of calls and ours, of the same modules with kernels on, in turns.

    most: operations a second, of which each has a share.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    unet = network(bench, family).eval()
    lean = network(bench, family).eval()
    lean.fuse()
    last = fifo.channels_last(network(bench, family).eval())
    last.fuse()
    graph = network(bench, family).eval()
    graph.fuse()
    runtime.compile(graph, torch.device(bench.device), "eager" if bench.smoke else "inductor")
    sides: dict[str, tuple[Any, int | None]] = {
        "original": (fifo.Calls(unet), 1),
        "all": (unet, None),
        "all, 4 windows a batch": (unet, 4),
        "all, fused": (lean, None),
        "all, fused, channels last": (last, None),
        "all, fused, compiled": (graph, None),
    }
    kernels_on = "eager" if bench.smoke else "triton"  # an interpreter would take an hour
    small = {"frames": 4, "partitions": 1} if bench.smoke else {}
    size = (2, 2) if bench.smoke else size
    queues, seconds = {}, {}
    for side, (of, batch) in sides.items():
        with bench.peer(f"fifo, {name}, {side}", own=True), chosen(kernels_on):
            queue = fifo.queue_of(unet, of, batch, *size, device=bench.device, **small)
            next(queue)  # the first frame needs no sweep
            next(queue)  # compilers
            next(queue)  # and what they keep of a second call, as graphs are
            queues[side], seconds[side] = queue, []
    if "original" in queues:  # after two sweeps of the same noise
        expected = queues["original"].latents.float()
        for side, queue in queues.items():
            apart = (queue.latents.float() - expected).norm() / expected.norm()
            bench.row(f"fifo, {name}, {side}", apart_from_original=float(apart))
    work = float("nan")
    if "all" in queues:
        with FlopCounterMode(display=False) as counted, chosen("eager"):  # it does not know our operators
            next(queues["all"])
        work = counted.get_total_flops()
    for _ in range(1 if bench.smoke else 5):
        for side, queue in queues.items():
            with chosen(kernels_on):
                bench.wait()
                began = time.perf_counter()
                next(queue)
                bench.wait()
                seconds[side].append(time.perf_counter() - began)
    for side, ours in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds.get("original", ours), ours, strict=True)]
        metrics = {"seconds_per_frame": median(ours), "original_over_ours": median(ratios)}
        if side != "original":
            metrics["share_of_products"] = work / median(ours) / most
        bench.row(f"fifo, {name}, {side}", **metrics)


def attentions(bench: Bench) -> None:
    """All shapes."""
    for shape in TINY if bench.smoke else SHAPES:
        orders(bench, shape)
        attention(bench, shape)


PARTS: dict[str, Callable[[Bench], None]] = {
    "steps": steps,
    "module": motion_module,
    "diff": diff_loss,
    "norm": norm,
    "fifo": endless,
    "attention": attentions,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    smoke = asked.smoke
    if smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    elif not torch.cuda.is_available():
        sys.exit("bench-gpu needs a CUDA device, and here is none; --smoke proves the file on a CPU")
    bench = Bench(smoke)
    measure_copy(bench)
    for name, part in PARTS.items():
        if name in asked.parts or not asked.parts:
            part(bench)
    sys.exit(bench.failed)


if __name__ == "__main__":
    main()
