"""Training: one step, and everything that a run has to remember between steps."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidlose.config import FinetuneConfig
from vidlose.diffusion.denoiser import Prediction, training_pair
from vidlose.diffusion.schedule import NoiseSchedule, per_frame
from vidlose.errors import NonFinite, pick
from vidlose.models.unet import UNet
from vidlose.parallel import Processes
from vidlose.training.draws import Draws, generator
from vidlose.training.guards import Action, GiveUp, Guards, Lower, Restore, Skip
from vidlose.training.losses import AnchorDraws, Criterion, Losses
from vidlose.training.optimizers import Optimizer
from vidlose.training.rates import RATES, factor
from vidlose.training.stability import Recorder, Tools, entropies, gradient_norms
from vidlose.training.trainable import is_tool

Metrics = dict[str, float]
Encode = Callable[[Sequence[str]], Tensor]
"""Captions -> text states `[B L D]`, with gradient where the text encoder trains."""
Named = Mapping[str, nn.Parameter]
State = tuple[dict[str, Tensor], dict[str, Any]]
TOOL = " tools"
"""After a block's name: what tools have added there, with a rate of its own and no decay."""


@dataclass(frozen=True)
class Batch:
    """Some samples of one step, of one length.

    numbers: which samples of the run they are. mean, std: of the autoencoder's posterior, scaled, `[B C F h w]`. text:
    `[B L D]` of the captions, or None where they are encoded in the step. piece: frames that the network sees together,
    which divide F; None is all.
    """

    numbers: Sequence[int]
    mean: Tensor
    std: Tensor
    captions: Sequence[str]
    text: Tensor | None
    draws: Draws
    fps: float
    piece: int | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def together(self) -> int:
        return self.piece or self.mean.shape[2]


@dataclass
class LossScale:
    """A factor on the loss that keeps fp16 gradients in range: halved at an overflow, doubled after 2,000 steps."""

    scale: float
    good: int = 0

    def note(self, finite: bool) -> None:
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good == 2000:
            self.scale, self.good = self.scale * 2, 0


