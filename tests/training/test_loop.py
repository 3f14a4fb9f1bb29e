"""The loop alone: a linear model, made-up batches, and parts that write down when they are called."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from headstart.data.batches import BatchPlan
from headstart.durations import Duration
from headstart.errors import CheckpointError, TrainingError
from headstart.runlog import CheckpointRecord, EvaluationRecord, Record, StepRecord, StopRecord, WarningRecord
from headstart.training.device import choose_device
from headstart.training.intervals import is_due
from headstart.training.loop import train
from headstart.training.state import LoopParts, LoopSettings, StepHooks, TrainState

ROWS = 10


class Bench:
    """A model, its optimizer, and a diary of what the loop did."""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        self.diary: list[str] = []
        self.features, self.targets = torch.randn(ROWS, 3), torch.randn(ROWS)
        self.model = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.plan = BatchPlan(
            np.ones(ROWS, dtype=np.int32),
            batch_size=2,
            tokens_per_batch=None,
            order="sequential",
            accumulation=2,
            seed=0,
        )
        self.settings = LoopSettings(**{"total_steps": 6, "seed": 0, **settings})
        self.state = TrainState()
        self.requests: set[str] = set()
        self.save_error: Exception | None = None
        self.scores = iter(range(100))

    def micro_batch(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], num_targets: int
    ) -> tuple[torch.Tensor, int]:
        self.diary.append(f"micro_batch of {len(batch['y'])}/{num_targets}")
        return ((model(batch["x"])[:, 0] - batch["y"]) ** 2).sum() / num_targets, len(batch["y"])

    def save(self, state: TrainState, record: CheckpointRecord) -> list[str]:
        self.diary.append(f"save {state.step}")
        if self.save_error is not None:
            raise self.save_error
        return []

    def evaluate(self) -> dict[str, float]:
        self.diary.append("evaluate")
        return {"score": float(next(self.scores))}

    def run(self, hooks: StepHooks | None = None) -> list[Record]:
        return list(self.iterate(hooks))

    def iterate(self, hooks: StepHooks | None = None) -> Iterator[Record]:
        parts = LoopParts(
            make_batch=lambda rows: {"x": self.features[rows], "y": self.targets[rows]},
            count=lambda batch: len(batch["y"]),
            micro_batch=self.micro_batch,
            evaluate=self.evaluate,
            save=self.save,
            hooks=hooks or StepHooks(),
        )
        device = choose_device("cpu", "fp32", threads=1)
        return train(
            self.model, self.optimizer, self.plan, parts, self.settings,
            device=device, state=self.state, requests=self.requests,
        )  # fmt: skip


def test_hooks_stand_at_their_places_in_a_step() -> None:
    bench = Bench(total_steps=1)
    names = ("step_begins", "micro_batch_ends", "before_optimizer", "after_optimizer")
    hooks = StepHooks(**{name: lambda step, name=name: bench.diary.append(f"{name} {step}") for name in names})
    bench.run(hooks)
    assert bench.diary == [
        "step_begins 0", "micro_batch of 2/4", "micro_batch_ends 0", "micro_batch of 2/4", "micro_batch_ends 0",
        "before_optimizer 0", "after_optimizer 0", "save 1",
    ]  # fmt: skip


def test_a_short_last_update_is_divided_by_its_own_targets() -> None:
    bench = Bench(total_steps=3)
    records = bench.run()
    assert [record.rows for record in records if isinstance(record, StepRecord)] == [4, 4, 2]
    assert bench.diary[-2:] == ["micro_batch of 2/2", "save 3"]


def test_gradients_are_those_of_the_mean_over_the_update() -> None:
    bench = Bench(total_steps=1)
    expected = torch.nn.Linear(3, 1)
    expected.load_state_dict(bench.model.state_dict())
    ((expected(bench.features[:4])[:, 0] - bench.targets[:4]) ** 2).mean().backward()  # type: ignore[no-untyped-call]
    assert expected.weight.grad is not None
    updated = expected.weight.detach() - 0.1 * expected.weight.grad
    record = bench.run()[0]
    torch.testing.assert_close(bench.model.weight.detach(), updated)
    assert isinstance(record, StepRecord)
    norm = torch.cat([parameter.grad.flatten() for parameter in expected.parameters() if parameter.grad is not None])
    assert record.grad_norm == pytest.approx(float(norm.norm()))


def test_a_scheduler_of_the_users_own_is_left_alone() -> None:
    bench = Bench()
    scheduler = torch.optim.lr_scheduler.StepLR(bench.optimizer, step_size=1, gamma=0.5)
    records = bench.run(StepHooks(after_optimizer=lambda step: scheduler.step()))
    rates = [record.learning_rate for record in records if isinstance(record, StepRecord)]
    assert rates == pytest.approx([0.1 * 0.5**step for step in range(6)])


def test_evaluations_and_checkpoints_come_when_they_are_due() -> None:
    bench = Bench(evaluate_every=Duration(2, "steps"), save_every=Duration(1, "epochs"))
    records = bench.run()
    assert [record.step for record in records if isinstance(record, EvaluationRecord)] == [2, 4, 6]
    assert [record.step for record in records if isinstance(record, CheckpointRecord)] == [3, 6]


def test_a_request_is_answered_once_after_the_step() -> None:
    bench = Bench()

    def ask(step: int) -> None:
        if step == 1:
            bench.requests.update({"evaluate", "save"})

    records = bench.run(StepHooks(step_begins=ask))
    assert [type(record) for record in records[:5]] == [
        StepRecord, StepRecord, EvaluationRecord, CheckpointRecord, StepRecord,
    ]  # fmt: skip
    assert sum(isinstance(record, EvaluationRecord) for record in records) == 1


def test_what_is_asked_for_at_a_record_is_heard_before_the_next_step() -> None:
    """A front end that saves, then evaluates, then saves again, all after one step."""
    bench = Bench(total_steps=2)
    words = iter(["save", "evaluate", "save"])
    kinds = []
    for record in bench.iterate():
        kinds.append(type(record))
        if bench.state.step == 1 and (word := next(words, None)):
            bench.requests.add(word)
    assert kinds == [
        StepRecord, CheckpointRecord, EvaluationRecord, CheckpointRecord, StepRecord, CheckpointRecord, StopRecord,
    ]  # fmt: skip


@pytest.mark.parametrize(("word", "saved"), [("end", []), ("stop", [2])])
def test_a_training_is_ended_with_a_checkpoint_or_without(word: str, saved: list[int]) -> None:
    bench = Bench()
    records = []
    for record in bench.iterate():
        records.append(record)
        if isinstance(record, StepRecord) and record.step == 2:
            bench.requests.add(word)
    assert [record.step for record in records if isinstance(record, CheckpointRecord)] == saved
    last = records[-1]
    assert isinstance(last, StopRecord) and (last.step, last.reason) == (2, "requested")


def test_ending_at_the_last_step_saves_nothing() -> None:
    bench = Bench(total_steps=2)
    for record in bench.iterate():
        if isinstance(record, StepRecord) and record.step == 2:
            bench.requests.add("end")
    assert isinstance(record, StopRecord) and record.reason == "done"
    assert not [line for line in bench.diary if line.startswith("save")]


def test_an_evaluation_that_fails_costs_its_scores_or_the_training() -> None:
    bench = Bench(total_steps=2, evaluate_every=Duration(1, "steps"))
    bench.scores = iter(())
    warnings = [record for record in bench.run() if isinstance(record, WarningRecord)]
    assert [record.kind for record in warnings] == ["evaluation", "evaluation"]
    bench = Bench(evaluate_every=Duration(1, "steps"), on_evaluation_error="raise")
    bench.scores = iter(())
    with pytest.raises(RuntimeError):  # what a generator makes of the StopIteration
        bench.run()


@pytest.mark.parametrize(("higher", "best_steps"), [(True, [2, 4, 6]), (False, [2])])
def test_the_best_follows_the_direction_of_the_score(higher: bool, best_steps: list[int]) -> None:
    bench = Bench(evaluate_every=Duration(2, "steps"), best="score", higher_is_better=higher)
    records = bench.run()
    assert [record.step for record in records if isinstance(record, EvaluationRecord) and record.best] == best_steps
    assert bench.state.best_step == best_steps[-1]


def test_patience_is_remembered_by_the_state() -> None:
    bench = Bench(evaluate_every=Duration(1, "steps"), best="score", higher_is_better=False, patience=2)
    last = bench.run()[-1]
    assert isinstance(last, StopRecord) and (last.step, last.reason) == (3, "early_stopping")
    again = bench.run()
    assert [record.reason for record in again if isinstance(record, StopRecord)] == ["early_stopping"]
    assert len(again) == 1, "a run that stopped early goes on after being resumed"


@pytest.mark.parametrize("error", [CheckpointError("full", "", ""), OSError("gone")])
def test_a_checkpoint_that_cannot_be_written_costs_a_warning(error: Exception) -> None:
    bench = Bench(save_every=Duration(2, "steps"))
    bench.save_error = error
    records = bench.run()
    warnings = [record for record in records if isinstance(record, WarningRecord)]
    assert [record.step for record in warnings] == [2, 4, 6]
    assert isinstance(records[-1], StopRecord) and records[-1].reason == "done"


def test_memory_that_does_not_suffice_for_one_row_is_explained() -> None:
    bench = Bench()

    def fail(*args: Any) -> Any:
        raise torch.OutOfMemoryError("made up")

    bench.micro_batch = fail  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="one row alone"):
        bench.run()


def test_other_faults_are_not_taken_for_lack_of_memory() -> None:
    bench = Bench()

    def fail(*args: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    bench.micro_batch = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes"):
        bench.run()


@pytest.mark.parametrize(
    ("every", "before", "now", "expected"),
    [
        (Duration(3, "steps"), {"steps": 2}, {"steps": 3}, True),
        (Duration(3, "steps"), {"steps": 3}, {"steps": 4}, False),
        (Duration(1, "epochs"), {"epochs": Fraction(114, 115)}, {"epochs": Fraction(1)}, True),
        (Duration(0.5, "epochs"), {"epochs": Fraction(2, 5)}, {"epochs": Fraction(3, 5)}, True),
        (Duration(10, "%"), {"%": Fraction(29)}, {"%": Fraction(30)}, True),
        (Duration(5, "minutes"), {"minutes": 4.9}, {"minutes": 5.1}, True),
        (Duration(5, "minutes"), {"minutes": 5.1}, {"minutes": 9.9}, False),
        (None, {}, {}, False),
    ],
)
def test_an_interval_is_due_when_a_multiple_was_passed(
    every: Duration | None, before: dict[str, Any], now: dict[str, Any], expected: bool
) -> None:
    assert is_due(every, before, now) is expected
