"""A run that was stopped anywhere and resumed is, bit for bit, the run that was never stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from headstart.data import batches
from headstart.records import EvaluationRecord, Record, StepRecord, StopRecord
from headstart.runlog import read_log
from headstart.tasks.sequence_classification import SequenceClassification
from headstart.training.checkpoint import load_checkpoint, save_checkpoint
from headstart.training.fast_adamw import FastAdamW
from small_training import Settings, bits_of, finish, start, train_to

NUM_STEPS = 24  # of the settings in conftest.py: 3 epochs of 8 updates, each of two micro-batches
NUM_MICRO_BATCHES = 2 * NUM_STEPS


class Killed(BaseException):
    """In the place of a process that ends: nothing may catch it and go on."""


class Stop(NamedTuple):
    """Where a run is stopped: asked to stop and save after a step, or left after its record without saving."""

    step: int
    is_asked: bool = True


# What a run leaves


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Give a checkpoint's bits: weights and optimizer state as bytes, and what the loop remembers but its clock."""
    train = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["state"]["train"]
    return {
        "weights": digest(checkpoint / "model.safetensors"),
        "optimizer": digest(checkpoint / "optimizer.safetensors"),
        "train": {name: value for name, value in train.items() if name != "seconds"},
    }


def checkpoints_of(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").iterdir())


def end_of(run_dir: Path) -> dict[str, Any]:
    """Give all that must be equal when a run has ended; its last step is always saved."""
    return {**bits_of(run_dir), "checkpoint": state_of(checkpoints_of(run_dir)[-1])}


Unbroken = Callable[[Settings], dict[str, Any]]


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """Give what a run leaves that was never stopped; each is trained once."""
    known: dict[str, dict[str, Any]] = {}

    def train_whole(settings: Settings) -> dict[str, Any]:
        key = json.dumps(settings, sort_keys=True)
        if key not in known:
            run_dir = tmp_path_factory.mktemp("unbroken") / "run"
            finish(settings, run_dir)
            known[key] = end_of(run_dir)
        return known[key]

    return train_whole


# Ways to stop


def train_until(records: Iterator[Record], is_last: Callable[[Record], bool]) -> list[Record]:
    """Leave the iteration after the first record that is meant; nothing is saved then."""
    seen = []
    with contextlib.closing(records):
        for record in records:
            seen.append(record)
            if is_last(record):
                break
    return seen


def train_with_stops(settings: Settings, run_dir: Path, stops: Sequence[Stop]) -> dict[str, Any]:
    """Stop at each of these steps, resume after each, train to the end, and give what is left."""
    is_resumed = False
    for stop in stops:
        preparation = start(settings, run_dir, resume=is_resumed)
        if stop.is_asked:
            records = list(train_to(preparation, stop.step))
            assert isinstance(records[-1], StopRecord)
        else:

            def is_last(record: Record, step: int = stop.step) -> bool:
                return isinstance(record, StepRecord) and record.step == step

            train_until(preparation.train(), is_last)
        is_resumed = True
    finish(settings, run_dir, resume=True)
    return end_of(run_dir)


def changed(settings: Settings, **changes: Any) -> Settings:
    return {**settings, **{name.replace("__", "."): value for name, value in changes.items()}}


# Every step


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.exactness)])
def test_stopped_at_every_step_in_succession(
    precision: str, settings: Settings, unbroken: Unbroken, tmp_path: Path
) -> None:
    settings = changed(settings, train__precision=precision)
    stops = [Stop(step) for step in range(1, NUM_STEPS + 1)]
    assert train_with_stops(settings, tmp_path / "run", stops) == unbroken(settings)


@pytest.mark.exactness
@pytest.mark.parametrize(
    ("step", "is_asked"),
    [*((step, True) for step in range(1, NUM_STEPS + 1)), *((step, False) for step in range(1, NUM_STEPS + 1, 4))],
)
def test_stopped_once_after_a_step(
    step: int, is_asked: bool, settings: Settings, unbroken: Unbroken, tmp_path: Path
) -> None:
    settings = changed(settings, train__precision="bf16" if step % 2 else "fp32")
    assert train_with_stops(settings, tmp_path / "run", [Stop(step, is_asked)]) == unbroken(settings)