class Trainer:
    """A network, what of it trains, and the state of its training.

    blocks: block -> name -> parameter, fp32; what is no part of `unet` (a text encoder) has blocks of its own. rates:
    factors on the blocks' learning rates. encode: captions to text.
    """

    def __init__(
        self,
        unet: UNet,
        tools: Tools,
        prediction: str,
        schedule: NoiseSchedule,
        blocks: Mapping[str, Named],
        rates: Mapping[str, float],
        encode: Encode,
        config: FinetuneConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        processes: Processes,
    ) -> None:
        self.unet, self.tools, self.encode, self.config = unet, tools, encode, config
        self.prediction, self.schedule = prediction, schedule
        self.device, self.dtype, self.processes = device, dtype, processes
        self.blocks, self.rates = blocks, rates
        self.trained = {name: p for named in blocks.values() for name, p in named.items()}
        self.criterion = Criterion(config, prediction)
        self.guards = Guards(config)
        self.optimizer = Optimizer(
            _apart(blocks),
            config.optimizer,
            config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            muon_rate=config.muon_rate,
            undecayed=TOOL,
        )
        self.rate = pick(RATES, config.lr_schedule, "learning rate schedule")
        self.loss_scale = LossScale(2.0**16 if dtype == torch.float16 else 1.0)
        self.average = {name: p.detach().clone() for name, p in self.trained.items()} if config.ema else {}
        self.done = 0
        self._scale()

    def step(self, batches: Sequence[Batch]) -> tuple[Metrics, list[Action]]:
        """One optimizer step over this process's share of the step's samples: what is worth a line of the log, and
        what the guards want beyond what the step has done of it."""
        began = time.monotonic()
        config, step = self.config, self.done
        whole = config.batch_size * config.accumulate * self.processes.count
        sums, levels = torch.zeros(3, dtype=torch.float64), torch.zeros(whole, dtype=torch.float64)
        for parameter in self.trained.values():
            parameter.grad = None
        batches = sorted(batches, key=lambda batch: -batch.together)  # attention is looked at in the longest
        recorder = self.tools.before(step)
        for i, batch in enumerate(batches):
            with self._dropout(batch):
                losses = self.losses(batch, probe=recorder if i == 0 else None)
            loss = losses.sample.sum() / whole
            penalty = self.tools.penalty(recorder) if i == 0 else None
            if penalty is not None:
                loss = loss + penalty / self.processes.count
            (loss * self.loss_scale.scale).backward()
            parts = (losses.sample, losses.mse, losses.diff)
            sums += torch.stack([part.detach().double().sum().cpu() for part in parts])
            places = [number % whole for number in batch.numbers]
            levels[places] = batch.draws.timestep.double().mean(1) / len(self.schedule.abar)
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        self.processes.sum([sums, levels, *gradients])
        if self.loss_scale.scale != 1:
            torch._foreach_div_(gradients, self.loss_scale.scale)
        loss, mse, diff = (sums / whole).tolist()
        norms = gradient_norms(self.blocks)
        total = sum(norm**2 for norm in norms.values()) ** 0.5
        found = {"loss": loss, "mse": mse, "diff": diff, "grad_norm": total, "lr": self._rate_now()}
        scales = {block: scale for block in self.blocks if (scale := self.optimizer.scale[block]) != 1}
        found |= {f"lr/{block}": self._rate_now() * scale for block, scale in scales.items()}
        found |= {f"grad_norm/{block}": norm for block, norm in norms.items()}
        actions = self._judge(loss, norms, levels.tolist())
        if not any(isinstance(action, Skip | Restore | GiveUp) for action in actions):
            self._advance(gradients, total)
            found |= {f"qk_clip/{name}": scale for name, scale in self.tools.after(recorder).items()}
        self.done += 1
        found |= self.tools.metrics(step, recorder)
        if config.guards:
            actions += self.guards.watch(step, entropies(found))
        for action in actions:
            if isinstance(action, Lower) and action.forget:
                for block in (action.block, action.block + TOOL):
                    self.optimizer.forget(block)
        self._scale()
        return found | {"seconds": time.monotonic() - began}, actions

    def losses(self, batch: Batch, timestep: Tensor | None = None, probe: Recorder | None = None) -> Losses:
        """Of a batch; timestep `[B F]`: in place of the drawn ones."""
        draws = batch.draws
        mean, std, posterior, noise = (x.to(self.device) for x in (batch.mean, batch.std, draws.posterior, draws.noise))
        timestep = draws.timestep if timestep is None else timestep
        x0 = mean + std * posterior
        alpha, sigma = (per_frame(table, timestep, x0) for table in (self.schedule.alpha, self.schedule.sigma))
        x = alpha * x0 + sigma * noise
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            pieces = x.unflatten(2, (-1, batch.together)).transpose(1, 2).flatten(0, 1)
            output = self.unet(
                pieces,
                timestep.to(self.device).reshape(len(pieces), -1),
                self.unet.text_keys(self._text(batch)),  # a text for so many frames as a clip has
                torch.full((len(pieces),), batch.fps, device=self.device),
                probe=probe,
            )
            output = output.unflatten(0, (len(batch), -1)).transpose(1, 2).flatten(2, 3)
        pred, target = training_pair(
            self.prediction, output, x, Prediction(x0, noise), alpha, sigma, self.config.loss_space
        )
        anchor = torch.rand((), generator=generator(self.config.seed, "batch", self.done)).item()
        return self.criterion(
            pred,
            target,
            log_snr=self.schedule.log_snr[timestep],
            draws=AnchorDraws(draws.anchor, anchor),
            progress=self.done / self.config.steps,
            step=self.done,
        )

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], timesteps: Sequence[int]) -> Metrics:
        """Mean mse and diff of the averaged weights at fixed timesteps, on the batches' own, fixed draws."""
        found: Metrics = {}
        count = sum(map(len, batches))
        with self.averaged():
            for timestep in timesteps:
                for batch in batches:
                    losses = self.losses(batch, torch.full_like(batch.draws.timestep, timestep))
                    for name, part in (("mse", losses.mse), ("diff", losses.diff)):
                        share = part.sum().item() / count
                        at, over = f"held_out/{name}@{timestep}", f"held_out/{name}"
                        found[at] = found.get(at, 0.0) + share
                        found[over] = found.get(over, 0.0) + share / len(timesteps)
        return found

    def finite(self) -> bool:
        """Are all weights that train numbers still? A step's loss is of those before its update."""
        return all(bool(p.isfinite().all()) for p in self.trained.values())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has the averaged weights, where there are some."""
        kept = {name: parameter.data for name, parameter in self.trained.items()}
        for name, tensor in self.average.items():
            self.trained[name].data = tensor
        try:
            yield
        finally:
            for name, parameter in self.trained.items():
                parameter.data = kept[name]

    def state(self) -> State:
        """Tensors and facts from which `restore` goes on bit for bit."""
        tensors = {f"weight/{name}": p.detach() for name, p in self.trained.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors |= {f"tools/{name}": tensor for name, tensor in self.tools.state_dict().items()}
        return tensors, {"step": self.done, "guards": self.guards.state_dict(), "loss_scale": vars(self.loss_scale)}

    def restore(self, state: State) -> None:
        """Take up what `state` gave, of a training of the same parameters."""
        tensors, facts = state
        self.return_to(state)
        self.guards.load_state_dict(facts["guards"])
        self.loss_scale = LossScale(**facts["loss_scale"])
        self.done = facts["step"]
        self._scale()

    @torch.no_grad()
    def return_to(self, state: State) -> None:
        """Weights, average, optimizer and tools of a kept state; the count of steps and the guards go on."""
        tensors, _ = state
        for kind, held in (("weight", self.trained), ("average", self.average)):
            for name, tensor in held.items():
                tensor.copy_(tensors[f"{kind}/{name}"])
        self.optimizer.restore(_under("optimizer/", tensors))
        self.tools.load_state_dict(_under("tools/", tensors))

    @contextmanager
    def _dropout(self, batch: Batch) -> Iterator[None]:
        """What layers draw by themselves (VideoCrafter2's dropout) is of the batch's numbers, like all else."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(generator(self.config.seed, "dropout", batch.numbers[0]).initial_seed())
            yield

    def _text(self, batch: Batch) -> Tensor:
        """`[B L D]`, of the empty text where the caption was dropped."""
        dropped = batch.draws.drop < self.config.caption_dropout
        if batch.text is None:
            pairs = zip(batch.captions, dropped.tolist(), strict=True)
            return self.encode(["" if gone else caption for caption, gone in pairs])
        text = batch.text.to(self.device)
        if dropped.any():
            null = self.encode([""]).to(text)
            text = torch.where(dropped.to(self.device)[:, None, None], null, text)
        return text

    def _judge(self, loss: float, norms: dict[str, float], levels: Sequence[float]) -> list[Action]:
        finite = all(norm < float("inf") for norm in (abs(loss), *norms.values()))
        if self.loss_scale.scale != 1:
            self.loss_scale.note(finite)
            if not finite and self.loss_scale.scale > 1:
                return [Skip("fp16 overflowed: the loss is scaled down")]
        if self.config.guards:
            return self.guards.judge(self.done, loss, norms, levels)
        if not finite:
            raise NonFinite(f"the loss or a gradient of step {self.done} is not finite, and --no-guards is set")
        return []

    @torch.no_grad()
    def _advance(self, gradients: list[Tensor], total: float) -> None:
        limit = self.config.max_grad_norm
        if limit and total > limit:
            torch._foreach_mul_(gradients, limit / total)
        self.optimizer.step(self._factor())
        if self.average:
            # Rises to the config's decay: early on the average follows closely.
            decay = min(self.config.ema, (1 + self.done) / (10 + self.done))
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.trained.values()], 1 - decay)

    def _factor(self) -> float:
        return factor(self.rate, self.done, self.config.steps, self.config.warmup_steps)

    def _rate_now(self) -> float:
        return self.config.learning_rate * self._factor()

    def _scale(self) -> None:
        """Bring the blocks' rates up to date with the config and the guards."""
        for block in self.blocks:
            scale = self.rates.get(block, 1.0) * self.guards.lr_factor(block)
            self.optimizer.scale[block] = scale
            self.optimizer.scale[block + TOOL] = scale * self.config.tool_lr


