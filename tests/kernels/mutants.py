"""Faults put into the kernels by hand: test_triton.py has to notice every one.

    python -m tests.kernels.mutants [NAME ...]

Prints a line a fault; exits with 1 if one is not noticed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MUTANTS: dict[str, tuple[str, str, str]] = {
    "padded keys are seen": (
        "attention.py",
        "seen = (f < frames)[None, None, :]",
        "seen = (f < BF)[None, None, :]",
    ),
    "a mask by query instead of by key": (
        "attention.py",
        "f[None, :, None] * smq + f[None, None, :] * smk",
        "f[None, :, None] * smk + f[None, None, :] * smq",
    ),
    "a mask of another clip": (
        "attention.py",
        "at = batch[:, None, None] * smb + f",
        "at = 0 * batch[:, None, None] * smb + f",
    ),
    "bias of another head": (
        "attention.py",
        "head[:, None, None] * (frames * frames)",
        "(head * 0)[:, None, None] * (frames * frames)",
    ),
    "bias scaled with the logits": (
        "attention.py",
        "logits += tl.load(BIAS + at, mask=inside, other=0.0).to(tl.float32)",
        "logits += tl.load(BIAS + at, mask=inside, other=0.0).to(tl.float32) * 0.9",
    ),
    "a blind query sees": (
        "attention.py",
        "tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)",
        "1.0 / tl.where(total > 0, total, 1.0) + tl.where(total > 0, 0.0, 1.0)",
    ),
    "the second part of a head is left out": (
        "attention.py",
        "        out += _dot(a1, tl.permute(b1, (0, 2, 1)), PRECISION)",
        "        out = out",
    ),
    "a part's end is not cut": (
        "attention.py",
        "    if START + SIZE > D:\n        mask = mask & (channel < D)[None, None, :]\n    to =",
        "    to =",
    ),
    "the cache's share is turned round": (
        "attention.py",
        "own * q0.to(tl.float32) + (1.0 - own) * c0",
        "(1.0 - own) * q0.to(tl.float32) + own * c0",
    ),
    "positions of other frames": ("attention.py", "row = f * (3 * channels)", "row = f * (2 * channels)"),
    "values with the positions of keys": (
        "attention.py",
        "SHIFT + 2 * channels + channel",
        "SHIFT + channels + channel",
    ),
    "a head's second part without positions": (
        "attention.py",
        "        x1 += y1",
        "        x1 = x1",
    ),
    "distances are turned round": (
        "attention.py",
        "at = f[None, :] - f[:, None] + frames - 1",
        "at = f[:, None] - f[None, :] + frames - 1",
    ),
    "distances beyond the last key": ("attention.py", "inside = (key >= 0) & (key < frames)", "inside = key >= 0"),
    "entropy without the maximum": ("attention.py", "tl.where(seen, peak + tl.log", "tl.where(seen, tl.log"),
    "softmax's gradient without its mean": (
        "attention.py",
        "weights * (d_weights - tl.sum(weights * d_weights, 2)[:, :, None])",
        "weights * d_weights",
    ),
    "a gradient without the scale": (
        "attention.py",
        "d_logits = (d_logits * scale).to(k0.dtype)",
        "d_logits = d_logits.to(k0.dtype)",
    ),
    "keys' gradient not transposed": ("attention.py", "tl.permute(d_logits, (0, 2, 1))", "d_logits"),
    "a table's gradient of one program": (
        "attention.py",
        "base = PARTIAL + tl.program_id(0).to(tl.int64)",
        "base = PARTIAL + 0 * tl.program_id(0).to(tl.int64)",
    ),
    "bias' gradient of one block": (
        "attention.py",
        "place = tl.program_id(0).to(tl.int64) *",
        "place = (tl.program_id(0) % heads).to(tl.int64) *",
    ),
    "the last row is not stored": ("attention.py", "there = sequence < sequences", "there = sequence < sequences - 1"),
    "rows beyond the last are stored": (
        "attention.py",
        "live = there[:, None] & (f < frames)[None, :]",
        "live = (sequence >= 0)[:, None] & (f < frames)[None, :]",
    ),
    "q's gradient of the cache's share": ("ops.py", "        dq.mul_(own)", "        dq.mul_(1)"),
    "a packed gradient in another order": ("attention.py", "dq, dk, dv = packed.chunk", "dk, dq, dv = packed.chunk"),
    "tables too short by one": ("ops.py", "beyond = max(frames - 1 - reach, 0)", "beyond = max(frames - 2 - reach, 0)"),
    "the diff loss of other frames": (
        "diff.py",
        "OPERATOR + (batch * M + m) * frames + f",
        "OPERATOR + (batch * M + m) * BF + f",
    ),
    "the diff loss' last positions": (
        "diff.py",
        "(position < channels * height * columns)[None, :]",
        "(position < channels * height * columns - 1)[None, :]",
    ),
    "huber's slope does not end": ("diff.py", "2.0 * tl.minimum(tl.maximum(out, -delta), delta)", "2.0 * out"),
    "a norm's tail counts as zeros": ("norm.py", "tl.where(inside, x - mean, 0.0)", "x - mean"),
    "lanes' means do not differ": ("norm.py", "squares + count * away * away", "squares"),
    "a lane's last number counts twice": ("norm.py", "begin - BLOCK + lane >= size", "begin - BLOCK + lane > size"),
    "a clip's frames have their own means": ("norm.py", " + size * away * away", ""),
    "moments of the first clip": ("norm.py", "(image // frames * frames + f)", "(0 * image + f)"),
    "tiles in another order": ("norm.py", "c = part // along * CHANNELS", "c = part % across * CHANNELS"),
    "a norm's offsets of any stride": ("ops.py", "weight.contiguous(), bias.contiguous()", "weight.contiguous(), bias"),
    "a norm's gradient without its mean": ("norm.py", " - less[:, None]", ""),
    "a norm's gradient of each frame": (
        "norm.py",
        "clips(x.unflatten(1, (groups, -1)).sum(2)).sum(1, keepdim=True)",
        "clips(x.unflatten(1, (groups, -1)).sum(2)).mean(1, keepdim=True)",
    ),
    "a gradient's first pixels alone": ("norm.py", "(part * TILES + tile) * PIXELS", "tile * PIXELS"),
    "a gradient's last pixels": (
        "norm.py",
        "(s < pixels)[None, :]\n        x =",
        "(s < pixels - 1)[None, :]\n        x =",
    ),
    "weights of the first sample": ("diff.py", "tl.load(WEIGHTS + batch * M + m)", "tl.load(WEIGHTS + m)"),
}
"""Name -> file, what stands there, what stands there instead."""
ABOUT = {"diff.py": "diff_loss", "norm.py": "norm"}
"""Which tests are of a file by itself; the rest would only take time."""


def noticed(file: str, old: str, new: str) -> bool:
    """Whether the tests fail in a copy of the package with the fault in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "vidlose/kernels", copy / "vidlose/kernels")
        for name in ("__init__.py", "errors.py", "places.py"):
            shutil.copy(ROOT / "vidlose" / name, copy / "vidlose")
        for name in ("matrix.py", "test_triton.py"):
            (copy / "tests/kernels").mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(__file__).with_name(name), copy / "tests/kernels")
        path = copy / "vidlose/kernels" / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", ABOUT.get(file, "")]
        command.append("tests/kernels/test_triton.py")
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": folder}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode < 2, done.stdout[-2000:] + done.stderr[-2000:]
        return done.returncode != 0  # below 0: it crashed, having written where it should not


def main() -> None:
    assert not noticed("ops.py", "import torch", "import torch"), "the tests fail without a fault"
    chosen = sys.argv[1:] or list(MUTANTS)
    missed = [name for name in chosen if not _told(name)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} noticed")
    raise SystemExit(bool(missed))


def _told(name: str) -> bool:
    found = noticed(*MUTANTS[name])
    print(f"{'noticed' if found else 'MISSED '}  {name}", flush=True)
    return found


if __name__ == "__main__":
    main()
