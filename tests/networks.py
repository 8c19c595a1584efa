"""Networks that see whole clips only, behind the door that `models.unet.UNet` has; and random ones of two levels.

    python -m tests.networks WORDS...

is the command line with the latter, for tests that start it as a process and compare.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor

from vidlose.checkpoints import random
from vidlose.cli import main
from vidlose.models.unet import Family

WHOLE = ("builtin", "animatediff-v1")  # these stay, for what is about files, which have all their levels
SHALLOW: dict[str, Family] = {
    name: network if name in WHOLE else replace(network, channels=network.channels[:2])
    for name, network in random.NETWORKS.items()
}


class WholeClips(ABC):
    """`branches` repeat the clips, `windows` are gathered from the queue, and `keep` chooses from the answer."""

    def text_keys(self, text: Tensor) -> Tensor:
        return text

    @abstractmethod
    def clips(self, x: Tensor, timestep: Tensor, text: Tensor, fps: Tensor | None) -> Tensor:
        """`[B C F h w]` -> `[B C F h w]`."""

    def __call__(self, x, timestep, text, fps, *, branches=1, windows=None, keep=None) -> Tensor:
        if windows is not None:
            x, timestep = x[0][:, windows].transpose(0, 1), timestep[0][windows]
            fps = None if fps is None else fps.expand(len(windows))
        fps = None if fps is None else fps.repeat(branches)
        out = self.clips(x.repeat(branches, 1, 1, 1, 1), timestep.repeat(branches, 1), text, fps)
        if windows is None:
            return out
        out = out.unflatten(0, (branches, -1)).transpose(2, 3).flatten(1, 2)  # [branches (R F) C h w]
        return out[:, keep].transpose(1, 2)


if __name__ == "__main__":
    random.NETWORKS = SHALLOW
    main()
