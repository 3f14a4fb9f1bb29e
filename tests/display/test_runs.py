import datetime
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from headstart.display.results import show_run, show_runs
from headstart.errors import CheckpointError
from headstart.recipe import build_recipe
from headstart.runlog import (
    DATA_FILE,
    RECIPE_FILE,
    SCORES_FILE,
    EvaluationRecord,
    Record,
    RunLog,
    StepRecord,
    StopRecord,
    WarningRecord,
)


@dataclass(frozen=True)
class Line:
    name: str
    status: str = "done"
    score_name: str | None = "accuracy"
    score: dict[str, float | None] | None = None
    split: str | None = "test"
    model: str = "all-MiniLM-L6-v2"
    rows: int = 3668
    seconds: float = 51.6
    created: datetime.datetime = datetime.datetime(2026, 1, 1)


GOOD: dict[str, float | None] = {"value": 0.836, "low": 0.801, "high": 0.871}


def shown_runs(entries: list[Line], width: int = 80) -> str:
    file = io.StringIO()
    show_runs(entries, Console(file=file, width=width))
    return file.getvalue()


def test_each_run_has_one_line_in_the_given_order() -> None:
    shown = shown_runs([Line("reviews-2", score=GOOD), Line("[red]-1", score={**GOOD, "value": 0.81})])
    first, second = (line for line in shown.splitlines() if "0.801" in line)
    assert first.split() == ["reviews-2", "0.836", "[0.801,", "0.871]", "3,668", "52", "s", "all-MiniLM-L6-v2"]
    assert "[red]-1" in second
    assert shown.count("test accuracy") == 1


def test_runs_of_different_scores_stand_apart() -> None:
    shown = shown_runs(
        [
            Line("a-1", score=GOOD),
            Line("b-1", score=GOOD, split="validation"),
            Line("a-2", score=GOOD),
            Line("c-1", status="failed", score_name=None, split=None),
        ]
    )
    words = ("test accuracy", "a-1", "a-2", "validation accuracy", "b-1", "no score", "c-1", "failed")
    positions = [shown.index(word) for word in words]
    assert positions == sorted(positions)


def test_names_of_runs_are_whole_when_the_line_is_short() -> None:
    long = "a-very-long-name-of-a-file-with-reviews-of-films-1"
    shown = shown_runs([Line(long, score=GOOD, model="/models/mine")])
    assert "0.836 [0.801, 0.871]" in shown
    start, end = (line.split()[0] for line in shown.splitlines() if line.lstrip().startswith(("a-very", "-films")))
    assert start + end == long
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_folder_model_is_named_by_its_last_part_and_a_long_one_is_cut() -> None:
    shown = shown_runs(
        [Line("a-1", score=GOOD, model="/models/mine"), Line("a-2", score=GOOD, model="org/" + "x" * 80)]
    )
    assert "/models" not in shown
    assert "mine" in shown
    assert "xxx..." in shown


def test_a_folder_without_runs_says_how_to_start_one() -> None:
    assert "headstart train" in shown_runs([])


DATA = {
    "columns": {"text": {"column": "review", "reason": ""}, "label": {"column": "label", "reason": ""}},
    "splits": {"train": {"rows": 3668, "origin": "reviews.csv"}},
    "labels": {f"class [{number}]": 400 for number in range(12)},
    "findings": [{"level": "warning", "message": "train: 12 rows with empty text kept"}],
    "notes": ["delimiter ';'"],
}


def make_run(
    folder: Path,
    records: list[Record],
    scores: dict[str, Any] | None = None,
    derived: dict[str, Any] | None = None,
) -> Path:
    values = {"train.epochs": 3, "train.batch_size": 32, "train.accumulation": 2, "optim.learning_rate": 1e-4}
    recipe = build_recipe(values=values)
    (folder / RECIPE_FILE).write_text(recipe.to_yaml(derived))
    (folder / DATA_FILE).write_text(json.dumps(DATA))
    if scores is not None:
        (folder / SCORES_FILE).write_text(json.dumps(scores))
    log = RunLog(folder)
    for record in records:
        log.append(record)
    log.close()
    return folder


def shown_run(folder: Path, width: int = 80) -> str:
    file = io.StringIO()
    show_run(folder, Console(file=file, width=width))
    return file.getvalue()


