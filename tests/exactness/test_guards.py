"""What is not finite, does not fit into memory or fails while evaluating is said, and leaves the training exact."""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules import module as hooks_of_all_modules

import headstart.training.checkpoint
import headstart.training_run
from forked import LIMIT_SECONDS
from headstart.api import Preparation, prepare
from headstart.cli.main import main
from headstart.errors import TrainingError
from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.preparation import Plan
from headstart.records import CheckpointRecord, EvaluationRecord, Record, StepRecord, StopRecord, WarningRecord
from headstart.runlog import DISCARDED_LOG_FILE, NON_FINITE_DIR, read_log
from headstart.tasks import SequenceClassification
from headstart.training.fast_adamw import FastAdamW
from headstart.training.memory import is_out_of_memory
from headstart.training.non_finite import MAX_ROLLBACKS
from headstart.training.optim import build_optimizer
from headstart.training.schedules import learning_rate_factor
from headstart.training.state import Batch, LoopParts
from small_training import Settings, bits_of, finish

NUM_STEPS = 24  # of the settings in conftest.py: 3 epochs of 8 updates, each of two micro-batches
STEPS = {"first": 0, "middle": 11, "last, short": NUM_STEPS - 1}
NUMBERS = [float("nan"), float("inf"), float("-inf")]
# Its gradient comes late in a backward pass; that of the classifier comes first.
PARAMETER = "bert.encoder.layer.0.attention.self.query.weight"

Bits = dict[str, Any]


class Wrap(Protocol):
    """Changes what the loop calls."""

    def __call__(self, parts: LoopParts, plan: Plan, model: torch.nn.Module) -> LoopParts: ...


@pytest.fixture
def wrap_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Wrap], None]:
    """Give the function that puts something between the loop and what it calls, for trainings that start from now."""
    make_parts = headstart.training_run._loop_parts

    def use(wrap: Wrap) -> None:
        def make(plan: Plan, model: torch.nn.Module, *rest: Any) -> LoopParts:
            return wrap(make_parts(plan, model, *rest), plan, model)

        monkeypatch.setattr(headstart.training_run, "_loop_parts", make)

    return use


def in_short(cases: list[Any], shown: Callable[[Any], bool]) -> list[Any]:
    """Leave all but some cases to the full form."""
    return [pytest.param(*case, marks=[] if shown(case) else pytest.mark.exactness) for case in cases]


def warnings_of(records: Iterable[Record]) -> list[WarningRecord]:
    return [record for record in records if isinstance(record, WarningRecord)]


def steps_of(run_dir: Path) -> list[int]:
    return [record.step for record in read_log(run_dir) if isinstance(record, StepRecord)]


def last_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step-??????"))


def trained(run_dir: Path) -> Bits:
    """Give the bits of what was computed up to the last step, whatever was evaluated on the way."""
    checkpoint = last_checkpoint(run_dir)
    names = ("model.safetensors", "optimizer.safetensors")
    return {
        "checkpoint": checkpoint.name,
        **{name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in names},
        "steps": [replace(record, seconds=0.0) for record in read_log(run_dir) if isinstance(record, StepRecord)],
    }


def begin(settings: Settings, run_dir: Path, *, resume: bool = False) -> Preparation:
    """Prepare a training, or go on with the one in `run_dir`."""
    return prepare(**arguments_of({} if resume else settings, run_dir), resume=resume)


def arguments_of(settings: Settings, run_dir: Path) -> dict[str, Any]:
    """Give what `prepare` takes; None is null, which a value in Python cannot say."""
    values = {name: value for name, value in settings.items() if value is not None}
    nulls = [f"{name}=null" for name in settings.keys() - values.keys()]
    return {"settings": nulls, "values": {**values, "output.run": str(run_dir)}}


def train_by_command(settings: Settings, run_dir: Path, *options: str) -> int:
    given = [f"{name}={'null' if value is None else value}" for name, value in settings.items()]
    words = [word for text in given for word in ("--set", text)]
    return main(["train", "--yes", "--quiet", *options, "--run", str(run_dir), *words])


@pytest.fixture
def unbroken(whole_run: Callable[..., Bits]) -> Bits:
    """Give what a training leaves to which nothing happens; made before a test changes anything."""
    return whole_run()


# Not finite


