"""Putting a batch on the device, with stand-ins for tensors of a GPU."""

from __future__ import annotations

from typing import Any

import torch

from headstart.training.device import Device


class Recorded:
    """Notes what is asked of it."""

    def __init__(self, is_cuda: bool = False) -> None:
        self.is_cuda = is_cuda
        self.calls: list[Any] = []

    def pin_memory(self) -> Recorded:
        self.calls.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> Recorded:
        self.calls.append((str(device), non_blocking))
        return self


def test_a_batch_goes_to_a_gpu_from_pinned_memory_while_the_host_goes_on() -> None:
    there, here = Recorded(is_cuda=True), Recorded()
    batch: Any = {"there": there, "here": here}
    placed = Device(torch.device("cuda", 0), "bf16", 1).place(batch)
    assert placed == batch
    assert (there.calls, here.calls) == ([], ["pinned", ("cuda:0", True)])


def test_a_batch_stays_on_the_cpu_as_it_is() -> None:
    ids = torch.arange(6)
    assert Device(torch.device("cpu"), "fp32", 1).place({"ids": ids})["ids"] is ids
