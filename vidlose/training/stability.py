"""Looks at temporal attention, and tools that keep it from collapsing; all but QK-norm fold back into plain weights."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vidlose.config import StabilityConfig
from vidlose.errors import InputError
from vidlose.kernels.reference import relative_rows
from vidlose.models.temporal import QKNorm, TemporalAttention
from vidlose.models.unet import UNet
from vidlose.training.draws import generator
from vidlose.training.trainable import PROJECTIONS, attentions, block_of, choose, value_of

HIDDEN = -1e9  # a logit: its exponential is 0, and 0 times it is not NaN
STARTS = 10  # looks that make up the entropy at the start


class Recorder:
    """A probe that keeps queries and keys `[B F n C]` of n pixels of every temporal attention, for one forward pass.

    The pass itself stays on the fused path. Where gradient checkpointing runs a layer again the first run counts, but
    both do the same: autograd compares what they save. Gradients flow back through what is kept.

    pixels: at most so many of every clip, drawn by `seed`. frame_mask: bool `[B F]`, the one the network is given.
    """

    def __init__(self, pixels: int, seed: int = 0, frame_mask: Tensor | None = None) -> None:
        self.pixels, self.seed, self.frame_mask = pixels, seed, frame_mask
        self.kept: dict[TemporalAttention, tuple[Tensor, Tensor]] = {}
        self._drawn: dict[int, Tensor] = {}

    def __call__(self, attention: nn.Module, q: Tensor, k: Tensor) -> None:
        assert isinstance(attention, TemporalAttention)
        size = q.shape[2]
        if size not in self._drawn:
            order = torch.randperm(size, generator=generator(self.seed, "pixels", size))
            self._drawn[size] = order[: self.pixels].to(q.device)
        found = q[:, :, self._drawn[size]], k[:, :, self._drawn[size]]
        self.kept.setdefault(attention, found)

    def logits(self, attention: TemporalAttention) -> Tensor:
        """`[B n heads F F]` in fp32, query by key, as the softmax would see them; hidden keys are at HIDDEN."""
        q, k = (x.unflatten(-1, (attention.heads, -1)).float() for x in self.kept[attention])  # [B F n heads D]
        with torch.autocast(q.device.type, enabled=False):
            logits = torch.einsum("binhd,bjnhd->bnhij", q, k)
            if attention.relative_k is not None:
                rows = relative_rows(q.shape[1], attention.relative_k).float()
                logits = logits + torch.einsum("binhd,ijd->bnhij", q, rows)
        logits = logits * q.shape[-1] ** -0.5
        if self.frame_mask is not None:
            logits = logits.masked_fill(~self.frame_mask.to(logits.device)[:, None, None, None], HIDDEN)
        return logits

    def entropy(self, attention: TemporalAttention) -> Tensor:
        """`[rows heads]`: a row's entropy over that of a uniform one, 0..1, of rows that see two frames or more."""
        log = self.logits(attention).log_softmax(-1)
        entropy = -(log.exp() * log).sum(-1).permute(0, 3, 1, 2)  # [B F n heads]
        mask = entropy.new_ones(entropy.shape[:2], dtype=torch.bool)
        if self.frame_mask is not None:
            mask = self.frame_mask.to(entropy.device)
        seen = mask.sum(1)
        share = entropy / seen.clamp(min=2).log()[:, None, None, None]
        rows = mask & (seen > 1)[:, None]
        return share[rows].flatten(0, 1)

    @torch.no_grad()
    def largest(self, attention: TemporalAttention) -> Tensor:
        """`[heads]`: the largest |logit|."""
        logits = self.logits(attention).detach()
        return logits.masked_fill(logits == HIDDEN, 0).abs().amax((0, 1, 3, 4))


