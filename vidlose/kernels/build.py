"""Kernels compiled for cards that are not here, and what they would take of one: `python -m vidlose.kernels.build`.

Prints a line of JSON for every kernel: registers, stack, shared memory and instructions, as ptxas and cuobjdump of the
triton package tell them. Needs no GPU, and runs without TRITON_INTERPRET, under which nothing compiles.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90)
FLOATS = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
MODEL_TYPE = {"Q", "K", "V", "OUT", "SHIFT", "CACHE", "TABLE_K", "TABLE_V", "GRAD", "DQ", "DK", "DV", "PRED", "TARGET"}
MODEL_TYPE |= {"IMAGES", "TOKENS", "SCALE", "OFFSET", "DIMAGES"}
NORM = {"moments": "_moments", "tokens": "_to_tokens", "sums": "_sums", "images": "_to_images"}
"""The norm's kernels by name."""
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "bias": ("BIAS", "DBIAS"),
    "mask": ("MASK",),
    "cache": ("CACHE", "WEIGHT"),
    "shift": ("SHIFT",),
    "entropy": ("ENTROPY",),
    "relative": ("TABLE_K", "TABLE_V"),
    "tables": ("DTABLE_K", "DTABLE_V"),  # their gradients
}
"""Arguments that are None unless an option is asked for."""


@dataclass(frozen=True)
class Case:
    """One kernel: "forward", "backward", "diff" or one of NORM, for so many frames, and a head's width, an operator's
    rows or an image's channels."""

    kernel: str
    frames: int
    width: int
    arch: int = 90
    dtype: str = "bfloat16"
    options: tuple[str, ...] = ()


TABLE = tuple(
    Case(kernel, frames, width, arch)
    for arch in ARCHITECTURES
    for frames in (16, 32, 64)
    for width in (40, 64, 80, 160)
    for kernel in ("forward", "backward")
)
"""What real models ask for: AnimateDiff's widths, VideoCrafter's 64; windows of 16 frames and more."""
EXTRAS = tuple(
    Case(*of)
    for arch in ARCHITECTURES
    for of in (
        ("forward", 16, 64, arch, "bfloat16", ("relative",)),
        ("backward", 16, 64, arch, "bfloat16", ("relative", "tables")),
        ("backward", 32, 64, arch, "bfloat16", ("relative", "tables")),
        ("forward", 16, 40, arch, "bfloat16", ("mask", "cache", "entropy")),
        ("forward", 16, 160, arch, "bfloat16", ("shift",)),
        ("backward", 16, 40, arch, "bfloat16", ("mask", "bias")),
        ("backward", 16, 80, arch, "float16"),
        ("diff", 16, 48, arch, "bfloat16"),
        ("moments", 16, 320, arch, "bfloat16"),
        ("tokens", 16, 320, arch, "bfloat16"),
        ("tokens", 1, 320, arch, "bfloat16"),
        ("sums", 16, 320, arch, "bfloat16"),
        ("images", 16, 320, arch, "bfloat16"),
    )
)
"""The options, once each; float16."""


def report(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """`measured` of every case, in a process of its own, where the interpreter is off."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "vidlose.kernels.build", "-"],
        input=json.dumps([asdict(case) for case in cases]),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def measured(case: Case) -> dict[str, Any]:
    """Compiled: the case itself, registers, stack and shared bytes, and counts of instructions."""
    from vidlose.kernels import attention, diff, norm, tune

    if case.kernel == "diff":
        fn, facts = diff._diff, diff.constants(case.frames, case.width, "square", wants_grad=True)
    elif case.kernel in NORM:
        fn = getattr(norm, NORM[case.kernel])
        facts = {
            **(norm.MOMENTS if case.kernel == "moments" else norm.TILE),
            "FRAMES": case.frames,
            "TILES": norm.TILES,
        }
    else:
        import torch

        fn = attention._forward if case.kernel == "forward" else attention._backward
        dtype, tables = getattr(torch, case.dtype), "relative" in case.options
        setting = tune.rule(case.frames, case.width, wide=dtype == torch.float32, tables=tables)
        if "bias" in case.options:
            setting = setting._replace(by_token=False)
        facts = attention.constants(case.frames, case.width, dtype, setting)
    compiled = _compile(fn, facts, case)
    found = _resources(compiled.asm["cubin"])
    launch = {name: facts[name] for name in facts if name in ("ROWS", "POSITIONS", "num_warps")}
    return {**asdict(case), **launch, **found, "smem": compiled.metadata.shared}


def _compile(fn: Any, facts: Mapping[str, Any], case: Case) -> Any:
    """As a launch would: hints of 16 where sizes and addresses have them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    asked = {name for option in case.options for name in OPTIONS[option]}
    absent = {name for names in OPTIONS.values() for name in names} - asked
    fixed = {name: value for name, value in facts.items() if name in fn.arg_names}
    fixed |= dict.fromkeys(absent & set(fn.arg_names))
    fixed |= dict.fromkeys({"spx", "stx", "sgx"} & set(fn.arg_names), 1)  # neighbours, as launches find them
    signature = {name: "constexpr" if name in fixed else _type(name, case) for name in fn.arg_names}
    hints = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(fn.arg_names)
        if name not in fixed and _divisible(name, case)
    }
    source = ASTSource(fn=fn, signature=signature, constexprs=fixed, attrs=hints)
    options = {name: facts[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    return triton.compile(source, target=GPUTarget("cuda", case.arch, 32), options=options)


def _type(name: str, case: Case) -> str:
    if name.isupper():
        return {"MASK": "*u8"}.get(name, FLOATS[case.dtype] if name in MODEL_TYPE else "*fp32")
    return "fp32" if name in ("scale", "delta", "eps") else "i32"


def _divisible(name: str, case: Case) -> bool:
    """Pointers, strides of `[B F S C]` and `[B C F h w]`, sizes of pictures; not those of masks and weights."""
    if name == "frames":
        return case.kernel not in NORM and case.frames % 16 == 0
    if name == "channels":  # of latents they are 4
        return case.kernel in NORM
    stride = re.fullmatch(r"s[qkvogcpt][bcfsy]", name)
    return name.isupper() or name in ("size", "pixels", "height", "columns") or stride is not None


def _resources(cubin: bytes) -> dict[str, int]:
    import triton

    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}

    def dump(option: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            command = [str(folder / "cuobjdump"), option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    usage, code = dict(re.findall(r"(REG|STACK):(\d+)", dump("--dump-resource-usage"))), dump("-sass")
    found = {"registers": int(usage["REG"]), "stack": int(usage["STACK"])}
    for name in ("HMMA", "HGMMA", "FFMA", "LDL", "STL", "LDG", "STG"):
        found[name] = len(re.findall(rf"\b{name}\b", code))
    for name in ("LDG", "STG"):
        found[f"{name}.128"] = len(re.findall(rf"\b{name}\.E\S*\.128", code))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="?", help="- reads cases as JSON from stdin; without it, all there are")
    cases: Iterator[Case] = iter((*TABLE, *EXTRAS))
    if parser.parse_args().cases:
        cases = (Case(**{**case, "options": tuple(case["options"])}) for case in json.load(sys.stdin))
    for case in cases:
        print(json.dumps(measured(case)), flush=True)


if __name__ == "__main__":
    main()
