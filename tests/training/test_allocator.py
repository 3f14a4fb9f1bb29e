"""Freed memory: used again while computing, given back after."""

import ctypes
import platform
import resource
import threading

import numpy as np
import pytest
import torch

from headstart.data.token_file import Tokens
from headstart.prediction import predict_tokens
from headstart.training import allocator
from headstart.training.allocator import keep_freed_memory
from headstart.training.device import choose_device

NUM_BYTES = 64 * 2**20
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")


def count_new_pages(times: int = 10) -> int:
    """Fill and free a large block several times, and count the pages that the kernel had to clear."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"1" * NUM_BYTES  # malloc as it is: tensors are aligned, arrays ask for huge pages
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize()


@needs_glibc
def test_freed_memory_is_used_again_inside_and_given_back_after() -> None:
    assert count_new_pages() > 5 * NUM_BYTES
    with keep_freed_memory():
        with keep_freed_memory():
            pass
        assert count_new_pages() < 2 * NUM_BYTES  # the inner one has not switched it off
    assert count_new_pages() > 5 * NUM_BYTES


@needs_glibc
def test_an_error_and_threads_leave_it_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError), keep_freed_memory():
        raise ZeroDivisionError
    inside, go_on = threading.Event(), threading.Event()

    def compute() -> None:
        with keep_freed_memory():
            inside.set()
            go_on.wait(60)

    thread = threading.Thread(target=compute)
    thread.start()
    inside.wait(60)
    with keep_freed_memory():
        pass
    assert count_new_pages() < 2 * NUM_BYTES
    go_on.set()
    thread.join()
    assert count_new_pages() > 5 * NUM_BYTES


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with keep_freed_memory():
        assert allocator._num_inside == 0


def test_prediction_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    depths = []

    class Task:
        label_names = ("a", "b")

        def collate(
            self, tokens: Tokens, rows: np.ndarray, targets: None, pad_token_id: int
        ) -> dict[str, torch.Tensor]:
            depths.append(allocator._num_inside)
            return {}

        def run(self, model: torch.nn.Module, batch: object, mode: str) -> None:
            pass

        def decode(self, outputs: object, batch: object) -> float:
            return 0.5

    monkeypatch.setattr(allocator, "_glibc", lambda: ctypes.CDLL(None))
    lengths = np.array([3], dtype=np.int32)
    tokens = Tokens(np.zeros(3, np.int32), np.array([0, 3]), lengths, lengths, None)
    predict_tokens(
        torch.nn.Linear(1, 1),
        Task(),
        tokens,
        pad_token_id=0,
        batch_size=1,
        device=choose_device("cpu", "fp32", 1),  # type: ignore[arg-type]
    )
    assert depths == [1] and allocator._num_inside == 0