@dataclass
class NotFinite:
    """Makes something of chosen updates not finite, and remembers how everything was before.

    Args:
        steps: zero-based numbers of the updates; asked at each.
        place: "loss" of the first micro-batch, whose gradients stay finite; "gradient" of one parameter in the second;
            "everything": the loss of the first and all gradients.
        value: in its place.
    """

    steps: Callable[[int], bool]
    place: str = "everything"
    value: float = float("nan")
    is_on: bool = True
    before: dict[str, Any] = field(default_factory=dict)
    plan: Any = None
    micro_batches: int = 0

    def __call__(self, parts: LoopParts, plan: Plan, model: torch.nn.Module) -> LoopParts:
        self.plan = plan
        parameter = dict(model.named_parameters())[PARAMETER]
        handles: list[Any] = []

        def step_begins(step: int) -> None:
            self.micro_batches = 0
            if self.is_on and self.steps(step):
                self.before = copy.deepcopy(model.state_dict())

        def micro_batch(model: torch.nn.Module, batch: Batch, num_targets: int) -> tuple[torch.Tensor, int]:
            loss, count = parts.micro_batch(model, batch, num_targets)
            self.micro_batches += 1
            if not (self.is_on and self.steps(plan.state.step)):
                return loss, count
            if self.micro_batches == 1 and self.place != "gradient":
                loss = loss + self.value if self.place == "loss" else loss * self.value
            if self.micro_batches == 2 and self.place == "gradient":
                handles.append(parameter.register_hook(self._spoil))
            return loss, count

        def micro_batch_ends(step: int) -> None:
            while handles:
                handles.pop().remove()

        hooks = replace(parts.hooks, step_begins=step_begins, micro_batch_ends=micro_batch_ends)
        return replace(parts, micro_batch=micro_batch, hooks=hooks)

    def _spoil(self, gradient: torch.Tensor) -> torch.Tensor:
        spoiled = gradient.clone()
        spoiled[3, 5] = self.value
        return spoiled


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect the state of the optimizer before each of its steps, and after the last."""
    seen: list[dict[str, Any]] = []

    def watch(kind: type[torch.optim.AdamW]) -> None:
        make_step = kind.step

        def step(self: torch.optim.AdamW, *rest: Any) -> Any:
            result = make_step(self, *rest)
            seen[:] = [copy.deepcopy(self.state_dict()["state"]), self]  # type: ignore[list-item]
            return result

        monkeypatch.setattr(kind, "step", step)

    watch(torch.optim.AdamW)
    watch(FastAdamW)
    return seen


def assert_same_tensors(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
        return
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_tensors(found[name], value)


@pytest.mark.parametrize(
    ("place", "value", "step"),
    in_short(
        [(place, value, step) for place in ("loss", "gradient", "everything") for value in NUMBERS for step in STEPS],
        lambda case: (
            case in [("loss", NUMBERS[1], "first"), ("gradient", NUMBERS[0], "last, short")]
            or (case[0] == "everything" and case[1] != case[1] and case[2] == "middle")
        ),
    ),
)
def test_training_stops_before_an_update_that_is_not_finite(
    place: str,
    value: float,
    step: str,
    settings: Settings,
    unbroken: Bits,
    rows_csv: Path,
    wrap_parts: Callable[[Wrap], None],
    moments: list[Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    at = STEPS[step]
    spoiled = NotFinite(lambda number: number == at, place, value)
    wrap_parts(spoiled)
    run_dir = tmp_path / "run"
    assert train_by_command(settings, run_dir) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"Step {at}: loss" in said and "the update was not made" in said
    for advice in ("optim.learning_rate", "train.precision=fp32", "train.on_non_finite=rollback"):
        assert advice in said

    # Nothing was changed.
    assert_same_tensors(spoiled.plan.loaded.model.state_dict(), spoiled.before)
    if at:
        assert_same_tensors(moments[1].state_dict()["state"], moments[0])
    else:
        assert not moments
    assert steps_of(run_dir) == list(range(1, at + 1))

    # Everything is said, with the numbers of the rows in the file.
    *_, warning, stop = read_log(run_dir)
    assert isinstance(warning, WarningRecord) and (warning.kind, warning.step) == ("non_finite", at)
    assert isinstance(stop, StopRecord) and (stop.reason, stop.step) == ("non_finite", at)
    kept = run_dir / NON_FINITE_DIR / f"step-{at:06d}.json"
    details = json.loads(kept.read_text(encoding="utf-8"))
    first, second = details["micro_batches"]
    assert warning.rows == details["rows"] == first + second
    assert (len(first), len(second)) == (4, 3 if step == "last, short" else 4)
    assert f"{NON_FINITE_DIR}/{kept.name}" in warning.message
    all_names = [name for name, _ in spoiled.plan.loaded.model.named_parameters()]
    bad_loss, bad_rows, bad_names = {
        "loss": (str(value), sorted(first), []),
        "gradient": (None, [], [PARAMETER]),
        "everything": (str(value), sorted(first), all_names),
    }[place]
    assert details["loss"] == bad_loss or (bad_loss is None and np.isfinite(float(details["loss"])))
    assert np.isfinite(float(details["grad_norm"])) == (place == "loss")
    assert details["rows_of_non_finite_losses"] == bad_rows
    assert details["parameters_with_non_finite_gradients"] == bad_names

    # The batch that is kept holds these rows of the file.
    batch = load_file(kept.with_suffix(".safetensors"))
    with rows_csv.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    tokenizer = spoiled.plan.loaded.tokenizer
    names = spoiled.plan.data.task.label_names
    texts = [tokenizer.decode(ids, skip_special_tokens=True).replace(" ##", "") for ids in batch["input_ids"]]
    assert texts == [lines[row]["text"] for row in details["rows"]]
    assert [names[label] for label in batch["labels"]] == [lines[row]["label"] for row in details["rows"]]
    lengths = [len(tokenizer(text).input_ids) for text in texts]
    assert batch["attention_mask"].sum(1).tolist() == lengths and batch["input_ids"].shape[1] == max(lengths)
    table_rows = np.concatenate(spoiled.plan.batches.updates(at // 8)[at % 8])
    assert details["rows"] != table_rows.tolist(), "the numbers are those of the table, or no row was taken from it"

    # Once the cause is gone, it goes on as if it had never been.
    spoiled.is_on = False
    assert train_by_command({}, run_dir, "--resume") == 0
    assert bits_of(run_dir) == unbroken


def left_out(settings: Settings, step: int, run_dir: Path) -> Bits:
    """Give what a training leaves that is told from the start to leave one update out."""
    preparation = begin(settings, run_dir)
    preparation._plan.state.skipped_steps = [step]
    for _ in preparation.train():
        pass
    preparation.finish()
    return bits_of(run_dir)


@pytest.mark.parametrize("step", [1, *(pytest.param(step, marks=pytest.mark.exactness) for step in (0, 11, 12, 23))])
def test_a_rollback_leaves_exactly_that_update_out(
    step: int, settings: Settings, wrap_parts: Callable[[Wrap], None], tmp_path: Path
) -> None:
    settings = {**settings, "train.on_non_finite": "rollback"}
    expected = left_out(settings, step, tmp_path / "expected")
    wrap_parts(NotFinite(lambda number: number == step))
    run_dir = tmp_path / "run"
    preparation = begin(settings, run_dir)
    records = list(preparation.train())
    preparation.finish()
    assert bits_of(run_dir) == expected

    # Each step was made once, as the log has it; what came before going back is kept apart.
    assert steps_of(run_dir) == [number for number in range(1, NUM_STEPS + 1) if number != step + 1]
    back, passed = warnings_of(records)
    assert (back.kind, back.step, passed.kind, passed.step) == ("non_finite", step, "non_finite", step)
    assert "goes back to the last checkpoint" in back.message and "passed over" in passed.message
    assert back.rows == passed.rows and len(back.rows) == (7 if step == 23 else 8)
    assert warnings_of(read_log(run_dir)) == [passed]
    discarded = [json.loads(line) for line in (run_dir / DISCARDED_LOG_FILE).read_text(encoding="utf-8").splitlines()]
    saved = [record.step for record in records[: records.index(back)] if isinstance(record, CheckpointRecord)]
    assert [line["step"] for line in discarded if line["record"] == "step"] == list(range(saved[-1] + 1, step + 1))
    assert discarded[-1]["message"] == back.message
    # There is something to go back to before the first checkpoint that is due; the best one is saved, too.
    assert saved[0] == 0 and set(range(0, step + 1, 3)) <= set(saved)


def test_a_rollback_equals_a_plain_loop_without_that_update(
    settings: Settings, wrap_parts: Callable[[Wrap], None], tmp_path: Path
) -> None:
    step = 4
    settings = {**settings, "train.epochs": 1, "train.evaluate_every": None}
    wrap_parts(NotFinite(lambda number: number == step))
    for _ in begin({**settings, "train.on_non_finite": "rollback"}, tmp_path / "run").train():
        pass
    plan = begin(settings, tmp_path / "plain")._plan
    model, task, split = plan.loaded.model.train(), plan.data.task, plan.data.splits["train"]
    optimizer = build_optimizer(model, plan.recipe.optim)
    for number, update in enumerate(plan.batches.updates(0)):
        if number == step:
            continue
        factor = learning_rate_factor(number, total_steps=8, warmup_steps=plan.warmup_steps, schedule="linear")
        for group in optimizer.param_groups:
            group["lr"] = plan.recipe.optim.learning_rate * factor
        for index, rows in enumerate(update):
            batch = task.collate(split.encoded(), rows, split.targets, 0)
            with keyed_randomness(RandomKey(0, number, rows.tolist(), index), torch.device("cpu"), model):
                loss = task.loss(task.run(model, batch, "train"), batch) / sum(map(len, update))
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert_same_tensors(load_file(last_checkpoint(tmp_path / "run") / "model.safetensors"), dict(model.state_dict()))


@pytest.mark.parametrize("moment", ["said", pytest.param("gone back", marks=pytest.mark.exactness)])
def test_killed_around_a_rollback_and_resumed(
    moment: str, settings: Settings, wrap_parts: Callable[[Wrap], None], tmp_path: Path
) -> None:
    step = 4
    settings = {**settings, "train.epochs": 1, "train.on_non_finite": "rollback"}
    expected = left_out(settings, step, tmp_path / "expected")
    wrap_parts(NotFinite(lambda number: number == step))
    run_dir = tmp_path / "run"
    is_said = False
    with contextlib.closing(begin(settings, run_dir).train()) as records:
        for record in records:
            if is_said or (isinstance(record, WarningRecord) and moment == "said"):
                break
            is_said = isinstance(record, WarningRecord)
    assert isinstance(record, WarningRecord if moment == "said" else StepRecord)
    assert finish(settings, run_dir, resume=True) == expected
    assert len(steps_of(run_dir)) == len(set(steps_of(run_dir))) == 7


@pytest.mark.parametrize(("first", "epochs"), [(0, 1), (0, 3), (5, 3)])
def test_a_model_that_stays_not_finite_is_not_gone_back_for_without_end(
    first: int,
    epochs: int,
    settings: Settings,
    wrap_parts: Callable[[Wrap], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Also where the training is so short that each of its updates could be passed over."""
    wrap_parts(NotFinite(lambda number: number >= first))
    run_dir = tmp_path / "run"
    settings = {**settings, "train.on_non_finite": "rollback", "train.epochs": epochs, "train.evaluate_every": None}
    assert train_by_command(settings, run_dir) == 3
    assert "finite" in capsys.readouterr().err
    *_, stop = read_log(run_dir)
    assert isinstance(stop, StopRecord) and stop.reason == "non_finite"
    texts = [(run_dir / name).read_text(encoding="utf-8") for name in ("log.jsonl", DISCARDED_LOG_FILE)]
    assert 1 <= "".join(texts).count("goes back to the last checkpoint") <= MAX_ROLLBACKS