@torch.no_grad()
def metrics(unet: UNet, recorder: Recorder) -> dict[str, float]:
    """How attention stands, by block (both attentions of a layer together).

    entropy (mean), entropy_min (the lowest head's mean), entropy_q05 (5 % quantile of rows), all 0..1; logit_max; and
    sigma_qk, the largest spectral norm of any head's W_q^T W_k. Means over processes. Of single frames, which attend
    to nothing, there is no entropy.
    """
    blocks: dict[str, list[TemporalAttention]] = {}
    for name, module in unet.named_modules():
        if isinstance(module, TemporalAttention) and module in recorder.kept:
            blocks.setdefault(block_of(name), []).append(module)
    found: dict[str, Tensor] = {}
    for block, layers in blocks.items():
        entropies = [recorder.entropy(layer).detach() for layer in layers]
        rows = torch.cat([entropy.flatten() for entropy in entropies])
        found |= {
            f"entropy/{block}": rows.mean(),
            f"entropy_min/{block}": torch.stack([entropy.mean(0).min() for entropy in entropies]).min(),
            f"entropy_q05/{block}": rows.sort().values[len(rows) // 20] if len(rows) else rows.mean(),
            f"logit_max/{block}": torch.stack([recorder.largest(layer).max() for layer in layers]).max(),
            f"sigma_qk/{block}": torch.stack([sigma_qk(layer).max() for layer in layers]).max(),
        }
    if not found:
        return {}
    numbers = _agree(torch.stack(list(found.values())), "mean").tolist()
    return {name: number for name, number in zip(found, numbers, strict=True) if not math.isnan(number)}


def entropies(found: Mapping[str, float]) -> dict[str, float]:
    """Of `metrics`: block -> mean entropy, as the guards watch it."""
    return {name.removeprefix("entropy/"): value for name, value in found.items() if name.startswith("entropy/")}


@torch.no_grad()
def sigma_qk(attention: TemporalAttention) -> Tensor:
    """`[heads]`: the spectral norm of W_q^T W_k, from the triangles of both: Q1 R1 R2^T Q2^T has that of R1 R2^T."""
    weights = (value_of(attention, f"{name}.weight").float() for name in ("to_q", "to_k"))
    q, k = (torch.linalg.qr(weight.unflatten(0, (attention.heads, -1)).mT, mode="r").R for weight in weights)
    return torch.linalg.matrix_norm(q @ k.mT, 2)


@torch.no_grad()
def gradient_norms(blocks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Block -> name -> parameter: the norm of each block's gradient; without one, 0."""
    grads = {block: [p.grad for p in named.values() if p.grad is not None] for block, named in blocks.items()}
    norms = {block: nn.utils.get_total_norm(found) for block, found in grads.items() if found}
    numbers = torch.stack(list(norms.values())).tolist() if norms else []
    return dict.fromkeys(blocks, 0.0) | dict(zip(norms, numbers, strict=True))


class QKClip:
    """Weights of queries and keys are scaled down, head by head, when logits pass their limit (Kimi K2, 2507.20534).

    Nothing changes below it: factor times the largest |logit| of the first look, at least `floor`. What is looked at
    is a Recorder's sample of the step's own pixels: a lower bound of the batch's largest logit, whose margin `factor`
    leaves; the bound from above, |q| |k| / sqrt(D), would clip heads whose queries and keys are merely long. Only
    attentions whose weights train are clipped, so none under LoRA, which could not hold the change.
    """

    def __init__(self, attentions: Mapping[str, TemporalAttention], factor: float, floor: float) -> None:
        self.attentions, self.factor, self.floor = attentions, factor, floor
        self.limits: dict[str, Tensor] = {}

    @property
    def active(self) -> dict[str, TemporalAttention]:
        """The attentions whose weights train."""
        return {name: of for name, of in self.attentions.items() if of.to_q.weight.requires_grad}

    @torch.no_grad()
    def __call__(self, recorder: Recorder) -> dict[str, float]:
        """After the optimizer's step: attention -> the smallest factor that its heads' logits were scaled by."""
        clipped = {}
        for name, attention in self.active.items():
            q, k = attention.to_q.weight, attention.to_k.weight
            largest = _agree(recorder.largest(attention), "max")
            limit = self.limits.setdefault(name, (self.factor * largest).clamp(min=self.floor)).to(largest.device)
            scale = (limit / largest.clamp(min=1e-12)).clamp(max=1)
            # Relative positions meet queries too, so there queries alone shrink, and all logits by the same.
            root = scale.sqrt() if attention.relative_k is None else scale
            for weight, by in ((q, root), (k, scale / root)):
                weight.mul_(by.to(weight.dtype).repeat_interleave(len(weight) // attention.heads)[:, None])
            if (lowest := scale.min().item()) < 1:
                clipped[name] = lowest
        return clipped

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.limits)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.limits = dict(state)


class SigmaReparam(nn.Module):
    """W = gamma / sigma(W) W (Zhai et al. 2023, arXiv 2303.06296): a weight's spectral norm learned as a number.

    A parametrization of `weight`. u and v are the first singular vectors, from an SVD, and follow W by one power
    iteration per optimizer step (`follow`): constants to the backward pass, and the same in all passes of a step.
    gamma starts as u^T W v computed as in `forward`, so that at first W is unchanged to the bit.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        u, _, v = torch.linalg.svd(weight.detach().float(), full_matrices=False)
        self.register_buffer("u", u[:, 0].clone())
        self.register_buffer("v", v[0].clone())
        self.gamma = nn.Parameter(self._sigma(weight.detach()).clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.gamma / self._sigma(weight)).to(weight.dtype)

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """One power iteration, after W has changed."""
        wide = weight.float()
        self.v.copy_(F.normalize(wide.T @ self.u.float(), dim=0))
        self.u.copy_(F.normalize(wide @ self.v.float(), dim=0))

    def _sigma(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return self.u.float() @ weight.float() @ self.v.float()


class SkipScale(nn.Module):
    """The columns of a 1x1 convolution `[O I 1 1]` that read the skip, times kappa (ScaleLong, arXiv 2310.13545).

    A parametrization of the `weight` of an up block's residual convolution, and so folded exactly. It is all that a
    scale of the skip itself does, but for one group: the block's other branch starts with a group norm, which undoes
    the scale wherever a group holds channels of the skip only (up to its epsilon). Where the boundary falls inside a
    group (Stable Diffusion: 4 of 12 skips, one group of 32 each) a scale of the skip would change that group's other
    channels with the data, and no weights could hold it.

    own: columns before the skip's. learned: a parameter, or set from outside.
    """

    def __init__(self, own: int, *, learned: bool) -> None:
        super().__init__()
        self.own = own
        self.kappa: Tensor
        if learned:
            self.kappa = nn.Parameter(torch.ones(()))
        else:
            self.register_buffer("kappa", torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.cat([weight[:, : self.own], weight[:, self.own :] * self.kappa.to(weight.dtype)], dim=1)


class EntropyHinge:
    """weight * sum max(0, H0 (1 - slack) - H)^2 over attentions: nothing until entropy H has fallen far.

    H: mean over rows and heads, 0..1, with gradients; H0: its mean over the first looks.
    """

    def __init__(self, attentions: Mapping[str, TemporalAttention], weight: float, slack: float) -> None:
        self.attentions, self.weight, self.slack = attentions, weight, slack
        self.starts: dict[str, Tensor] = {}
        self.looks = 0

    def __call__(self, recorder: Recorder) -> Tensor:
        """A scalar to be added to the loss."""
        rows = {name: recorder.entropy(attention) for name, attention in self.attentions.items()}
        found = {name: entropy.mean() if len(entropy) else entropy.new_ones(()) for name, entropy in rows.items()}
        if self.looks < STARTS:
            self.looks += 1
            for name, entropy in found.items():
                now = _agree(entropy.detach().clone(), "mean")
                start = self.starts.get(name, now).to(now.device)
                self.starts[name] = start + (now - start) / self.looks
        below = [F.relu(self.starts[name].to(h.device) * (1 - self.slack) - h) for name, h in found.items()]
        return self.weight * torch.stack(below).square().sum()

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.starts, "looks": torch.tensor(self.looks)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.starts = {name: start for name, start in state.items() if name != "looks"}
        self.looks = int(state["looks"])


def put_sigma_reparam(attentions: Iterable[TemporalAttention]) -> None:
    """On the four projections of each."""
    for attention in attentions:
        for name in PROJECTIONS:
            layer = attention.get_submodule(name)
            parametrize.register_parametrization(layer, "weight", SigmaReparam(layer.get_parameter("weight")))


def follow_sigma(unet: nn.Module) -> None:
    """After every optimizer step: one power iteration of each reparametrised weight."""
    for layer, tool in _parametrized(unet):
        if isinstance(tool, SigmaReparam):
            tool.follow(layer.parametrizations.weight.original)


@torch.no_grad()
def put_qk_norm(recorder: Recorder, attentions: Iterable[TemporalAttention]) -> None:
    """At beta 0, with the mean lengths of what was recorded: g = E|q| E|k| / sqrt(D) per head."""
    for attention in attentions:
        norm = QKNorm(attention.heads).to(attention.to_v.weight.device)
        if attention in recorder.kept:
            for x, log in zip(recorder.kept[attention], (norm.log_query, norm.log_key), strict=True):
                lengths = x.unflatten(-1, (attention.heads, -1)).float().norm(dim=-1).mean((0, 1, 2))
                log.copy_(lengths.clamp(min=1e-6).log())
        attention.qk_norm = norm


@torch.no_grad()
def set_beta(unet: nn.Module, beta: float) -> None:
    """How far QK-norm is faded in, 0..1."""
    for module in unet.modules():
        if isinstance(module, QKNorm):
            module.beta.fill_(beta)


def put_skip_scale(unet: UNet, blocks: Iterable[str], *, learned: bool) -> None:
    """On the skips that these blocks read. Raises InputError where they read none."""
    chosen, width = set(blocks), unet.family.channels[-1]
    if not any(block.startswith("up.") for block in chosen):
        raise InputError(f"--skip-scale is for up blocks, which read skips; {', '.join(sorted(chosen))} read none")
    for i, out in enumerate(reversed(unet.family.channels)):
        for j, block in enumerate(unet.up[i]):
            if f"up.{i}.{j}" in chosen:
                scale = SkipScale(width, learned=learned).to(block["res"].skip.weight.device)
                parametrize.register_parametrization(block["res"].skip, "weight", scale)
            width = out


@torch.no_grad()
def set_kappa(unet: UNet, kappa: float, progress: float) -> None:
    """ScaleLong's constants, faded in: at progress 1, skip i = 1, 2, ... from the shallowest is at kappa^(i-1)."""
    blocks = [block for stage in unet.up for block in stage]
    for depth, block in enumerate(reversed(blocks)):
        for _, tool in _parametrized(block):
            if isinstance(tool, SkipScale) and not isinstance(tool.kappa, nn.Parameter):
                tool.kappa.fill_(1 + (kappa**depth - 1) * min(progress, 1.0))


def qk_norm_works(unet: nn.Module) -> bool:
    """Is QK-norm faded in at all? Such a network can only be saved with it, in our own form."""
    return any(isinstance(module, QKNorm) and bool(module.beta) for module in unet.modules())


@torch.no_grad()
def plain(unet: UNet) -> UNet:
    """The same function as a network without tools and LoRA layers, for export; what no tool touches is shared.

    Raises InputError where QK-norm is at work, which plain weights cannot hold.
    """
    _refuse_qk_norm(unet)
    with torch.device("meta"):
        bare = UNet(unet.family)
    bare.load_state_dict({name: value_of(unet, name) for name in bare.state_dict()}, assign=True)
    return bare.eval().requires_grad_(False)


def fold(unet: UNet) -> list[str]:
    """Take every tool off, its effect folded into the weights, whose names are returned. Parameters stay the same
    objects. Raises InputError where QK-norm is at work, before anything changes."""
    _refuse_qk_norm(unet)
    folded = []
    for name, module in list(unet.named_modules()):
        if isinstance(module, TemporalAttention):
            module.qk_norm = None
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            folded.append(f"{name}.weight")
    return folded


class Tools:
    """A config's tools on one network, in the order in which training needs them.

    Put on before `trainable.select`, so that what they add trains. blocks: those that train. steps: of the whole run.
    look: one forward pass with a probe, from which QK-norm takes its lengths; not needed where a state follows.
    """

    def __init__(
        self,
        unet: UNet,
        config: StabilityConfig,
        blocks: str,
        steps: int,
        look: Callable[[Recorder], object] | None = None,
    ) -> None:
        self.unet, self.config, self.steps = unet, config, steps
        chosen = choose(unet, config.tool_blocks or blocks)
        layers = attentions(unet, chosen)
        self.clip = QKClip(layers, config.qk_clip_factor, config.qk_clip_floor) if config.qk_clips else None
        hinges = config.entropy_hinge > 0 and len(layers) > 0
        self.hinge = EntropyHinge(layers, config.entropy_hinge, config.entropy_slack) if hinges else None
        if config.qk_norm:
            recorder = Recorder(config.probe_pixels)
            if look is not None:
                with torch.no_grad():
                    look(recorder)
            put_qk_norm(recorder, layers.values())
        if config.sigma_reparam:
            put_sigma_reparam(layers.values())
        if config.skip_scale != "off":
            put_skip_scale(unet, chosen, learned=config.skip_scale == "learned")

    def before(self, step: int, frame_mask: Tensor | None = None) -> Recorder | None:
        """Before the forward pass of a step: what is faded in moves on. The recorder, if any, is the pass's probe."""
        if self.config.qk_norm:
            set_beta(self.unet, min(1.0, step / self.config.qk_norm_steps) if self.config.qk_norm_steps else 1.0)
        if self.config.skip_scale == "annealed":
            set_kappa(self.unet, self.config.skip_kappa, step / (self.config.skip_anneal * self.steps))
        always = self.hinge is not None or (self.clip is not None and bool(self.clip.active))
        looks = always or step % self.config.probe_every == 0
        return Recorder(self.config.probe_pixels, step, frame_mask) if looks else None

    def penalty(self, recorder: Recorder | None) -> Tensor | None:
        """What is added to the loss, if anything."""
        return None if self.hinge is None or recorder is None else self.hinge(recorder)

    def after(self, recorder: Recorder | None) -> dict[str, float]:
        """After the optimizer's step: weights are clipped, singular vectors follow. What was clipped, for the log."""
        follow_sigma(self.unet)
        return {} if self.clip is None or recorder is None else self.clip(recorder)

    def metrics(self, step: int, recorder: Recorder | None) -> dict[str, float]:
        """Every `probe_every` steps, see `metrics`; else nothing."""
        return metrics(self.unet, recorder) if recorder is not None and step % self.config.probe_every == 0 else {}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything of the tools that is no parameter."""
        parts = {"clip": self.clip, "hinge": self.hinge}
        state = {f"{part}/{name}": x for part, tool in parts.items() if tool for name, x in tool.state_dict().items()}
        return state | {f"buffer/{name}": buffer.clone() for name, buffer in self._buffers().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        for part, tool in (("clip", self.clip), ("hinge", self.hinge)):
            if tool is not None:
                prefix = f"{part}/"
                own = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
                tool.load_state_dict(own)
        for name, buffer in self._buffers().items():
            buffer.copy_(state[f"buffer/{name}"])

    def _buffers(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": buffer
            for name, module in self.unet.named_modules()
            if isinstance(module, QKNorm | SigmaReparam | SkipScale)
            for key, buffer in module.named_buffers()
        }


def _agree(numbers: Tensor, how: str) -> Tensor:
    """The same on all processes, in place: each looked at its own samples, but they share the weights."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(numbers, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
        if how == "mean":
            numbers /= dist.get_world_size()
    return numbers


def _refuse_qk_norm(unet: nn.Module) -> None:
    if qk_norm_works(unet):
        raise InputError("QK-norm is part of this network and no plain weights can hold it: keep it in our own form")


def _parametrized(module: nn.Module) -> list[tuple[Any, nn.Module]]:
    layers: list[Any] = [layer for layer in module.modules() if parametrize.is_parametrized(layer, "weight")]
    return [(layer, layer.parametrizations.weight[0]) for layer in layers]
