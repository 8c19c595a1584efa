"""From the options of a run to a plan of the queue."""

from collections.abc import Callable

from torch import Tensor

from vidlose.config import FifoConfig
from vidlose.diffusion.sampling import NoiseSource
from vidlose.diffusion.schedule import Ladder
from vidlose.errors import InputError, pick
from vidlose.longvideo import fifo, miga, reflection, tails
from vidlose.longvideo.queue import Plan
from vidlose.longvideo.reflection import Reflection


def plan(config: FifoConfig, ladder: Ladder, frames: int) -> Plan:
    """The plan of a run with f frames a window. Raises InputError where the strategy's options do not fit f, or S."""
    return pick(PLANS, config.strategy, "strategy")(config, ladder, frames)


def exit_level(config: FifoConfig, ladder: Ladder) -> int:
    """The row at which frames leave the queue: the second stage's, or the floor."""
    return miga.stage_level(ladder) if config.settled()["refine"] else ladder.floor


def fifo_plan(config: FifoConfig, ladder: Ladder, frames: int) -> Plan:
    zigzag = config.settled()["zigzag"]
    if frames % zigzag:
        raise InputError(f"--zigzag {zigzag} does not divide the window's {frames} frames")
    return fifo.plan(
        ladder,
        frames,
        config.lookahead,
        config.queue_start,
        zigzag=zigzag,
        exit=exit_level(config, ladder),
        tail=tails.tail(config.settled()["tail"], config.reuse_noise > 0),
    )


def miga_plan(config: FifoConfig, ladder: Ladder, frames: int) -> Plan:
    chosen = config.settled()
    return miga.plan(
        ladder,
        frames,
        zigzag=chosen["zigzag"],
        guide_frames=chosen["guide_frames"],
        guides=config.guides,
        exit=exit_level(config, ladder),
        tail=tails.tail(chosen["tail"], config.reuse_noise > 0),
        reflection=Reflection(config.reflect_threshold) if chosen["reflect"] else None,
    )


PLANS: dict[str, Callable[[FifoConfig, Ladder, int], Plan]] = {"fifo": fifo_plan, "miga": miga_plan}


def memory(config: FifoConfig, base_clip: Tensor, noise: NoiseSource) -> dict[str, Tensor]:
    """What a queue of such a plan keeps when a run begins, of a base clip `[C f h w]`."""
    chosen = config.settled()
    kept = tails.memory(chosen["tail"], config.reuse_noise, base_clip, noise)
    return kept | reflection.memory() if chosen["reflect"] else kept