def test_a_skipped_update_is_left_out_and_said(
    settings: Settings, wrap_parts: Callable[[Wrap], None], tmp_path: Path
) -> None:
    step = 4
    settings = {**settings, "train.epochs": 1, "train.on_non_finite": "skip"}
    left_out(settings, step, tmp_path / "expected")
    wrap_parts(NotFinite(lambda number: number == step))
    for _ in begin(settings, tmp_path / "run").train():
        pass
    found, expected = trained(tmp_path / "run"), trained(tmp_path / "expected")
    (of_step,) = [record for record in found["steps"] if record.step == step + 1]
    found["steps"].remove(of_step)
    assert np.isnan(of_step.loss)
    assert found == expected
    (warning,) = warnings_of(read_log(tmp_path / "run"))
    assert (warning.kind, warning.step) == ("non_finite", step) and "is skipped" in warning.message
    assert (tmp_path / "run" / NON_FINITE_DIR / f"step-{step:06d}.json").exists()


# Out of memory

# A sum of fewer rows at a time differs in the last digits of float32, measured after 8 steps of SGD, which passes
# rounding on as it is: 3e-6 of the largest weight of a tensor, or 2e-8 where all weights are next to zero.
WEIGHT_TOLERANCE = 1e-5
REST = 1e-7
LOSS_TOLERANCE = 1e-5

