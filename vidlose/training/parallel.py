"""Several processes as one: what `accelerate launch` or torchrun started, or a single process by itself."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process's number and how many there are."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Is this the one that writes?"""
        return self.rank == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Add up every tensor over the processes, in place."""
        if self.count == 1:
            return
        for tensor in tensors:
            dist.all_reduce(tensor)

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()


def join(device: str) -> Processes:
    """Meet the other processes where RANK and WORLD_SIZE say that there are some."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return Processes()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda":
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return Processes(dist.get_rank(), count, local)