# Each optimizer and schedule, alone and mixed with everything else

ALONE: dict[str, Settings] = {
    "adamw": {"optim.name": "adamw"},
    "sgd": {"optim.name": "sgd", "optim.momentum": 0.0, "optim.learning_rate": 0.5},
    "sgd-momentum": {"optim.name": "sgd", "optim.momentum": 0.9, "optim.learning_rate": 0.1},
    "linear": {"optim.schedule": "linear", "optim.warmup": 6},
    "cosine": {"optim.schedule": "cosine", "optim.warmup": "1 epoch"},
    "constant": {"optim.schedule": "constant", "optim.warmup": 0},
    "adafactor": {"optim.name": "adafactor"},
    "nadam": {"optim.name": "nadam"},
    "radam": {"optim.name": "radam"},
    "lion": {"optim.name": "lion", "optim.learning_rate": 1e-4},
    "adan": {"optim.name": "adan"},
    "prodigy": {"optim.name": "prodigy", "optim.learning_rate": 1.0},
    "polynomial": {"optim.schedule": "polynomial", "optim.end_factor": 0.1},
    "inverse-root": {"optim.schedule": "inverse_sqrt", "optim.warmup": 4},
    "restarts": {"optim.schedule": "cosine_with_restarts", "optim.cycles": 3},
    "one-cycle": {"optim.schedule": "one_cycle", "optim.warmup": "25%"},
    "plateau": {"optim.schedule": "plateau", "optim.plateau_patience": 0},
    "layer-decay": {"optim.layer_decay": 0.7},
    "frozen": {"model.freeze": 1},
    "unfrozen": {"model.unfreeze_every": 4},
    "average": {"train.ema": 0.9},
}


def full_form_but(names: Sequence[str], of: Sequence[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in names else pytest.mark.exactness) for name in of]


@pytest.mark.parametrize("name", full_form_but(["sgd-momentum"], list(ALONE)))
def test_each_optimizer_and_schedule_in_float32(
    name: str, settings: Settings, unbroken: Unbroken, tmp_path: Path
) -> None:
    settings = {**settings, **ALONE[name]}
    stops = [Stop(5, is_asked=False), Stop(14)]
    assert train_with_stops(settings, tmp_path / "run", stops) == unbroken(settings)


@pytest.mark.parametrize("name", full_form_but(["cosine"], list(ALONE)))
def test_each_optimizer_and_schedule_in_bfloat16(
    name: str, settings: Settings, unbroken: Unbroken, tmp_path: Path
) -> None:
    settings = {**settings, **ALONE[name], "train.precision": "bf16"}
    stops = [Stop(5, is_asked=False), Stop(14)]
    bits = train_with_stops(settings, tmp_path / "run", stops)
    assert bits == unbroken(settings)
    assert bits["model"] != unbroken({**settings, "train.precision": "fp32"})["model"]  # the precision was in use


def draw_settings(number: int) -> tuple[Settings, list[Stop]]:
    """Draw one combination of settings, and one to three stops."""
    draw = random.Random(f"resume {number}")
    name = draw.choice(["adamw", "sgd", "sgd-momentum"])
    changes: Settings = {
        **ALONE[name],
        "optim.schedule": draw.choice(["linear", "cosine", "constant"]),
        "optim.warmup": draw.choice([0, 5, "10%", "1 epoch"]),
        "optim.max_grad_norm": draw.choice([0.05, 1.0, 100.0]),
        "optim.weight_decay": draw.choice([0.0, 0.1]),
        "model.dropout": draw.choice([0.0, 0.1, 0.4]),
        "train.precision": draw.choice(["fp32", "bf16"]),
        "train.order": draw.choice(["length", "random", "sequential"]),
        "train.accumulation": draw.choice([1, 2, 3]),
        "train.threads": 2 if draw.random() < 0.1 else 1,
        "train.seed": draw.randrange(1000),
        "train.evaluate_every": draw.choice([2, 3, 7, "1 epoch", "10%"]),
        "train.save_every": draw.choice([None, 1, 4, "1 epoch"]),
        "train.keep": draw.choice([1, 2, 5]),
        "train.best": draw.choice(["accuracy", "log_loss", "f1", "last"]),
    }
    if draw.random() < 0.5:
        changes |= {"train.batch_size": draw.choice([3, 4, 7, 8])}
    else:
        changes |= {"train.batch_size": None, "train.tokens_per_batch": draw.choice([40, 64, 150])}
    if draw.random() < 0.5:
        changes |= {"train.epochs": draw.choice([1, 1.5, 2.3])}
    else:
        changes |= {"train.epochs": None, "train.max_steps": draw.choice([10, 17, 24])}
    if changes["train.best"] != "last" and draw.random() < 0.5:
        changes["train.patience"] = draw.choice([1, 2, 3])
    steps = sorted(draw.sample(range(1, 16), draw.choice([1, 2, 3])))
    return changes, [Stop(step, is_asked=draw.random() < 0.6) for step in steps]


