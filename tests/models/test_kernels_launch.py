"""Kernels on PyTorch's threads, their random bits, and their machine code on disk."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headstart
from headstart.models import random_bits
from headstart.models.kernels import available, launch, machine_code
from headstart.models.kernels.drawing import Drops
from headstart.models.kernels.elementwise import drop
from headstart.models.kernels.launch import Kernel, bits_of, kernel, num_workers, number_at
from headstart.models.kernels.vectors import exp, load, store, store_number


@kernel
def remember(chunk, worker, out, workers):  # type: ignore[no-untyped-def]
    """Write which chunk and which worker it was."""
    store_number(out, chunk, number_at(out, chunk) + chunk + 1)
    store_number(workers, chunk, worker)


@kernel
def exponentials(chunk, worker, values, out):  # type: ignore[no-untyped-def]
    """Take e to the power of sixteen numbers."""
    store(out, chunk * 16, exp(load(values, chunk * 16)))


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_each_chunk_runs_once_in_an_area_of_its_thread(
    count: int, threads: int, parallel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not parallel:
        monkeypatch.setattr(launch, "find_parallel", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, workers = torch.zeros(count + 1, dtype=torch.int64), torch.zeros(count + 1, dtype=torch.int64)
        remember(count, out.data_ptr(), workers.data_ptr())
        assert out.tolist() == [*range(1, count + 1), 0]
        assert int(workers.max()) < num_workers(count) <= max(1, min(threads, count))
    finally:
        torch.set_num_threads(before)


def test_this_build_of_pytorch_runs_kernels_on_its_threads() -> None:
    assert launch.find_parallel() is not None and available() == ""


@pytest.mark.parametrize(("found", "reason"), [(False, "numba is not installed"), (True, "numba cannot be imported (")])
def test_without_numba_the_reason_is_told(found: bool, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if found else None)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert available.__wrapped__().startswith(reason)


def test_without_its_threads_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values, drops = torch.randn(640, 48), Drops(random_bits.split(1, torch.arange(10)), 0.3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    wanted = drop(values, 64, drops)
    monkeypatch.setattr(launch, "find_parallel", lambda: None)
    found = drop(values, 64, drops)
    torch.set_num_threads(before)
    assert torch.equal(found, wanted)


def test_two_kernels_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="give them a variant"):
        Kernel(remember.__wrapped__)  # type: ignore[attr-defined]


@given(st.floats(width=32, allow_nan=False))
def test_a_number_goes_through_its_bits(value: float) -> None:
    assert np.array(bits_of(value), dtype=np.int32).view(np.float32) == np.float32(value)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 88, width=32), min_size=1, max_size=16))
def test_exponentials_are_right_to_the_last_bits(values: list[float]) -> None:
    padded = torch.tensor([*values, *[0.0] * (16 - len(values))], dtype=torch.float32)
    out = torch.empty(16)
    exponentials(1, padded.data_ptr(), out.data_ptr())
    wanted = padded.double().exp()
    below = padded < -87
    assert bool((out[below] == 0).all())
    assert bool((((out.double() - wanted) / wanted)[~below].abs() < 3e-7).all())


def test_exponentials_of_what_is_no_number() -> None:
    values = torch.tensor([float("nan"), float("inf"), float("-inf"), 200.0] * 4)
    out = torch.empty(16)
    exponentials(1, values.data_ptr(), out.data_ptr())
    assert bool(out[::4].isnan().all()) and bool((out[1::4] > 1e38).all()) and bool((out[2::4] == 0).all())


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    rows=st.integers(1, 4),
    length=st.integers(1, 40),
    width=st.integers(1, 50),
    probability=st.floats(0, 1),
)
def test_kernels_draw_the_bits_of_random_bits(
    seed: int, rows: int, length: int, width: int, probability: float
) -> None:
    keys = random_bits.split(seed, torch.arange(rows))
    kept = drop(torch.ones(rows * length, width), length, Drops(keys, probability)) != 0
    wanted = random_bits.keep_mask(random_bits.split(keys[:, None], torch.arange(length)), width, probability)
    assert torch.equal(kept.view(rows, length, width), wanted)


# Machine code ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine_code, "folder", lambda: tmp_path / "code")
    return tmp_path / "code"


def run_anew() -> int:
    """Load or compile a kernel as a new process would, run it, and give how often it was compiled."""
    compiled: list[int] = []
    fresh = Kernel.__new__(Kernel)
    fresh.__dict__.update({name: value for name, value in remember.__dict__.items() if name != "_address"})
    make = fresh._compile

    def count() -> tuple[str, str]:
        compiled.append(1)
        return make()

    fresh._compile = count  # type: ignore[method-assign]
    out, workers = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    fresh(3, out.data_ptr(), workers.data_ptr())
    assert out.tolist() == [1, 2, 3]
    return len(compiled)


def test_machine_code_is_made_once(folder: Path) -> None:
    assert run_anew() == 1
    assert [path.suffix for path in folder.iterdir()] == [".o"]
    assert run_anew() == 0


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "folder"])
def test_a_damaged_file_is_made_anew(folder: Path, harm: str) -> None:
    run_anew()
    (path,) = folder.iterdir()
    content = path.read_bytes()
    if harm == "folder":
        path.unlink()
        path.mkdir()
    else:
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 1
        path.write_bytes({"cut": content[:-7], "flip": bytes(changed), "empty": b""}[harm])
    assert run_anew() == 1
    assert run_anew() == (1 if harm == "folder" else 0)


def test_a_place_that_cannot_be_written_costs_time_only(folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where the folder should be")
    assert run_anew() == 1 and run_anew() == 1


def test_a_full_disk_leaves_no_half_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(machine_code.os, "replace", fail)
    assert run_anew() == 1
    monkeypatch.undo()
    monkeypatch.setattr(machine_code, "folder", lambda: folder)
    assert list(folder.iterdir()) == []
    assert run_anew() == 1


def test_processes_that_start_at_once_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from headstart.models.kernels.elementwise import add_columns\n"
        "assert add_columns(torch.ones(40, 32)).tolist() == [40.0] * 32\n"
    )
    source = str(Path(headstart.__file__).parent.parent)
    environment = {**os.environ, "HEADSTART_CACHE": str(tmp_path), "PYTHONPATH": source}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    (folder,) = (tmp_path / "kernels").iterdir()
    assert [path.name for path in folder.iterdir()] == ["elementwise.columns.load.o"]


def test_the_folder_belongs_to_sources_versions_and_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    names = set()
    for change in ("nothing", "numba", "processor"):
        machine_code.folder.cache_clear()
        with monkeypatch.context() as patch:
            if change == "numba":
                patch.setattr(machine_code.numba, "__version__", "0.0")
            elif change == "processor":
                patch.setattr(machine_code.llvm, "get_host_cpu_name", lambda: "another")
            names.add(machine_code.folder())
    machine_code.folder.cache_clear()
    assert len(names) == 3 and all(name.parent == tmp_path / "kernels" for name in names)