def steps(number: int) -> list[Record]:
    return [StepRecord(index, index / 10, 1 / index, 1e-4, 1.0, 32, 900, 0.5) for index in range(1, number + 1)]


def evaluations(number: int, best: int) -> list[Record]:
    scores = {name: 0.5 for name in ("accuracy", "f1", "matthews_correlation", "roc_auc", "log_loss")}
    return [
        EvaluationRecord(100 * index, float(index), "validation", scores, 1.0, index == best)
        for index in range(1, number + 1)
    ]


def test_it_says_how_the_run_computed(tmp_path: Path) -> None:
    fast = {
        "gelu": "used in 6 places",
        "norms": "used in 25 places",
        "attention": "not used: switched off",
        "joined_qkv": "not used: the model has [none]",
        "dropout": "not used: switched off",
    }
    derived = {"device": "cpu", "threads": 2, "precision": "bf16", "fast": fast}
    shown = " ".join(shown_run(make_run(tmp_path, steps(2), derived=derived), 120).split())
    assert "computing cpu, 2 threads, bf16" in shown
    assert "fast path gelu, norms without attention, dropout: switched off without joined_qkv: the model has" in shown
    assert "has [none]" in shown


def test_a_fast_path_that_was_switched_off_is_one_word(tmp_path: Path) -> None:
    fast = {"gelu": "not used: switched off", "norms": "not used: switched off"}
    shown = shown_run(make_run(tmp_path, steps(2), derived={"fast": fast}))
    assert "fast path    off (switched off)" in shown.replace("fast path  off", "fast path    off")
    assert "without" not in shown


def test_a_run_of_an_older_version_says_nothing_of_it(tmp_path: Path) -> None:
    assert "fast path" not in shown_run(make_run(tmp_path, steps(2)))


def test_a_finished_run_is_shown_in_full(tmp_path: Path) -> None:
    records = [*steps(40), *evaluations(3, 2), StopRecord(40, "done", "all 40 steps made", 20.0)]
    shown = shown_run(make_run(tmp_path, records, {"test": {"accuracy": GOOD}}))
    for part in (
        "done",
        "review",
        "class [0] (400)",
        "and 4 more",
        "3 epochs of 2 x 32 rows, seed 0",
        "adamw",
        "0.836 [0.801, 0.871]",
        "█",
        "40 steps",
        "64.0 rows/s, 1,800 tokens/s, 20 s of training",
        "train: 12 rows with empty text kept",
        "log.jsonl",
        "headstart predict",
    ):
        assert part in shown
    (best,) = (line for line in shown.splitlines() if line.endswith("best") or " best " in line)
    assert best.split()[:2] == ["200", "2.00"]
    assert max(len(line) for line in shown.splitlines() if "headstart" not in line) <= 80


def test_of_many_evaluations_the_last_and_the_best_are_shown(tmp_path: Path) -> None:
    shown = shown_run(make_run(tmp_path, evaluations(20, 3)))
    assert "  300  " in shown
    assert "2,000" in shown
    assert "  400  " not in shown
    assert "and 11 earlier" in shown


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "not finished"),
        (steps(3), "not finished"),
        ([*steps(3), StopRecord(3, "requested", "stopped on request after step 3 of 9", 1.5)], "stopped on request"),
        ([StopRecord(1, "non_finite", "loss nan", 1.5)], "loss nan"),
    ],
)
def test_a_run_that_is_not_finished_says_how_to_go_on(tmp_path: Path, records: list[Record], words: str) -> None:
    shown = shown_run(make_run(tmp_path, records))
    assert words in shown
    assert f"headstart train --resume --run {tmp_path}" in shown
    assert "headstart predict" not in shown


def test_warnings_of_training_are_counted_past_the_first(tmp_path: Path) -> None:
    warnings: list[Record] = [WarningRecord(number, "out_of_memory", "halved", []) for number in range(9)]
    shown = shown_run(make_run(tmp_path, warnings))
    assert "step 4: halved" in shown
    assert "step 5: halved" not in shown
    assert "and 4 more" in shown


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        shown_run(tmp_path)


def test_a_broken_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    make_run(tmp_path, [])
    (tmp_path / DATA_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=DATA_FILE):
        shown_run(tmp_path)
