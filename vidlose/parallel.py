"""Several processes as one: what `accelerate launch` or torchrun started, or a single process by itself."""

import atexit
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from vidlose.errors import InputError, ProcessLost


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
        if self.count == 1:
            return
        for some in messages(tensors):
            if some[0].is_cuda:
                self.wait()  # gloo notices one that has died; NCCL would wait for it
            if len(some) == 1 and some[0].is_contiguous():
                self._reduce(some[0], dist.ReduceOp.SUM)
                continue
            flat = torch.cat([tensor.flatten() for tensor in some])
            self._reduce(flat, dist.ReduceOp.SUM)
            for tensor, part in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

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


MESSAGE = 2**24
"""Numbers that go out together: a sum of many small tensors is mostly waiting, and one of all takes their memory."""


def messages(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type and device, in their order, as many as make up a message."""
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    numbers: Counter[tuple[torch.dtype, torch.device]] = Counter()
    for tensor in tensors:
        kind = tensor.dtype, tensor.device
        if numbers[kind] and numbers[kind] + tensor.numel() > MESSAGE:
            yield alike[kind]
            alike[kind], numbers[kind] = [], 0
        alike.setdefault(kind, []).append(tensor)
        numbers[kind] += tensor.numel()
    yield from alike.values()


ALONE = Processes()


def join(device: str) -> Processes:
    """Meet the other processes where RANK and WORLD_SIZE say that there are some. InputError without a GPU for each."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return ALONE
    if device == "cuda":
        place, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if place >= there:
            raise InputError(f"process {place} of this machine finds {there} GPUs: start as many as there are")
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        # Both: gradients lie on the device, and sums of a few numbers on the CPU. Who reads the video may pause, and
        # with it the first process, for whom the others wait; one that has died is noticed at once all the same.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))
        atexit.register(_leave)
    return Processes(dist.get_rank(), count)


def _leave() -> None:
    """Gloo's threads let go of the last sum a moment after it is done, and abort a Python that ends just then."""
    dist.destroy_process_group()
    time.sleep(0.2)
