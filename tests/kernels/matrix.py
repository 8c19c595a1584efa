"""Cases of the kernels, the truth in fp64, and memory that notices what is not written or not theirs."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidlose import kernels
from vidlose.kernels import reference

TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
HEADS, BATCH, PIXELS = 3, 2, 3
FULL = ("pair_mask", "bias", "relative", "cache")


@dataclass(frozen=True)
class Case:
    """A call of temporal attention: frames, a head's width, options; packed is q, k, v in one tensor."""

    frames: int
    width: int
    dtype: torch.dtype = torch.float32
    options: tuple[str, ...] = ()
    order: str = "bfsc"
    packed: bool = True
    batch: int = BATCH
    pixels: int = PIXELS
    heads: int = HEADS

    def __str__(self) -> str:
        words = (f"F{self.frames}", f"D{self.width}", str(self.dtype)[6:], self.order, *self.options)
        return "-".join(words if self.packed else (*words, "apart"))


def cases() -> list[Case]:
    """Every number of frames and width in fp32; every option alone and together; every type and layout."""
    widths = {1: (128,), 5: (40, 160), 8: (8,), 13: (64,), 16: (80, 256), 24: (80,), 32: (24,), 33: (64,), 64: (40,)}
    orders = ("bfsc", "bsfc")
    shapes = enumerate((f, d) for f in widths for d in widths[f])
    found = [Case(f, d, order=orders[i % 2], packed=i % 3 > 0) for i, (f, d) in shapes]
    for i, option in enumerate(("key_mask", "pair_mask", "bias", "relative", "far", "cache", "shift")):
        found.append(Case(5, 40, options=(option,), order=orders[i % 2], packed=i % 3 > 0))
    for f, d, pixels in ((5, 40, 3), (16, 64, 3), (1, 16, 3), (24, 80, 1), (33, 40, 1), (64, 8, 1), (13, 160, 1)):
        found.append(Case(f, d, options=FULL, order=orders[d == 40], pixels=pixels))
    for f, d in ((13, 64), (33, 80)):
        found.append(Case(f, d, options=(*FULL, "shift"), order=orders[d == 64], packed=d == 80, pixels=1))
    for dtype in (torch.float16, torch.bfloat16):
        found.append(Case(16, 40, dtype))
        found.append(Case(24, 80, dtype, options=FULL, pixels=1))
        found.append(Case(16, 40, dtype, options=("shift",)))
        found.append(Case(16, 160, dtype, options=("key_mask", "far"), packed=False))
    return found


@dataclass
class Call:
    """Tensors of a case: what may want a gradient, and the rest of the arguments."""

    leaves: dict[str, Tensor]
    rest: dict[str, Tensor]
    grad: Tensor
    heads: int
    options: dict = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case, device: str = "cpu") -> "Call":
        generator = torch.Generator(device).manual_seed(case.frames + case.width)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        def tokens(width: int) -> Tensor:
            """`[B F S C]` in either order, NaN all around it."""
            b, f, s = case.batch, case.frames, case.pixels
            near = torch.full((b + 2, f, s + 2, width + 32), float("nan"), device=device, dtype=case.dtype)
            if case.order == "bsfc":
                near = torch.full((b + 2, s + 2, f, width + 32), float("nan"), device=device, dtype=case.dtype)
                near = near.transpose(1, 2)
            inside = near[1:-1, :, 1:-1, 16:-16]
            return inside.copy_(normal(b, f, s, width))

        b, f, c, d = case.batch, case.frames, case.heads * case.width, case.width
        q, k, v = tokens(3 * c).chunk(3, -1) if case.packed else (tokens(c) for _ in range(3))
        leaves, rest = {"q": q, "k": k, "v": v}, {}
        seen = torch.rand(b, f, f, generator=generator, device=device) > 0.4
        for option in case.options:
            if option == "key_mask":
                rest["key_mask"] = seen[:, 0].index_fill(1, torch.tensor([f - 1], device=device), True)
            elif option == "pair_mask":
                seen[0] = torch.eye(f, dtype=torch.bool, device=device)
                seen[1, min(1, f - 1)] = False  # a query that may see nothing
                rest["key_mask"] = seen
            elif option == "bias":
                leaves["bias"] = normal(case.heads, f, f)
            elif option in ("relative", "far"):  # clips longer than the tables, or shorter
                reach = max(1, f // 3) if option == "relative" else f + 2
                leaves |= {"relative_k": normal(2 * reach + 1, d), "relative_v": normal(2 * reach + 1, d)}
            elif option == "cache":
                leaves["q_cache"], rest["q_weight"] = tokens(c), torch.rand(b, f, generator=generator, device=device)
            elif option == "shift":
                rest["shift"] = normal(f, 3 * c)
        return cls(leaves, rest, tokens(c), case.heads)

    def __call__(self, *, fp64: bool = False) -> dict[str, Tensor]:
        """Output, entropy and, but behind a shift, every gradient; fp64: by the reference."""

        def given(x: Tensor) -> Tensor:
            return x.double() if fp64 and x.is_floating_point() else x

        wants_grad = "shift" not in self.rest
        leaves = {name: given(x.detach()).requires_grad_(wants_grad) for name, x in self.leaves.items()}
        named = leaves | {name: given(x) for name, x in self.rest.items()}
        attend = reference.temporal_attention if fp64 else kernels.temporal_attention
        out, entropy = attend(*(named.pop(x) for x in "qkv"), self.heads, return_entropy=True, **named)
        grads = torch.autograd.grad(out, list(leaves.values()), given(self.grad)) if wants_grad else ()
        return {"out": out.detach(), "entropy": entropy} | dict(zip(leaves, grads, strict=wants_grad))


class Guarded:
    """In place of `empty`: NaN within, and around it a number that must stay."""

    NUMBER, WIDTH = 4096.0, 1024  # a number of every type

    def __init__(self) -> None:
        self.all: list[Tensor] = []

    def __call__(self, *shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        size, width = torch.Size(shape).numel(), self.WIDTH
        whole = torch.full((size + 2 * width,), self.NUMBER, dtype=dtype or like.dtype, device=like.device)
        self.all.append(whole)
        return whole[width : width + size].fill_(float("nan")).view(shape)

    def check(self) -> None:
        for whole in self.all:
            for side in (whole[: self.WIDTH], whole[-self.WIDTH :]):
                assert (side == self.NUMBER).all(), "written outside"
        self.all.clear()


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """By the norm of each tensor's error; gradients may err threefold, entropy is a number of its own."""
    for name, want in expected.items():
        got = found[name].double()
        assert got.isfinite().all(), f"{name} is not finite"
        if name == "entropy":
            assert (got - want).abs().max() < 4 * tolerance + 1e-5, name
            continue
        error = (got - want).norm() / want.norm().clamp(min=0.03 * want.numel() ** 0.5)
        assert error < tolerance * (1 if name == "out" else 3), f"{name} errs by {error:.1e}"