IN_SHORT = 3
IN_FULL = 40


@pytest.mark.parametrize(
    "number",
    [pytest.param(number, marks=[] if number < IN_SHORT else pytest.mark.exactness) for number in range(IN_FULL)],
)
def test_settings_drawn_by_chance(number: int, settings: Settings, unbroken: Unbroken, tmp_path: Path) -> None:
    changes, stops = draw_settings(number)
    settings = {name: value for name, value in {**settings, **changes}.items() if value is not None}
    assert train_with_stops(settings, tmp_path / "run", stops) == unbroken(settings), (changes, stops)


# In the middle of something


def dies_at(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool = False) -> None:
    """Let the process die at the n-th call of a function, before or after its work."""
    original = getattr(owner, name)
    count = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == call and not after:
            raise Killed
        result = original(*arguments, **options)
        if count == call:
            raise Killed
        return result

    patch.setattr(owner, name, counted)


def train_and_die(settings: Settings, run_dir: Path, owner: Any, name: str, call: int, *, after: bool) -> None:
    preparation = start(settings, run_dir)
    with pytest.MonkeyPatch.context() as patch:
        dies_at(patch, owner, name, call, after=after)
        with pytest.raises(Killed):
            train_until(preparation.train(), lambda record: False)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, marks=[] if call in (21, 34) else pytest.mark.exactness)
        for call in [*range(1, NUM_MICRO_BATCHES, 2), 14, 34, NUM_MICRO_BATCHES]
    ],
)
def test_killed_after_the_backward_pass_of_a_micro_batch(
    call: int, settings: Settings, unbroken: Unbroken, tmp_path: Path
) -> None:
    """An odd number is the middle of an update, whose gradients are there in part."""
    run_dir = tmp_path / "run"
    train_and_die(settings, run_dir, torch.Tensor, "backward", call, after=True)
    assert [record.step for record in read_log(run_dir) if isinstance(record, StepRecord)] == list(
        range(1, (call - 1) // 2 + 1)
    )
    finish(settings, run_dir, resume=True)
    assert end_of(run_dir) == unbroken(settings)


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        pytest.param(FastAdamW, "step", 8, True, id="after the update, before its record"),
        pytest.param(SequenceClassification, "score", 2, False, id="in an evaluation"),
        pytest.param(os, "rename", 3, False, id="before a checkpoint has its name", marks=pytest.mark.exactness),
        pytest.param(os, "rename", 3, True, id="after a checkpoint got its name", marks=pytest.mark.exactness),
        pytest.param(os, "fsync", 7, False, id="while a checkpoint is written"),
        pytest.param(FastAdamW, "step", 24, True, id="after the last update", marks=pytest.mark.exactness),
        pytest.param(SequenceClassification, "score", 5, True, id="in the last one", marks=pytest.mark.exactness),
    ],
)
def test_killed_between_and_around_the_steps(
    owner: Any, name: str, call: int, after: bool, settings: Settings, unbroken: Unbroken, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    train_and_die(settings, run_dir, owner, name, call, after=after)
    finish(settings, run_dir, resume=True)
    assert end_of(run_dir) == unbroken(settings)


KILL = """
import json, os, signal, sys
from pathlib import Path

import torch

from small_training import start

settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
preparation = start(settings, folder / "run")
backward = torch.Tensor.backward
for call in json.loads(sys.argv[3]):
    child = os.fork()
    if child == 0:
        count = 0

        def counted(*arguments, **options):
            global count
            backward(*arguments, **options)
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.Tensor.backward = counted
        for record in preparation.train():
            pass
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == signal.SIGKILL, status
    (folder / "run").rename(folder / f"killed-{call}")
"""


@pytest.mark.exactness
def test_processes_killed_in_the_middle_of_an_update(settings: Settings, unbroken: Unbroken, tmp_path: Path) -> None:
    """SIGKILL, which runs nothing more in the process; each run goes on in another process and another folder."""
    calls = [1, 5, 6, 7, 13, 20, 29, 36, 47]
    # A child of fork computes on the CPU only where its parent has not begun to use a GPU.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILL, json.dumps(settings), str(tmp_path), json.dumps(calls)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    for call in calls:
        run_dir = tmp_path / f"killed-{call}"
        finish(settings, run_dir, resume=True)
        assert end_of(run_dir) == unbroken(settings), call


# Choosing the best, and ending early


def test_stopped_around_an_early_end(settings: Settings, unbroken: Unbroken, tmp_path: Path) -> None:
    """Before the evaluation that ends the run, in it, after it, and after the end."""
    settings = changed(
        settings, train__evaluate_every=3, train__save_every=2, train__best="accuracy", train__patience=2
    )
    whole = unbroken(settings)
    end = whole["checkpoint"]["train"]["step"]
    assert 6 < end < NUM_STEPS
    assert whole["checkpoint"]["train"]["evaluations_without_better"] == 2

    def is_last_evaluation(record: Record) -> bool:
        return isinstance(record, EvaluationRecord) and record.step == end

    stops = [Stop(end - 3), Stop(end - 1), Stop(end, is_asked=False), Stop(end)]
    assert train_with_stops(settings, tmp_path / "chain", stops) == whole
    run_dir = tmp_path / "evaluated"
    train_until(start(settings, run_dir).train(), is_last_evaluation)
    list(start(settings, run_dir, resume=True).train())
    after_the_end = list(start(settings, run_dir, resume=True).train())
    assert [record.reason for record in after_the_end if isinstance(record, StopRecord)] == ["early_stopping"]
    assert len(after_the_end) == 1
    finish(settings, run_dir, resume=True)
    assert end_of(run_dir) == whole


def test_stopped_at_the_step_of_an_evaluation(settings: Settings, unbroken: Unbroken, tmp_path: Path) -> None:
    """Each evaluation happens once, and the best step is remembered, not looked for again."""
    settings = changed(settings, train__best="log_loss", optim__learning_rate=1e-2)
    stops = [Stop(5), Stop(10, is_asked=False), Stop(24, is_asked=False)]
    bits = train_with_stops(settings, tmp_path / "run", stops)
    assert bits == unbroken(settings)
    assert [record["step"] for record in bits["log"] if record["record"] == "evaluation"] == [5, 10, 15, 20, 24]


def test_the_best_checkpoint_is_older_than_those_that_are_kept(
    settings: Settings, unbroken: Unbroken, tmp_path: Path
) -> None:
    settings = changed(settings, train__evaluate_every=2, train__save_every=1, train__best="accuracy")
    whole = unbroken(settings)
    best = whole["checkpoint"]["train"]["best_step"]
    assert best < NUM_STEPS - 6
    assert whole["model"] != whole["checkpoint"]["weights"]
    stops = [Stop(best + 3), Stop(best + 5, is_asked=False)]
    assert train_with_stops(settings, tmp_path / "run", stops) == whole
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == [f"step-{best:06d}", f"step-{NUM_STEPS:06d}"]


class MadeUpClock:
    """A clock that goes on by a second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_time_limit_counts_over_all_starts_and_changes_no_bit(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the time ends follows from the clock; what was computed until then does not."""
    settings = changed(settings, train__save_every=1, train__keep=100)
    finish(settings, tmp_path / "unbroken")
    limited = {**settings, "train.time_limit": "0.5 minutes"}
    monkeypatch.setattr(time, "perf_counter", MadeUpClock())
    list(train_to(start(limited, tmp_path / "run"), 3))
    records = list(start(limited, tmp_path / "run", resume=True).train())
    assert isinstance(records[-1], StopRecord)
    assert records[-1].reason == "time_limit"
    end = records[-1].step
    assert 4 < end < NUM_STEPS
    assert [record.step for record in records if isinstance(record, StepRecord)] == list(range(4, end + 1))
    steps = [record for record in read_log(tmp_path / "run") if isinstance(record, StepRecord)]
    assert sum(step.seconds for step in steps[:-1]) < 30 <= sum(step.seconds for step in steps)
    name = f"step-{end:06d}"
    assert state_of(tmp_path / "run" / "checkpoints" / name) == state_of(tmp_path / "unbroken" / "checkpoints" / name)
    # Resumed once more, it has no time left.
    again = start(limited, tmp_path / "run", resume=True)
    assert [type(record) for record in again.train()] == [StopRecord]
    again.finish()
    log = bits_of(tmp_path / "run")["log"]
    assert log == bits_of(tmp_path / "unbroken")["log"][: len(log)]


# A seek, not a replay

FAR = 1_000_000

PLANNED: dict[str, Settings] = {
    "batch_size and max_steps": {"train.epochs": None, "train.max_steps": FAR + 10},
    "batch_size and epochs": {"train.epochs": FAR / 8 + 2},
    "tokens_per_batch and max_steps": {
        "train.batch_size": None,
        "train.tokens_per_batch": 64,
        "train.epochs": None,
        "train.max_steps": FAR + 10,
    },
}


def move_to_step(run_dir: Path, step: int) -> None:
    """Let the newest checkpoint of a run be one of a much later step, at the same place of a later epoch."""
    old = load_checkpoint(checkpoints_of(run_dir)[-1])
    state = {**old.state, "train": {**old.state["train"], "step": step}}
    if "place" in state:
        index = old.step - state["place"]["first_step"]
        state["place"] = {"epoch": FAR // 8, "first_step": step - index}
    for path in checkpoints_of(run_dir):
        path.rename(run_dir / path.name)
    save_checkpoint(run_dir, step, model=old.model, optimizer=old.optimizer, state=state)


class Work:
    """Counts what is done between a resume and its first step: epochs planned, batches made, functions called."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.planned = self.collated = self.calls = 0
        plan, collate = batches.plan_batches, SequenceClassification.collate

        def count_plan(*arguments: Any, **options: Any) -> Any:
            self.planned += 1
            return plan(*arguments, **options)

        def count_collate(*arguments: Any, **options: Any) -> Any:
            self.collated += 1
            return collate(*arguments, **options)

        patch.setattr(batches, "plan_batches", count_plan)
        patch.setattr(SequenceClassification, "collate", count_collate)

    def count_call(self, frame: object, event: str, argument: object) -> None:
        self.calls += event in ("call", "c_call")


def work_of_resuming(settings: Settings, run_dir: Path) -> tuple[Work, int]:
    """Resume, make one step, and give the work up to its record, and its number."""
    with pytest.MonkeyPatch.context() as patch:
        work = Work(patch)
        sys.setprofile(work.count_call)
        try:
            records = train_until(
                start(settings, run_dir, resume=True).train(), lambda record: isinstance(record, StepRecord)
            )
        finally:
            sys.setprofile(None)
    return work, records[-1].step


@pytest.mark.parametrize(
    "name", full_form_but(["batch_size and max_steps", "tokens_per_batch and max_steps"], list(PLANNED))
)
def test_resuming_far_away_is_no_more_work_than_near_the_start(name: str, settings: Settings, tmp_path: Path) -> None:
    settings = {**settings, **PLANNED[name], "train.save_every": None, "train.evaluate_every": FAR}
    settings = {key: value for key, value in settings.items() if value is not None or key == "train.save_every"}
    for folder in ("near", "far"):
        list(train_to(start(settings, tmp_path / folder), 16))
    move_to_step(tmp_path / "far", FAR)
    work_of_resuming(settings, tmp_path / "near")  # what is looked up once a process
    near, near_step = work_of_resuming(settings, tmp_path / "near")
    far, far_step = work_of_resuming(settings, tmp_path / "far")
    assert (near_step, far_step) == (17, FAR + 1)
    assert near.planned <= 3
    assert (far.planned, far.collated) == (near.planned, near.collated)
    assert far.calls == pytest.approx(near.calls, rel=0.05)
