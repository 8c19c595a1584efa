"""How the attention kernels are launched: by a rule, or as was measured to be fastest on this card.

The rule is of registers, which compilers tell without a card (`vidlose.kernels.build`): compute capabilities 8.0 and
9.0 take about as many of them. `measure` times what might be faster, and writes a file of the card and of Triton's
version, which the first launch there reads. Nothing needs it. Settings differ in speed, and in results by rounding.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from vidlose.places import cache_folder

WIDTHS = (40, 64, 80, 160)  # of heads: AnimateDiff's three levels, VideoCrafter's one
BATCH, FRAME, HEADS = 2, 4096 * 320, 8  # clips, numbers in a frame: AnimateDiff's finest level at 512x512
CACHE, HEAD_START = 2**28, 2_000_000  # bytes, more than any has; cycles, about a millisecond
GAIN = 0.98  # of the rule's time: what takes more is noise


class Setting(NamedTuple):
    """Of one launch: rows and warps of a program; whether its rows are heads of a token or pixels of a head."""

    rows: int
    warps: int
    by_token: bool = True


def padded(frames: int) -> int:
    """Frames of a block: a power of two, at least 16."""
    return max(16, 1 << (frames - 1).bit_length())


def rule(frames: int, width: int, *, wide: bool = False, tables: bool = False) -> Setting:
    """wide: fp32, tables: with relative positions.

    In 16 bits nothing spills up to 32 frames, but for tables beside heads of another width than 64, which no model has.
    At 64 frames, on compute capability 8.0, a little does of tables (backward) and of positions at a width of 160.
    fp32 does where frames are many: its products are plain arithmetic, of registers.
    """
    size = padded(frames)
    tokens = 64 // (1 + wide) // (1 + (width > 128)) // (1 + (tables and size > 16))
    many = 32 * 128 if tables else 64 * 129
    warps = 8 if size * width >= many or (wide and (size > 32 or width > 64)) else 4
    return Setting(max(1, tokens // size), warps)


def candidates(frames: int) -> list[Setting]:
    """What `measure` tries: programs of 32 to 128 tokens, of which a warp has 8 to 32."""
    size = padded(frames)
    return [
        Setting(tokens // size, tokens // share, by_token)
        for tokens, share, by_token in product((32, 64, 128), (8, 16, 32), (True, False))
        if tokens >= size and 2 <= tokens // share <= 8
    ]


def setting(
    kernel: str,
    frames: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    plain: bool = True,
    tables: bool = False,
) -> Setting:
    """For a launch of "forward", "shifted" (forward, with positions: it holds twice the numbers in registers) or
    "backward"; width: of a head; tables: with relative positions.

    plain: as `measure` has it, without anything that might take a program beyond the memory that it was seen to fit.
    """
    wide = dtype == torch.float32
    if device.type == "cuda" and plain and not wide and not tables:
        found = measured(device).get(_key(kernel, frames, width))
        if found is not None:
            return found
    return rule(frames, width, wide=wide, tables=tables)


def measure(
    device: torch.device,
    *,
    frames: Sequence[int] = (16,),
    timer: Callable[[Callable[[], Any]], float] | None = None,
    report: Callable[[str, Setting, float], None] = lambda *_: None,
) -> Path:
    """Times the candidates for windows of so many frames in bf16; remembers those that beat the rule.

    Minutes, most of them the compiler's. timer: a call -> its ms, the median of many; report: told of each, with
    what it is for. Returns the file, in which other measurements of this card stay. Raises OSError where the disk
    refuses.
    """
    from triton.errors import TritonError

    from vidlose.kernels import attention

    timer, found = timer or milliseconds, dict(measured(device))
    for length, width in product((f for f in frames if f <= attention.MAX_FRAMES), WIDTHS):
        shape = (BATCH, length, FRAME // (HEADS * width), 3 * HEADS * width)
        q, k, v = torch.randn(shape, device=device, dtype=torch.bfloat16).chunk(3, -1)
        positions = torch.zeros(length, 3 * HEADS * width, device=device, dtype=torch.bfloat16)
        calls: dict[str, Callable[..., Any]] = {
            "forward": partial(attention.forward, q, k, v, HEADS),
            "shifted": partial(attention.forward, q, k, v, HEADS, shift=positions),
            "backward": partial(attention.backward, q, q, k, v, HEADS),
        }
        for kernel, call in calls.items():
            key, usual, times = _key(kernel, length, width), rule(length, width), {}
            for tried in dict.fromkeys((usual, *candidates(length))):
                try:
                    with torch.cuda.device_of(q):  # whose events the timer takes
                        times[tried] = timer(partial(call, setting=tried))
                except (TritonError, RuntimeError):  # more shared memory than the card has, or the compiler gives up
                    if tried == usual:
                        raise
                    continue
                report(key, tried, times[tried])
            found.pop(key, None)
            best = min(times, key=lambda tried: times[tried], default=usual)
            if best != usual and times[best] < GAIN * times.get(usual, float("inf")):
                found[key] = best
    return _write(device, found)


@cache
def measured(device: torch.device) -> dict[str, Setting]:
    """What is better than the rule on a card; nothing without a file of this card and this Triton, whole and sound."""
    settings: dict[str, Setting] = {}
    try:
        found = json.loads(_path(device).read_text())
        if (found["card"], found["triton"]) != _versions(device):
            return {}
        for key, fields in found["settings"].items():
            known = candidates(int(key.split()[1]))
            settings[key] = known[known.index(Setting(*fields))]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError):
        return {}
    return settings


def _write(device: torch.device, settings: dict[str, Setting]) -> Path:
    path, (card, triton) = _path(device), _versions(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps({"card": card, "triton": triton, "settings": settings}, indent=1) + "\n")
    part.replace(path)
    measured.cache_clear()
    return path


def _key(kernel: str, frames: int, width: int) -> str:
    return f"{kernel} {padded(frames)} {width}"


def _path(device: torch.device) -> Path:
    return cache_folder() / re.sub(r"[^\w.-]+", "-", "kernels-{}-{}.json".format(*_versions(device)))


def _versions(device: torch.device) -> tuple[str, str]:
    """The card's name, and Triton's version."""
    import triton

    return torch.cuda.get_device_name(device), triton.__version__


def milliseconds(call: Callable[[], Any], *, budget: float = 50) -> float:
    """The median of the current card's own time, of 5 to 100 calls in about so many ms of it.

    It sleeps while the processor launches, or that would be measured for what takes a tenth of a millisecond; and
    finds nothing of the call in its cache.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush = torch.empty(CACHE, dtype=torch.uint8, device="cuda")

    def once() -> float:
        flush.zero_()
        torch.cuda._sleep(HEAD_START)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    once()  # compiles
    often = budget / max(min(once() for _ in range(3)), 1e-3)
    return median(once() for _ in range(round(min(max(often, 5), 100))))
