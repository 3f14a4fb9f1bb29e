"""What the command makes of signals and errors, with a training that is made up: fast, and stopped where we want."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import headstart.interruption
from headstart.api import train_watched
from headstart.cli.main import main
from headstart.display.plan import PlanSummary
from headstart.errors import DataError, NonFiniteError
from headstart.interruption import Interruption
from headstart.records import Report
from headstart.resumption import RunIsFinished
from headstart.run import load
from headstart.runlog import CheckpointRecord, Record, StepRecord, StopRecord

NUM_STEPS = 4
SCORES = {"test": {"accuracy": {"value": 0.836, "low": 0.801, "high": 0.871}}, "baselines": {}}
SUMMARY = PlanSummary(
    source="reviews", task="sequence_classification", task_reason="made up", columns=[("text", "review", "named")],
    splits=[("train", 8, "reviews.csv")], labels=[("bad", 4), ("good", 4)], lengths={}, model="tiny", parameters=10,
    new_parameters=[], precision="fp32", device="cpu", threads=1, epochs=1.0, total_steps=NUM_STEPS,
    rows_per_step="2 rows", padding_fraction=0.0, order="random", learning_rate=1e-4, estimated_seconds=None,
    findings=[], run_dir="runs/a b", notes=[],
)  # fmt: skip

Captured = pytest.CaptureFixture[str]


class Left(BaseException):
    """In the place of a process that leaves at once."""


class MadeUpTraining:
    """Four steps of a training; `in_step` and `in_finish` are called in them."""

    def __init__(self) -> None:
        self.summary, self.requests, self.run_dir = SUMMARY, set[str](), Path("runs/a b")
        self.given: dict[str, Any] = {}
        self.is_finished = False
        self.remark = ""
        self.in_prepare: Callable[[], None] = lambda: None
        self.in_step: Callable[[int], None] = lambda step: None
        self.in_finish: Callable[[], None] = lambda: None

    def prepare(self, source: Any = None, **given: Any) -> "MadeUpTraining":
        self.given = {"source": source, **given}
        self.in_prepare()
        return self

    def train(self) -> Iterator[Record]:
        step, reason = 0, "done"
        for step in range(1, NUM_STEPS + 1):
            self.in_step(step)
            yield StepRecord(step, step / NUM_STEPS, 0.5, 1e-4, 1.0, 2, 20, 0.1)
            if "stop" in self.requests and step < NUM_STEPS:
                reason = "requested"
                break
        yield CheckpointRecord(step, f"checkpoints/step-{step:06d}", False)
        yield StopRecord(step, reason, f"at step {step}", 0.1 * step)  # type: ignore[arg-type]

    def finish(self, progress: Report, tell: Callable[[str], None] | None = None) -> Any:
        progress("scoring the saved model", 0, 0)
        if tell is not None and self.remark:
            tell(self.remark)
        self.in_finish()
        self.is_finished = True
        return SimpleNamespace(
            run_dir=self.run_dir,
            scores=SCORES,
            task=SimpleNamespace(pair=None),
            recipe=SimpleNamespace(evaluate=SimpleNamespace(confidence=0.95)),
        )


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> MadeUpTraining:
    made_up = MadeUpTraining()
    api = SimpleNamespace(prepare=made_up.prepare, load=load, train_watched=train_watched, RunIsFinished=RunIsFinished)
    monkeypatch.setitem(sys.modules, "headstart.api", api)  # type: ignore[arg-type]
    return made_up


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at_step", [1, NUM_STEPS])
def test_a_signal_stops_after_saving_and_names_the_way_on(
    number: signal.Signals, at_step: int, training: MadeUpTraining, capfd: Captured
) -> None:
    """Also in the last step: the scores are not waited for."""
    training.in_step = lambda step: send(number) if step == at_step else None
    assert main(["train", "a.csv"]) == 128 + number
    assert training.requests == {"stop"} and not training.is_finished
    captured = capfd.readouterr()
    assert "once more to leave at once" in captured.err
    assert "headstart train --resume --run 'runs/a b'" in captured.err
    assert f"at step {at_step}" in captured.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_scoring_needs_no_step_to_end(
    number: signal.Signals, training: MadeUpTraining, capfd: Captured
) -> None:
    training.in_finish = lambda: send(number)
    assert main(["train", "a.csv", "--json"]) == 128 + number
    captured = capfd.readouterr()
    assert captured.out == "" and "headstart train --resume" in captured.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_at_once(
    number: signal.Signals, training: MadeUpTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Left

    def twice(step: int) -> None:
        send(signal.SIGINT)
        send(number)

    monkeypatch.setattr(headstart.interruption.os, "_exit", leave)
    training.in_step = twice
    with pytest.raises(Left):
        main(["train", "a.csv"])
    assert codes == [128 + number]


def test_handlers_of_signals_are_given_back(training: MadeUpTraining) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    assert main(["train", "a.csv", "--quiet"]) == 0
    training.in_step = lambda step: send(signal.SIGTERM)
    assert main(["train", "a.csv", "--quiet"]) == 143
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_signal_of_which_other_code_made_an_error_is_still_a_signal(
    training: MadeUpTraining, capsys: Captured
) -> None:
    def finish() -> None:
        try:
            send(signal.SIGTERM)
        except BaseException:
            raise DataError("The shape cannot be told.") from None

    training.in_finish = finish
    assert main(["train", "a.csv"]) == 128 + signal.SIGTERM
    assert "--resume --run 'runs/a b'" in capsys.readouterr().err


def test_an_error_without_a_signal_stays_what_it_is(training: MadeUpTraining) -> None:
    def finish() -> None:
        raise DataError("The shape cannot be told.")

    training.in_finish = finish
    assert main(["train", "a.csv"]) == 2


def test_a_bar_finds_its_lines_where_it_left_them(capfd: Captured) -> None:
    console = Console(force_terminal=True, width=40)
    interruption = Interruption(set(), console, ends_process=True)
    interruption(signal.SIGINT, None)
    written = capfd.readouterr().out
    assert written.startswith("\r\x1b[2K") and "\n" not in written
    assert len(written.removeprefix("\r\x1b[2K")) < 40


def test_interrupted_before_the_first_step(training: MadeUpTraining, capsys: Captured) -> None:
    training.in_prepare = lambda: send(signal.SIGINT)
    assert main(["train", "a.csv"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(NonFiniteError("Step 2: loss nan."), 3), (DataError("a"), 2), (ZeroDivisionError("a"), 1)]
)
@pytest.mark.parametrize("options", [[], ["--traceback"]])
def test_an_error_has_its_code_with_and_without_traceback(
    error: Exception, code: int, options: list[str], training: MadeUpTraining, capsys: Captured
) -> None:
    def fail(step: int) -> None:
        raise error

    training.in_step = fail
    assert main(["train", "a.csv", *options]) == code
    shown = capsys.readouterr().err
    assert str(error) in shown
    assert ("Traceback" in shown) == bool(options)


def test_only_what_is_given_reaches_the_recipe(training: MadeUpTraining) -> None:
    assert main(["train", "--resume", "--run", "runs/a-1", "--quiet"]) == 0
    assert training.given["source"] is None and training.given["resume"] is True
    assert training.given["values"] == {"output.run": "runs/a-1"}
    words = "train --epochs 2 a.csv --set a.b=1 --recipe r.yaml --set c.d=2 --limit 10% --quiet --debug"
    assert main(words.split()) == 0
    assert training.given["source"] == "a.csv" and training.given["recipe_file"] == "r.yaml"
    assert training.given["values"] == {"train.epochs": 2.0, "data.limit": "10%"}
    assert training.given["settings"] == ["a.b=1", "c.d=2"] and training.given["debug"] is True


def test_what_a_tracker_says_at_the_end_is_printed(training: MadeUpTraining, capsys: Captured) -> None:
    training.remark = "a tracker gets no more numbers"
    assert main(["train", "reviews.csv", "--json"]) == 0
    said = capsys.readouterr()
    assert "a tracker gets no more numbers" in said.err and json.loads(said.out)["run_dir"] == "runs/a b"


def test_json_is_one_object_and_quiet_shows_the_result_alone(training: MadeUpTraining, capsys: Captured) -> None:
    assert main(["train", "a.csv", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"run_dir": "runs/a b", "seconds": 0.4, "scores": SCORES}
    assert "The plan" in captured.err and "step 1/4" in captured.err
    assert main(["train", "a.csv", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "0.836 [0.801, 0.871]" in captured.out and "The plan" not in captured.out and captured.err == ""
    assert main(["train", "a.csv", "--quiet", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["scores"] == SCORES and captured.err == ""


def test_lines_without_a_terminal_hold_no_control_characters(training: MadeUpTraining, capsys: Captured) -> None:
    assert main(["train", "a.csv"]) == 0
    shown = capsys.readouterr().out
    assert "step 1/4   epoch 0.25   loss 0.5000" in shown
    assert not [character for character in shown if not character.isprintable() and character != "\n"]