ERRORS: dict[str, Exception] = {
    "a GPU's": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "Python's": MemoryError(),
    "a CPU's": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8388608 bytes. Error code 12 (Cannot allocate memory)"
    ),
}
POINTS = [
    "make_batch",
    "forward",
    "loss",
    "backward",
    "backward of the second micro-batch",
    "after the second micro-batch",
    "norm",
    "clipping",
]


def sgd(settings: Settings) -> Settings:
    """Give a training of 8 steps with dropout and clipping whose updates are in proportion to their gradients."""
    return {
        **{name: value for name, value in settings.items() if not name.startswith("optim.")},
        "optim.name": "sgd",
        "optim.momentum": 0.5,
        "optim.learning_rate": 0.3,
        "optim.max_grad_norm": 0.5,
        "train.epochs": 1,
        "train.evaluate_every": None,
        "train.save_every": None,
    }


@pytest.fixture(scope="module")
def with_sgd(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give such a training in which nothing runs out."""
    run_dir = tmp_path_factory.mktemp("sgd") / "run"
    for _ in begin(sgd(settings), run_dir).train():
        pass
    return run_dir


def assert_equal_to_rounding(found: Path, expected: Path) -> None:
    """The same rows in each update, and losses and weights that differ by rounding alone."""
    ours, theirs = trained(found)["steps"], trained(expected)["steps"]
    assert [(record.step, record.rows, record.tokens) for record in ours] == [
        (record.step, record.rows, record.tokens) for record in theirs
    ]
    for name in ("loss", "grad_norm"):
        numbers = [[getattr(record, name) for record in records] for records in (ours, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=LOSS_TOLERANCE)
    weights = [load_file(last_checkpoint(run_dir) / "model.safetensors") for run_dir in (found, expected)]
    for name, tensor in weights[1].items():
        difference = float((weights[0][name] - tensor).abs().max())
        assert difference <= WEIGHT_TOLERANCE * float(tensor.abs().max()) + REST, name


@dataclass
class RunsOut:
    """Lets memory run out at a point of one update, a number of times.

    Args:
        error: raised.
        point: where.
        step: zero-based number of the update.
        times: how often.
    """

    error: Exception
    point: str
    step: int = 3
    times: int = 1
    rows: list[int] = field(default_factory=list)

    def __call__(self, parts: LoopParts, plan: Plan, model: torch.nn.Module) -> LoopParts:
        modules, parameter = dict(model.named_modules()), dict(model.named_parameters())[PARAMETER]
        modules["bert.encoder.layer.1"].register_forward_pre_hook(lambda *given: self.reach("forward", plan))
        parameter.register_hook(lambda gradient: self.reach(f"backward{self.of_micro_batch}", plan))

        def make_batch(rows: np.ndarray) -> Batch:
            self.reach("make_batch", plan)
            return parts.make_batch(rows)

        def micro_batch(model: torch.nn.Module, batch: Batch, num_targets: int) -> tuple[torch.Tensor, int]:
            if plan.state.step == self.step:
                self.rows.append(len(batch["labels"]))
            loss, count = parts.micro_batch(model, batch, num_targets)
            self.reach("loss", plan)
            return loss, count

        def micro_batch_ends(step: int) -> None:
            if len(self.rows) == 2:
                self.reach("after the second micro-batch", plan)

        hooks = replace(parts.hooks, micro_batch_ends=micro_batch_ends)
        return replace(parts, make_batch=make_batch, micro_batch=micro_batch, hooks=hooks)

    @property
    def of_micro_batch(self) -> str:
        return " of the second micro-batch" if len(self.rows) == 2 else ""

    def reach(self, point: str, plan: Plan) -> None:
        if point == self.point and plan.state.step == self.step and self.times:
            self.times -= 1
            raise self.error


@pytest.mark.parametrize(
    ("point", "name"),
    in_short(
        [(point, name) for point in POINTS for name in ERRORS],
        lambda case: list(ERRORS)[POINTS.index(case[0]) % 3] == case[1],
    ),
)
def test_memory_that_runs_out_splits_the_update(
    point: str,
    name: str,
    settings: Settings,
    with_sgd: Path,
    wrap_parts: Callable[[Wrap], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    runs_out = RunsOut(ERRORS[name], point)
    wrap_parts(runs_out)
    preparation = begin(sgd(settings), tmp_path / "run")
    before = "get_total_norm" if point == "norm" else "clip_grads_with_norm_"
    compute = getattr(torch.nn.utils, before)

    def compute_and_fail(*given: Any, **named: Any) -> Any:
        result = compute(*given, **named)  # gradients may be clipped already
        runs_out.reach({"get_total_norm": "norm"}.get(before, "clipping"), preparation._plan)
        return result

    monkeypatch.setattr(torch.nn.utils, before, compute_and_fail)
    (warning,) = warnings_of(preparation.train())
    assert (warning.kind, warning.step) == ("out_of_memory", 3)
    assert runs_out.times == 0
    assert runs_out.rows[-4:] == [2, 2, 2, 2]
    assert preparation._plan.state.splits == 1
    assert_equal_to_rounding(tmp_path / "run", with_sgd)
    assert not hooks_of_all_modules._global_forward_hooks, "a forward pass that broke off leaves its hooks behind"


def test_memory_that_runs_out_again_splits_again_and_a_short_update_too(
    settings: Settings, with_sgd: Path, wrap_parts: Callable[[Wrap], None], tmp_path: Path
) -> None:
    runs_out = RunsOut(ERRORS["a CPU's"], "loss", step=7, times=2)
    wrap_parts(runs_out)
    said = warnings_of(begin(sgd(settings), tmp_path / "run").train())
    assert [(warning.kind, warning.step) for warning in said] == [("out_of_memory", 7)] * 2
    assert "with 4 rows" in said[0].message and "with 2 rows" in said[1].message
    assert runs_out.rows == [4, 2, *[1] * 7]  # of 4 and 3 rows
    assert_equal_to_rounding(tmp_path / "run", with_sgd)


# Where, and whether the optimizer can try again by itself, because nothing of the update was made.
FIRST_NUMBERS = "among the numbers that it makes at its first step"
PLACES = {
    "before": True,
    FIRST_NUMBERS: True,
    "between the counters and the weights": False,
    "between the groups": False,
    "after all weights": False,
}


@pytest.mark.parametrize(
    ("place", "name", "call"),
    in_short(
        [(place, "adamw", call) for place in PLACES for call in (1, 4) if (place, call) != (FIRST_NUMBERS, 4)]
        + [("before", "sgd", 4), ("after all weights", "sgd", 1), ("after all weights", "sgd", 4)],
        lambda case: case[1:] in [("adamw", 4), ("sgd", 1)] or case[0] in (FIRST_NUMBERS, "between the groups"),
    ),
)
def test_memory_that_runs_out_in_the_optimizer_never_makes_an_update_twice_or_in_part(
    place: str, name: str, call: int, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Either it tries again by itself, or the last checkpoint is what is gone on from; to the same bits."""
    settings = {
        **settings,
        **({"optim.name": "sgd", "optim.momentum": 0.5, "optim.learning_rate": 0.1} if name == "sgd" else {}),
        "train.epochs": 1,
        "train.evaluate_every": None,
        "train.save_every": 2,
        "optim.warmup": 0,  # the first step counts
        "train.fast": {"optimizer_pass": False},  # PyTorch's own; tests/training/test_fast_adamw.py has the other
    }
    for _ in begin(settings, tmp_path / "expected").train():
        pass
    optimizer = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    make_step, zeros_like, change = optimizer.step, torch.zeros_like, torch._fused_adamw_
    counts = {"step": 0, "zeros_like": 0, "change": 0, "failed": 0}

    def reach(*places: str) -> None:
        if place in places and counts["step"] == call and not counts["failed"]:
            counts["failed"] += 1
            raise ERRORS["a CPU's"]

    def step(self: Any, *rest: Any) -> Any:
        counts.update(step=counts["step"] + 1, zeros_like=0, change=0)
        reach("before")
        result = make_step(self, *rest)
        reach("after all weights")
        return result

    def zeros_like_or_fail(*given: Any, **named: Any) -> torch.Tensor:
        counts["zeros_like"] += 1
        if counts["zeros_like"] == 7:
            reach(FIRST_NUMBERS)
        return zeros_like(*given, **named)

    def change_or_fail(*given: Any, **named: Any) -> Any:
        counts["change"] += 1
        reach("between the counters and the weights" if counts["change"] == 1 else "between the groups")
        return change(*given, **named)

    monkeypatch.setattr(optimizer, "step", step)
    monkeypatch.setattr(torch, "zeros_like", zeros_like_or_fail)
    monkeypatch.setattr(torch, "_fused_adamw_", change_or_fail)
    try:
        assert not warnings_of(begin(settings, tmp_path / "run").train())
    except TrainingError as error:
        assert not (PLACES[place] and name == "adamw"), "it could have tried again"
        assert "go on from the last checkpoint" in str(error)
        for _ in begin(settings, tmp_path / "run", resume=True).train():
            pass
    assert counts["failed"] == 1
    assert trained(tmp_path / "run") == trained(tmp_path / "expected")


def test_memory_that_runs_out_while_evaluating_halves_the_batch_of_predictions_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {**settings, "train.epochs": 1}
    expected = finish(settings, tmp_path / "expected")
    run, predicted = SequenceClassification.run, []

    def run_or_fail(self: Any, model: torch.nn.Module, batch: Batch, mode: Any) -> Any:
        if mode == "predict":
            predicted.append(len(batch["input_ids"]))
            if predicted[-1] > 2:
                raise ERRORS["a GPU's"]
        return run(self, model, batch, mode)

    monkeypatch.setattr(SequenceClassification, "run", run_or_fail)
    found = finish(settings, tmp_path / "run")
    assert predicted[:7] == [7, 4, 2, 2, 3, 2, 1]
    assert found["model"] == expected["model"]
    ours, theirs = ([line for line in bits["log"] if line["record"] == "step"] for bits in (found, expected))
    assert ours == theirs
    ours, theirs = ([line for line in bits["log"] if line["record"] != "step"] for bits in (found, expected))
    for record, other in zip(ours, theirs, strict=True):
        assert record["scores"] == pytest.approx(other["scores"], rel=1e-5)
        assert (record["step"], record["best"]) == (other["step"], other["best"])
    assert not warnings_of(read_log(tmp_path / "run"))


@pytest.mark.parametrize("name", ERRORS)
def test_memory_that_runs_out_while_saving_costs_a_checkpoint_alone(
    name: str, settings: Settings, unbroken: Bits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_file = headstart.training.checkpoint.save_file

    def save_or_fail(tensors: dict[str, torch.Tensor], path: Path, *rest: Any) -> None:
        if path.parent.name == ".step-000006.tmp" and path.name == "optimizer.safetensors":
            raise ERRORS[name]
        save_file(tensors, path, *rest)

    monkeypatch.setattr(headstart.training.checkpoint, "save_file", save_or_fail)
    assert finish(settings, tmp_path / "run") == unbroken
    (warning,) = warnings_of(read_log(tmp_path / "run"))
    assert (warning.kind, warning.step) == ("checkpoint", 6)
    saved = {record.step for record in read_log(tmp_path / "run") if isinstance(record, CheckpointRecord)}
    assert 6 not in saved and {3, 9, NUM_STEPS} <= saved


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # oneDNN, which multiplies in bfloat16, has these words for want of memory.
        ("could not create a primitive", True),
        ("could not execute a primitive", True),
        ("std::bad_alloc", True),
        # These speak of what it cannot do at all.
        ("could not create a primitive descriptor for the matmul primitive. Run workload with environment", False),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_the_words_of_libraries_for_want_of_memory_are_known(text: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is expected


# A new process: in a forked one, what the test run has freed before takes no room, and is more or less by chance.
TRAIN_WITH_LIMITED_MEMORY = """
import json, resource, sys, warnings
from pathlib import Path
from headstart.api import prepare


def address_space(name):  # in bytes: "VmSize" is now, "VmPeak" the largest so far
    table = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(table[name].split()[0]) * 1024


# PyTorch says that a faster way had no memory, and takes another.
warnings.simplefilter("ignore")
given, limit = json.loads(sys.argv[1]), int(sys.argv[2])
preparation = prepare(**given)
before = address_space("VmSize")
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (before + limit,) * 2)
for _ in preparation.train():
    pass
print(address_space("VmPeak") - before)
"""


def train_with_limited_memory(settings: Settings, run_dir: Path, limit: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", TRAIN_WITH_LIMITED_MEMORY, json.dumps(arguments_of(settings, run_dir)), str(limit)]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)


@pytest.mark.exactness
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the table of a process, as Linux has it")
@pytest.mark.parametrize(("precision", "fast"), [("fp32", False), ("fp32", True), ("bf16", True)])
def test_a_system_that_has_no_more_memory(precision: str, fast: bool, settings: Settings, tmp_path: Path) -> None:
    """A limit on the process lets the C library refuse, wherever it happens to come to it."""
    words = ["good", "bad", "the", "film", "was", "it", "is", "so"]
    path = tmp_path / "long.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(560):
            chosen = random.Random(index).choices(words, k=118)
            writer.writerow([" ".join(chosen), chosen[0] < "g"])
    settings = {
        **sgd(settings),
        "data.train": str(path),
        "train.batch_size": 504,
        "train.accumulation": 1,
        "train.epochs": 3,
        "train.precision": precision,
        "train.fast": fast,
    }
    unlimited = train_with_limited_memory(settings, tmp_path / "unlimited", 0)
    assert unlimited.returncode == 0, unlimited.stderr
    for share in (0.35, 0.6, 0.85):
        run_dir = tmp_path / f"limited to {share}"
        limited = train_with_limited_memory(settings, run_dir, int(share * int(unlimited.stdout)))
        if fast and limited.returncode != 0:
            # The code that oneDNN makes for each shape needs room that no smaller batch gives; nothing is lost by that.
            assert "TrainingError" in limited.stderr and "out of memory" in limited.stderr, limited.stderr
            continue
        assert limited.returncode == 0, limited.stderr
        kinds = {record.kind for record in warnings_of(read_log(run_dir))}
        if precision == "fp32":
            # Where oneDNN's faster way has no memory, it takes another, and nothing needs to be said.
            assert kinds == {"out_of_memory"} or (fast and not kinds)
            assert_equal_to_rounding(run_dir, tmp_path / "unlimited")
        else:  # where the faster way had no memory, another was taken
            losses = [[record.loss for record in trained(name)["steps"]] for name in (run_dir, tmp_path / "unlimited")]
            assert losses[0] == pytest.approx(losses[1], rel=2e-2)


# Evaluation


def log_losses(records: Iterable[Record]) -> dict[int, float]:
    return {record.step: record.scores["log_loss"] for record in records if isinstance(record, EvaluationRecord)}


def test_an_evaluation_that_fails_costs_its_scores_alone(
    settings: Settings, wrap_parts: Callable[[Wrap], None], tmp_path: Path
) -> None:
    settings = {**settings, "train.best": "log_loss", "train.evaluate_every": 4, "train.keep": 100}
    for _ in begin(settings, tmp_path / "expected").train():
        pass
    scores = log_losses(read_log(tmp_path / "expected"))
    best = min(scores, key=scores.__getitem__)
    failing = {4, best, NUM_STEPS}
    others = {step: score for step, score in scores.items() if step not in failing}

    def wrap(parts: LoopParts, plan: Plan, model: torch.nn.Module) -> LoopParts:
        def evaluate() -> dict[str, float]:
            found = parts.evaluate()
            if plan.state.step in failing:
                torch.rand(7)
                raise ZeroDivisionError("made up")
            return found

        return replace(parts, evaluate=evaluate)

    wrap_parts(wrap)
    preparation = begin(settings, tmp_path / "run")
    records = list(preparation.train())
    preparation.finish()
    said = warnings_of(records)
    assert [(warning.kind, warning.step) for warning in said] == [("evaluation", step) for step in sorted(failing)]
    assert all("made up" in warning.message and "ZeroDivisionError" in warning.message for warning in said)
    assert log_losses(records) == others
    assert trained(tmp_path / "run") == trained(tmp_path / "expected")
    chosen = min(others, key=others.__getitem__)
    assert preparation._plan.state.best_step == chosen
    weights = load_file(tmp_path / "run" / "checkpoints" / f"step-{chosen:06d}" / "model.safetensors")
    assert_same_tensors(load_file(tmp_path / "run" / "model" / "model.safetensors"), weights)


def test_no_evaluation_that_succeeds_leaves_the_last_step_as_the_model(
    settings: Settings, wrap_parts: Callable[[Wrap], None], tmp_path: Path
) -> None:
    def fail() -> dict[str, float]:
        raise MemoryError

    wrap_parts(lambda parts, plan, model: replace(parts, evaluate=fail))
    settings = {**settings, "train.epochs": 1, "train.evaluate_every": 2, "train.patience": 1}
    finish(settings, tmp_path / "run")
    assert [warning.step for warning in warnings_of(read_log(tmp_path / "run"))] == [2, 4, 6, 8]
    weights = load_file(last_checkpoint(tmp_path / "run") / "model.safetensors")
    assert last_checkpoint(tmp_path / "run").name == "step-000008"
    assert_same_tensors(load_file(tmp_path / "run" / "model" / "model.safetensors"), weights)


@pytest.mark.parametrize("every", [1, pytest.param(5, marks=pytest.mark.exactness)])
def test_evaluations_change_no_bit_of_the_training(
    every: int, settings: Settings, wrap_parts: Callable[[Wrap], None], tmp_path: Path
) -> None:
    """Not even one that draws from every stream and leaves the model in another mode."""
    settings = {**settings, "train.epochs": 1, "train.save_every": None}
    for _ in begin({**settings, "train.evaluate_every": None}, tmp_path / "expected").train():
        pass

    def wrap(parts: LoopParts, plan: Plan, model: torch.nn.Module) -> LoopParts:
        def evaluate() -> dict[str, float]:
            model.train(plan.state.step % 2 == 0)
            model(torch.ones(3, 4, dtype=torch.int64)).logits.sum().backward()
            torch.rand(3), np.random.random(3), random.random()
            torch.manual_seed(plan.state.step)
            model.zero_grad()
            scores = parts.evaluate()
            model.train(plan.state.step % 3 == 0)
            return scores

        return replace(parts, evaluate=evaluate)

    wrap_parts(wrap)
    records = list(begin({**settings, "train.evaluate_every": every}, tmp_path / "run").train())
    assert sum(isinstance(record, EvaluationRecord) for record in records) == -(-8 // every)
    assert trained(tmp_path / "run") == trained(tmp_path / "expected")
