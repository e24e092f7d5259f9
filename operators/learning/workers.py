"""The learner on several workers: every worker holds the whole state, and each does a part of the work.

Judgements are read, and gradients computed, by the worker whose partitions they stand in; rows (under 1 kB each) and
gradients go to all. So each worker's state is the same, any one can be saved, and it can be restored on any number of
workers. Only the order in which gradients are added differs from what one worker would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # the job that imports this starts before torch
    from torch import Tensor

T = TypeVar("T")


class Alone:
    """One worker."""

    rank, count = 0, 1

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the workers, in place."""

    def gather(self, one: T) -> list[T]:
        """What every worker gave, by rank."""
        return [one]


class Group(Alone):
    """The workers of torch's process group, which Ray Train sets up. All must make the same calls in the same order."""

    def __init__(self) -> None:
        import torch

        self.rank, self.count = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the workers, in place."""
        import torch

        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        begin = 0
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(flat[begin : begin + tensor.numel()].reshape(tensor.shape))
                begin += tensor.numel()

    def gather(self, one: T) -> list[T]:
        """What every worker gave, by rank. It is pickled, which is for the workers of one job among themselves."""
        import torch

        given: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(given, one)
        return given
