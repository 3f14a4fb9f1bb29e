"""A training whose embedding rows are updated when they are needed: stopped, killed, dealt out, out of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headstart.training_run
from headstart.models import lazy_embedding
from headstart.records import StepRecord, WarningRecord
from headstart.training import gradients
from headstart.training.checkpoint import load_checkpoint
from headstart.training.fast_adamw import FastAdamW
from headstart.training.missed_updates import MissedUpdates
from headstart.training.state import LoopParts
from joined import join, start_joined
from small_training import Settings, bits_of, finish, start, train_to

Bits = dict[str, Any]


@pytest.fixture(autouse=True)
def num_updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the tiny model's vocabulary be large enough, and count the updates of its rows."""
    monkeypatch.setattr(lazy_embedding, "MIN_ROWS", 20)
    counts: list[int] = []
    update = MissedUpdates.update

    def counted(self: MissedUpdates, rows: np.ndarray, *rest: Any) -> None:
        counts.append(len(rows))
        update(self, rows, *rest)

    monkeypatch.setattr(MissedUpdates, "update", counted)
    return counts


@pytest.fixture(scope="module")
def lazy_settings(settings: Settings) -> Settings:
    """Give settings in which a row is missed often: short updates, and a decay that can be seen."""
    return {**settings, "train.batch_size": 2, "train.accumulation": 2, "train.epochs": 1, "optim.weight_decay": 0.1}


