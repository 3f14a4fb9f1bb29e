import io
import math

import pytest
from rich.console import Console

from headstart.display.progress import Progress
from headstart.display.status import Status
from headstart.runlog import CheckpointRecord, EvaluationRecord, StepRecord, StopRecord, WarningRecord


def step(number: int, seconds: float = 1.0, loss: float = 0.5) -> StepRecord:
    return StepRecord(number, number / 100, loss, 1e-4, 1.0, 32, 1500, seconds)


def evaluation(best: bool = False, **scores: float) -> EvaluationRecord:
    return EvaluationRecord(7, 0.5, "validation", scores, 1.0, best)


def lines_of(records: list[object], total_steps: int = 100) -> list[str]:
    file = io.StringIO()
    with Progress(total_steps, Console(file=file, width=80)) as progress:
        for record in records:
            progress.update(record)  # type: ignore[arg-type]
    assert "\x1b" not in file.getvalue()
    return file.getvalue().splitlines()


def test_plain_lines_come_at_each_tenth() -> None:
    lines = lines_of([step(number) for number in range(1, 101)])
    assert [line.split()[1] for line in lines] == ["1/100", *(f"{number}/100" for number in range(10, 101, 10))]


def test_plain_lines_stay_five_seconds_apart_when_steps_are_fast() -> None:
    lines = lines_of([step(number, 0.125) for number in range(1, 101)])
    assert [line.split()[1] for line in lines] == ["1/100", "41/100", "81/100"]


def test_plain_lines_come_each_minute_when_steps_are_slow() -> None:
    lines = lines_of([step(number, 30.0) for number in range(1, 8)], total_steps=1000)
    assert [line.split()[1] for line in lines] == ["1/1,000", "3/1,000", "5/1,000", "7/1,000"]


def test_a_line_has_all_numbers() -> None:
    (line,) = lines_of([step(1, 0.5)])
    assert line == "step 1/100   epoch 0.01   loss 0.5000   lr 1.0e-04   64.0 rows/s   3,000 tokens/s"


def test_time_left_follows_from_the_steps_after_the_first_of_a_start() -> None:
    first, second = lines_of([step(89, 60.0), step(90, 5.0)])
    assert "left" not in first
    assert second.endswith("50 s left")


def test_a_step_without_time_is_no_error() -> None:
    (line,) = lines_of([step(1, 0.0, loss=math.nan)])
    assert "loss nan" in line
    assert "rows/s" not in line


def test_evaluations_warnings_and_the_end_are_always_shown() -> None:
    lines = lines_of(
        [
            step(1, 0.01),
            evaluation(best=True, accuracy=0.81, roc_auc=math.nan, **{"[red]": 1.0}),
            CheckpointRecord(7, "checkpoints/step-000007", best=True),
            WarningRecord(8, "non_finite", "its rows are [1, 2]", [1, 2]),
            StopRecord(9, "requested", "stopped on request after step 9 of 100", 61.0),
        ]
    )
    assert lines[1:] == [
        "step 7   validation   accuracy 0.810   roc_auc not defined   [red] 1.000   best so far",
        "step 8   warning  its rows are [1, 2]",
        "step 9   stopped  stopped on request after step 9 of 100   1 min 1 s of training",
    ]


@pytest.mark.parametrize(
    ("reason", "word"), [("done", "done"), ("non_finite", "failed"), ("early_stopping", "stopped")]
)
def test_the_end_is_named(reason: str, word: str) -> None:
    (line,) = lines_of([StopRecord(9, reason, "because", 61.0)])  # type: ignore[arg-type]
    assert line.startswith(f"step 9   {word}  because")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("TTY_INTERACTIVE", raising=False)
    return Console(file=io.StringIO(), width=80, force_terminal=True, force_jupyter=False, no_color=True)


def output_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_gets_a_bar(terminal: Console) -> None:
    with Progress(100, terminal) as progress:
        progress.update(step(49, 9.0))
        progress.update(step(50))
        progress.update(evaluation(accuracy=0.81))
    shown = output_of(terminal)
    assert "preparing the first step" in shown
    assert "step 50/100" in shown
    assert "50%" in shown
    assert "50 s left" in shown
    assert "accuracy 0.810" in shown


def test_an_evaluation_keeps_to_one_line_of_the_terminal(terminal: Console) -> None:
    scores = {f"a_long_name_of_a_score_{number}": 0.5 for number in range(4)}
    with Progress(100, terminal) as progress:
        progress.update(evaluation(best=True, **scores))
    shown = output_of(terminal)
    assert "score_1 0.500" not in shown
    assert "best so far" in shown


def test_an_interrupted_training_says_where_it_was(terminal: Console) -> None:
    with pytest.raises(KeyboardInterrupt), Progress(100, terminal) as progress:
        progress.update(step(49, 9.0))
        progress.update(step(50))
        raise KeyboardInterrupt
    assert output_of(terminal).rstrip().endswith("50 s left")


def test_a_training_without_steps_can_be_shown(terminal: Console) -> None:
    with Progress(0, terminal) as progress:
        progress.update(StopRecord(0, "done", "all 0 steps made", 0.0))
    assert "all 0 steps made" in output_of(terminal)


def test_status_says_each_thing_once_in_plain_lines() -> None:
    file = io.StringIO()
    with Status(Console(file=file, width=80)) as status:
        status.say("tokenising train", 1000, 2500)
        status.say("tokenising train", 2000, 2500)
        status.say("tokenising test", 10, 10)
        status.say("scoring the baselines")
    assert file.getvalue() == "tokenising train ...\ntokenising test ...\nscoring the baselines ...\n"


def test_status_counts_rows_on_a_terminal(terminal: Console) -> None:
    with Status(terminal) as status:
        status.say("tokenising [red]", 1000, 2500)
    assert "tokenising [red]: 1,000 of 2,500 rows" in output_of(terminal)
