"""Several processes that train one model: what they add up, agree on and hand to each other.

May import layers 0 and 1. `Processes` is one process alone, for which every answer is its own; `JoinedProcesses` asks
the others. Every call is made by all of them, in the same order. The device joins them (`training/device.py`).

    numbers, flags, objects   through the CPU (gloo), also where the model is on GPUs
    gradients                 on the device of the model, in a few large pieces
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.distributed

from headstart.errors import ProcessLostError, format_rows

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["JoinedProcesses", "Processes"]

_BUCKET_BYTES: Final = 25 * 2**20
# How long the ones left wait for each other's sign of life when one is lost.
_ROLL_CALL_SECONDS: Final = 5.0
# How often it is asked whether something was announced; in between, signals are heard.
_ASK_SECONDS: Final = 0.1


class Processes:
    """One process that trains alone.

    Attributes:
        rank: zero-based number of this process; 0 writes the run folder.
        count: how many there are.
        shards: each holds a part of the model only (FSDP), so that every forward and backward pass is one of all of
            them together, and gradients are summed by it.
    """

    rank: int = 0
    count: int = 1
    shards: bool = False

    def add(self, numbers: Sequence[float]) -> list[float]:
        """Sum each number over the processes, in float64."""
        return list(numbers)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Say of each flag whether a process has raised it."""
        return list(flags)

    def add_array(self, values: np.ndarray) -> np.ndarray:
        """Sum an array over the processes."""
        return values

    def reserve(self, parameters: Sequence[torch.Tensor]) -> None:
        """Make the room that `add_gradients` needs, so that memory cannot run out in the middle of it."""

    def add_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        """Sum tensors over the processes, in place."""

    def gather(self, value: Any) -> list[Any]:
        """Give the value of every process, in their order; values are what JSON can hold."""
        return [value]

    def share(self, value: Any) -> Any:
        """Give every process the value of process 0."""
        return value

    def share_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Give every process the named tensors of process 0, on the CPU."""
        return dict(tensors)

    def meet(self) -> None:
        """Wait until every process has come here."""

    def announce(self, what: str, *, until_seen: bool = False) -> None:
        """Let the processes that wait for `what` go on; for process 0, which can wait until they have seen it."""

    def wait_for(self, what: str) -> None:
        """Wait, however long it takes, until process 0 has announced `what`."""

    def close(self) -> None:
        """Leave the others."""


class JoinedProcesses(Processes):
    """One of several processes. What they send each other is numbers and JSON, never pickle.

    Args:
        rank: of this process.
        count: of all.
        control: group for what goes through the CPU.
        store: where the processes leave signs for each other; independent of the group.
        timeout_seconds: after which a process that does not answer counts as lost.
        leave: ends the group; None where it goes on to the next training.

    Raises:
        ProcessLostError: from every call, when another process has ended or does not answer.
    """

    def __init__(
        self,
        rank: int,
        count: int,
        control: Any,
        store: Store,
        timeout_seconds: float,
        leave: Callable[[], None] | None,
    ) -> None:
        self.rank = rank
        self.count = count
        self._control = control
        self._store = store
        self._timeout_seconds = timeout_seconds
        self._leave = leave
        self._room = torch.empty(0, dtype=torch.uint8)

    def add(self, numbers: Sequence[float]) -> list[float]:
        """Sum each number over the processes, in float64."""
        return [float(value) for value in self.add_array(np.asarray(numbers, dtype=np.float64))]

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Say of each flag whether a process has raised it."""
        raised = torch.tensor(flags, dtype=torch.uint8)
        with self._others():
            torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX, group=self._control)
        return [bool(flag) for flag in raised.tolist()]

    def add_array(self, values: np.ndarray) -> np.ndarray:
        """Sum an array over the processes."""
        total = torch.from_numpy(values.copy())
        with self._others():
            torch.distributed.all_reduce(total, group=self._control)
        summed: np.ndarray = total.numpy()
        return summed

    def reserve(self, parameters: Sequence[torch.Tensor]) -> None:
        """Make the room that `add_gradients` needs, so that memory cannot run out in the middle of it."""
        sizes = [sum(tensor.nbytes for tensor in bucket) for bucket in _buckets(parameters)]
        self._room = torch.empty(max(sizes, default=0) + _BUCKET_BYTES, dtype=torch.uint8, device=parameters[0].device)

    def add_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        """Sum tensors over the processes, in place, copied together into a few large pieces."""
        for bucket in _buckets(gradients):
            num_bytes = sum(tensor.nbytes for tensor in bucket)
            flat = self._room[:num_bytes].view(bucket[0].dtype)
            torch.cat([tensor.reshape(-1) for tensor in bucket], out=flat)
            with self._others():
                torch.distributed.all_reduce(flat)
            start = 0
            for tensor in bucket:
                tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def gather(self, value: Any) -> list[Any]:
        """Give the value of every process, in their order."""
        text = json.dumps(value).encode()
        lengths = self.add_array(np.eye(self.count, dtype=np.int64)[self.rank] * len(text))
        texts = np.zeros((self.count, int(lengths.max())), dtype=np.uint8)
        texts[self.rank, : len(text)] = np.frombuffer(text, dtype=np.uint8)
        texts = self.add_array(texts)
        return [json.loads(texts[rank, : lengths[rank]].tobytes()) for rank in range(self.count)]

    def share(self, value: Any) -> Any:
        """Give every process the value of process 0."""
        return self.gather(value if self.rank == 0 else None)[0]

    def share_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Give every process the named tensors of process 0, on the CPU."""
        kinds = self.share([(name, list(value.shape), str(value.dtype)) for name, value in tensors.items()])
        shared = {}
        for name, shape, dtype in kinds:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
            if self.rank == 0:
                tensor.copy_(tensors[name])
            with self._others():
                # As bytes, because not every kind of number can be sent.
                torch.distributed.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=self._control)
            shared[name] = tensor
        return shared

    def meet(self) -> None:
        """Wait until every process has come here."""
        self.any([False])

    def announce(self, what: str, *, until_seen: bool = False) -> None:
        """Let the processes that wait for `what` go on; for process 0, which can wait until they have seen it."""
        self._store.set(what, "yes")
        if until_seen:
            # The store may end with this process.
            with contextlib.suppress(RuntimeError):
                self._store.wait(
                    [f"{what}/{rank}" for rank in range(1, self.count)], timedelta(seconds=self._timeout_seconds)
                )

    def wait_for(self, what: str) -> None:
        """Wait, however long it takes, until process 0 has announced `what`."""
        if self.rank == 0:
            return
        try:
            while not self._store.check([what]):
                time.sleep(_ASK_SECONDS)
            self._store.set(f"{what}/{self.rank}", "seen")
        except RuntimeError as error:
            raise self._lost([0]) from error

    def close(self) -> None:
        """Leave the others."""
        if self._leave is not None:
            self._leave()

    @contextlib.contextmanager
    def _others(self) -> Iterator[None]:
        """Turn the end of another process, as the group reports it, into an error that names it."""
        try:
            yield
        except RuntimeError as error:
            raise self._lost(self._call_roll()) from error

    def _call_roll(self) -> list[int]:
        """Find which processes give no sign of life, once the group is broken."""
        missing = set(range(self.count)) - {self.rank}
        try:
            self._store.set(f"alive/{self.rank}", "yes")
            end = time.monotonic() + _ROLL_CALL_SECONDS
            while missing and time.monotonic() < end:
                missing = {rank for rank in missing if not self._store.check([f"alive/{rank}"])}
                time.sleep(0.05)
        except RuntimeError:
            return [0]  # the store lies with process 0, or with whoever started all of them
        return sorted(missing)

    def _lost(self, ranks: list[int]) -> ProcessLostError:
        return ProcessLostError(
            f"Process {format_rows(ranks)} of {self.count} (counted from 0) was lost: it has ended, or has not "
            f"answered for {self._timeout_seconds:g} seconds."
            if ranks
            else f"The connection between the {self.count} processes was lost.",
            f"all {self.count} processes, up to the end.",
            "Look at what that process printed last (killed for want of memory?).",
            ranks=ranks,
        )


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Put tensors of one kind together, in their order, up to a size that is worth one message."""
    bucket: list[torch.Tensor] = []
    num_bytes = 0
    for tensor in tensors:
        if bucket and (num_bytes + tensor.nbytes > _BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(tensor)
        num_bytes += tensor.nbytes
    if bucket:
        yield bucket