@pytest.fixture(scope="module")
def whole(lazy_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Train once without a stop."""
    made: list[Path] = []

    def train_whole() -> Path:
        if not made:
            made.append(tmp_path_factory.mktemp("whole") / "run")
            finish(lazy_settings, made[0])
        return made[0]

    return train_whole


def last_checkpoint(run_dir: Path) -> dict[str, torch.Tensor]:
    path = max((run_dir / "checkpoints").iterdir())
    loaded = load_checkpoint(path)
    return {**loaded.model, **{f"optimizer {name}": value for name, value in loaded.optimizer.items()}}


def assert_same_end(found: Path, expected: Path) -> None:
    assert bits_of(found) == bits_of(expected)
    ours, theirs = last_checkpoint(found), last_checkpoint(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_rows_are_missed_and_end_as_with_whole_matrices(
    lazy_settings: Settings, whole: Callable[[], Path], num_updates: list[int], tmp_path: Path
) -> None:
    """Without clipping, whose norm sums rows in another order than whole matrices, to the bit."""
    changes = {**lazy_settings, "optim.max_grad_norm": 1e9}
    lazy = finish(changes, tmp_path / "lazy")
    num_rows = load_file(tmp_path / "lazy" / "model" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert num_updates and max(num_updates) < len(num_rows) / 1.5
    num_updates.clear()
    dense = finish({**changes, "train.fast": {"lazy_rows": False}}, tmp_path / "dense")
    assert not num_updates
    assert lazy["model"] == dense["model"]
    clipped, plain = bits_of(whole()), finish({**lazy_settings, "train.fast": {"lazy_rows": False}}, tmp_path / "plain")
    for ours, theirs in zip(clipped["log"], plain["log"], strict=True):
        if ours["record"] == "step":
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_stopped_after_every_step_and_resumed(
    lazy_settings: Settings, whole: Callable[[], Path], num_updates: list[int], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    for step in range(1, 17):
        for _ in train_to(start(lazy_settings, run_dir, resume=step > 1), step):
            pass
    finish(lazy_settings, run_dir, resume=True)
    assert num_updates
    assert_same_end(run_dir, whole())


class Killed(BaseException):
    """In the place of a process that ends."""


@pytest.mark.parametrize("place", ["before the kernel", "after the kernel", "in the forward pass"])
def test_killed_and_resumed(
    place: str, lazy_settings: Settings, whole: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    owner, name = (MissedUpdates, "catch_up") if place == "in the forward pass" else (FastAdamW, "step")
    original = getattr(owner, name)
    calls = iter(range(1, 10_000))

    def dies(self: Any, *given: Any) -> Any:
        is_last = next(calls) == 11
        if is_last and place == "before the kernel":
            raise Killed
        result = original(self, *given)
        if is_last:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed), contextlib.closing(start(lazy_settings, run_dir).train()) as records:
            for _ in records:
                pass
    finish(lazy_settings, run_dir, resume=True)
    assert_same_end(run_dir, whole())


def test_looking_and_saving_change_no_bit(lazy_settings: Settings, whole: Callable[[], Path], tmp_path: Path) -> None:
    """A save or an evaluation brings rows up to date; how often that happens must not matter."""
    often = finish({**lazy_settings, "train.evaluate_every": 1, "train.save_every": 1}, tmp_path / "often")
    steps = [[record for record in bits["log"] if record["record"] == "step"] for bits in (often, bits_of(whole()))]
    assert steps[0] == steps[1]
    ours, theirs = last_checkpoint(tmp_path / "often"), last_checkpoint(whole())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture
def wrap_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[LoopParts, Any], LoopParts]], None]]:
    make_parts = headstart.training_run._loop_parts

    def use(wrap: Callable[[LoopParts, Any], LoopParts]) -> None:
        monkeypatch.setattr(
            headstart.training_run, "_loop_parts", lambda plan, *rest: wrap(make_parts(plan, *rest), plan)
        )

    yield use


def spoil(at: int) -> Callable[[LoopParts, Any], LoopParts]:
    from dataclasses import replace

    def wrap(parts: LoopParts, plan: Any) -> LoopParts:
        def micro_batch(model: Any, batch: Any, num_targets: int) -> tuple[torch.Tensor, int]:
            loss, count = parts.micro_batch(model, batch, num_targets)
            return (loss * float("nan") if plan.state.step == at else loss), count

        return replace(parts, micro_batch=micro_batch)

    return wrap


@pytest.mark.parametrize("what", ["skip", "rollback"])
def test_an_update_that_is_not_finite_is_none_that_a_row_misses(
    what: str, lazy_settings: Settings, wrap_parts: Any, tmp_path: Path
) -> None:
    changes = {**lazy_settings, "train.on_non_finite": what, "optim.max_grad_norm": 1e9}
    wrap_parts(spoil(7))
    found = []
    for name, fast in (("lazy", True), ("dense", {"lazy_rows": False})):
        preparation = start({**changes, "train.fast": fast}, tmp_path / name)
        records = list(preparation.train())
        (warning, *_) = [record for record in records if isinstance(record, WarningRecord)]
        assert warning.kind == "non_finite" and warning.step == 7
        preparation.finish()
        found.append(bits_of(tmp_path / name)["model"])
    assert found[0] == found[1]


def test_memory_that_runs_out_begins_the_update_again(
    lazy_settings: Settings, whole: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = gradients.gradient_norm
    calls = iter(range(10_000))

    def measure_or_fail(*given: Any, **named: Any) -> torch.Tensor:
        if next(calls) == 5:
            raise MemoryError
        return measure(*given, **named)

    monkeypatch.setattr("headstart.training.fast_adamw.gradient_norm", measure_or_fail)
    preparation = start(lazy_settings, tmp_path / "run")
    records = list(preparation.train())
    assert [record.kind for record in records if isinstance(record, WarningRecord)] == ["out_of_memory"]
    losses = [record.loss for record in records if isinstance(record, StepRecord)]
    expected = [record["loss"] for record in bits_of(whole())["log"] if record["record"] == "step"]
    assert losses == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_train_the_same_rows(
    count: int, lazy_settings: Settings, whole: Callable[[], Path], tmp_path: Path
) -> None:
    def work(rank: int) -> int:
        preparation = start(lazy_settings, tmp_path / "run")
        for _ in preparation.train():
            pass
        preparation.finish()
        return 0

    processes = start_joined(count, work, tmp_path / "processes")
    codes = join(processes)
    assert codes == [0] * count, "\n".join(process.printed() for process in processes)
    ours, theirs = bits_of(tmp_path / "run"), bits_of(whole())
    for found, expected in zip(ours["log"], theirs["log"], strict=True):
        if found["record"] == "step":
            assert found["loss"] == pytest.approx(expected["loss"], rel=2e-5)
    weights = [load_file(path / "model" / "model.safetensors") for path in (tmp_path / "run", whole())]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=2e-4, atol=2e-5)