def _apart(blocks: Mapping[str, Named]) -> dict[str, dict[str, nn.Parameter]]:
    """What tools have added, in blocks of its own."""
    found: dict[str, dict[str, nn.Parameter]] = {}
    for block, named in blocks.items():
        for suffix, tool in (("", False), (TOOL, True)):
            found[block + suffix] = {name: p for name, p in named.items() if is_tool(name) == tool}
    return found


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


Batches = Callable[[int], Iterator[Sequence[Batch]]]
"""From which place in the order of the data on -> this process's share of each step that follows."""
Keep = Callable[[int, State], None]
Recall = Callable[[int], State]


def fit(
    trainer: Trainer,
    batches: Batches,
    *,
    keep: Keep,
    recall: Recall,
    stop: Callable[[], bool],
) -> Iterator[tuple[Metrics, list[Action]]]:
    """Steps until the config's are done, or until `stop` says so before one.

    keep, recall: of good states by step, for the guards. Raises NonFinite where they give up.
    """
    coming = batches(_place(trainer))
    while trainer.done < trainer.config.steps and not stop():
        if trainer.config.guards and trainer.guards.due(trainer.done) and trainer.finite():
            keep(trainer.done, trainer.state())
            trainer.guards.keep(trainer.done)
        metrics, actions = trainer.step(next(coming))
        yield metrics, actions
        for action in actions:
            if isinstance(action, GiveUp):
                kept = "no good state was kept" if action.step is None else f"the state of step {action.step} is kept"
                raise NonFinite(f"training cannot go on: {action.cause}; {kept}")
            if isinstance(action, Restore):
                trainer.return_to(recall(action.step))
                coming = batches(_place(trainer))


def _place(trainer: Trainer) -> int:
    """Where in the data's order a step is: every restored state moves on to samples that no step has seen."""
    return trainer.done + trainer.guards.restores * trainer.config.steps
