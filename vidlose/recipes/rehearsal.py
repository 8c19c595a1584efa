"""Looks before the leap: what would train, and what a step of it takes."""

from collections.abc import Callable
from dataclasses import replace

import torch

from vidlose.models.unet import UNet
from vidlose.recipes import exports, runtime
from vidlose.recipes.training_plan import Plan
from vidlose.recipes.training_run import Run
from vidlose.training.memory import Share, estimate
from vidlose.training.trainable import Row, Selection, block_of, select


def list_params(plan: Plan) -> list[str]:
    """A line for every parameter of the network, and of a text encoder that trains: does it train, where it stands,
    its shape; then sums."""
    _, selection = plan.select()
    text = [Row(name, tuple(p.shape), p.numel(), "text", True) for name, p in plan.text_parameters().items()]
    rows = [*selection.rows, *text]
    lines = [
        f"{'trains' if row.trains else 'frozen'}  {row.block:10} {'x'.join(map(str, row.shape)) or '1':>16}  {row.name}"
        for row in rows
    ]
    trains = [row for row in rows if row.trains]
    count, whole = (sum(row.count for row in some) for some in (trains, rows))
    lines.append(f"{count:,} of {whole:,} parameters train, in {len(trains)} of {len(rows)} tensors")
    return lines


def dry_run(run: Run) -> list[str]:
    """A step, after one to warm up, that leaves nothing behind: its time and memory, and what would be saved."""
    plan, config = run.plan, run.plan.config
    coming = run.batches(0)
    run.trainer.step(next(coming))
    metrics, _ = run.trainer.step(next(coming))
    seconds = metrics["seconds"]
    return [
        *described(plan, run.selection),
        f"{seconds:.2f} s a step, {seconds * config.steps / 3600:.2f} h for {config.steps} steps",
        f"peak memory {runtime.peak_memory(plan.device):.2f} GiB",
        f"would write {', '.join(exports.planned(config, plan.model))} and checkpoints to {run.folder}",
    ]


def dry_run_on_meta(plan: Plan) -> list[str]:
    """Of a model too large for this machine: what its memory would be, by block."""
    shares, selection = estimated(plan)
    whole = Share(
        *(
            sum(getattr(share, part) for share in shares.values())
            for part in ("weights", "gradients", "optimizer", "activations")
        )
    )

    def line(name: str, share: Share) -> str:
        parts = (share.weights, share.gradients, share.optimizer, share.activations, share.total)
        return f"{name:10}" + "".join(f"{part / 2**30:12.3f}" for part in parts)

    head = f"{'GiB':10}" + "".join(
        f"{name:>12}" for name in ("weights", "gradients", "optimizer", "activations", "all")
    )
    return [
        *described(plan, selection),
        "does not fit this machine; estimated for a step, without the autoencoder and the text encoder:",
        head,
        *(line(block, share) for block, share in shares.items()),
        line("all", whole),
    ]


def fits(plan: Plan) -> bool:
    """Is there memory for a step? Asked of the machine, with the estimate of `estimated`."""
    shares, _ = estimated(plan)
    return sum(share.total for share in shares.values()) < runtime.free_memory(plan.device)


def estimated(plan: Plan) -> tuple[dict[str, Share], Selection]:
    """By block, of the network on the meta device."""
    config, family = plan.config, plan.model.unet.family
    with torch.device("meta"):
        unet = UNet(family)
        frames, (width, height) = plan.window.frames, plan.model.latent_size(*plan.window.size)
        x = torch.empty(config.batch_size, family.latent_channels, frames, height, width)
        timestep = torch.empty(config.batch_size, frames, dtype=torch.long)
        text = torch.empty(config.batch_size, plan.model.text_encoder.config.length, family.text_width)
    selection = select(unet.train(), config.blocks, config.train, rank=config.lora_rank, alpha=config.lora_alpha)

    def shares(checkpointing: bool, part: Callable[[str], str] = block_of) -> dict[str, Share]:
        unet.gradient_checkpointing = checkpointing
        ema = config.ema > 0
        return estimate(
            unet,
            lambda: unet(x, timestep, text),
            selection.parameters,
            part,
            config.optimizer,
            ema=ema,
            dtype=plan.dtype,
        )

    found = shares(config.gradient_checkpointing)
    if config.gradient_checkpointing:  # on the way back one layer at a time is whole again
        name, largest = max(shares(False, layer_of).items(), key=lambda one: one[1].activations)
        share = found[block_of(name)]
        found[block_of(name)] = replace(share, activations=share.activations + largest.activations)
    return found, selection


def layer_of(name: str) -> str:
    """`down.0.1.temporal.attn1.to_q.weight` -> `down.0.1.temporal`."""
    parts = name.rstrip(".").split(".")
    return ".".join(parts[: 4 if parts[0] in ("down", "up") else 2])


def described(plan: Plan, selection: Selection) -> list[str]:
    """What would be trained, in two lines."""
    config = plan.config
    count = plan.facts(selection)["parameters"]
    clips = config.batch_size * config.accumulate * plan.processes.count
    return [
        f"{config.model}: {count:,} parameters train ({config.train}, blocks {config.blocks})",
        f"{clips} clips a step, {plan.window.frames} frames of {plan.window.size[0]}x{plan.window.size[1]},"
        f" {config.loss} loss, {config.optimizer}, {str(plan.dtype).removeprefix('torch.')}",
    ]
