"""Self-reflection (MIGA, arXiv 2605.18233): a block that is less like those before it than the last one was is drawn
anew, several times, and the likest is kept.

It is judged while it is still noisy, at one level of the queue, which each block passes once. Where the prompt has just
changed it may be as unlike as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlose.longvideo.queue import Queue
from vidlose.longvideo.slots import Call

Drawing = Callable[[int, int], list[Call]]
"""(number of slots, the first that may be written) -> the model calls of a sweep."""
SCORE = "score"  # in a queue's memory: how like its guides the last judged block was, and whether there was one [2]


def likeness(guides: Tensor, block: Tensor) -> float:
    """Mean cosine between frames of two sets `[N C h w]`, each averaged over its channels."""
    one, other = (F.normalize(frames.mean(1).flatten(1), dim=1) for frames in (guides, block))  # [N S]
    return float((one @ other.T).mean())


def likeness_of_means(guides: Tensor, block: Tensor) -> float:
    """Cosine between the means of two sets `[N C h w]` over frames and channels, as the original has it."""
    one, other = (frames.mean((0, 1)).flatten() for frames in (guides, block))
    return float(F.cosine_similarity(one, other, dim=0))


@dataclass(frozen=True)
class Reflection:
    """A review of the queue.

    threshold: the fall in likeness beyond which a block is drawn anew. candidates: how often. guides: blocks before it
    that it is compared with. noisy: judge latents as they are (the original), which in small pictures shows their noise
    more than anything else, and not the clean estimates of them.
    """

    threshold: float
    candidates: int = 5
    guides: int = 3
    score: Callable[[Tensor, Tensor], float] = likeness
    noisy: bool = False

    def __call__(self, queue: Queue, clean: Tensor, *, judged: int, layout: Drawing, until: int | None = None) -> None:
        """Judge the block at the row `judged`, if there is one with its guides before it, and another before them.

        clean: the sweep's estimates `[Q C h w]`. until: the iteration from which on nothing is judged. Slots from the
        judged block on may be replaced.
        """
        ended = until is not None and queue.iteration >= until
        if ended or judged not in queue.levels or queue.levels[0] >= judged - self.guides:
            return
        at, width = queue.levels.index(judged), queue.plan.width
        guides = slice(at - self.guides * width, at)
        seen = queue.latents if self.noisy else clean
        score = self.score(seen[guides], seen[at : at + width])
        last, known = queue.memory[SCORE].tolist()
        turned = queue.denoise_at(queue.iteration) is not queue.denoise_at(max(queue.iteration - 1, 0))
        if known and not turned and last - score > self.threshold:
            drawn = [_candidate(queue, guides, layout) for _ in range(self.candidates)]
            scores = [
                self.score(seen[guides], (slots if self.noisy else estimates)[:width]) for slots, estimates in drawn
            ]
            if max(scores) > score:
                score = max(scores)
                queue.latents = torch.cat([queue.latents[:at], drawn[scores.index(score)][0]])
        queue.memory[SCORE] = torch.tensor([score, 1], dtype=torch.float64)


def _candidate(queue: Queue, guides: slice, layout: Drawing) -> tuple[Tensor, Tensor]:
    """The slots behind the guides, drawn anew, and their clean estimates; the guides stay as they are."""
    denoise, count = queue.denoise_at(queue.iteration), guides.stop - guides.start
    trial = Queue(
        replace(queue.plan, layout=lambda _, slots: layout(slots, count), in_place=False),
        queue.sampler,
        lambda _: denoise,
        queue.noise,
        queue.latents[guides],
        queue.levels[guides],
        memory=queue.memory,
        window_batch=queue.window_batch,
        processes=queue.processes,
    )
    clean = trial.latents
    while len(trial.levels) < len(queue.levels) - guides.start:
        trial.enter()
        clean = trial.sweep()
    return trial.latents[count:], clean[count:]


def memory() -> dict[str, Tensor]:
    """What a reflection keeps when a run begins."""
    return {SCORE: torch.zeros(2, dtype=torch.float64)}
