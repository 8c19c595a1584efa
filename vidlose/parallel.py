"""Several processes as one: what `accelerate launch` or torchrun started, or a single process by itself."""

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vidlose.errors import ProcessLost


@dataclass(frozen=True)
class Processes:
    """This process's number and how many there are. What they do together, all of them have to call; it raises
    ProcessLost in all where one of them has died."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Is this the one that writes?"""
        return self.rank == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Add up every tensor over the processes, in place."""
        self.wait()  # gloo notices one that has died; NCCL, which sums on GPUs, would wait for it
        for tensor in tensors:
            self._reduce(tensor, dist.ReduceOp.SUM)

    def most(self, tensor: Tensor) -> Tensor:
        """The largest of every number over the processes."""
        self._reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def _reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
        if self.count == 1:
            return
        try:
            dist.all_reduce(tensor, operation)
        except RuntimeError as error:
            raise ProcessLost(f"another of the {self.count} processes is gone") from error

    def any(self, here: bool) -> bool:
        """Does it hold in one of them?"""
        return bool(self.most(torch.tensor(float(here))))

    def share(self, count: int) -> slice:
        """Which of so many neighbours are this process's: as many as another's, or one less."""
        return slice(self.rank * count // self.count, (self.rank + 1) * count // self.count)

    def first_says(self, number: int) -> int:
        """The first one's."""
        return int(self.most(torch.tensor(number if self.first else 0)))

    def wait(self) -> None:
        """For the others to come here."""
        self.any(False)


ALONE = Processes()


def join(device: str) -> Processes:
    """Meet the other processes where RANK and WORLD_SIZE say that there are some."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return ALONE
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if not dist.is_initialized():
        # Both: gradients lie on the device, and sums of a few numbers on the CPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), count)
