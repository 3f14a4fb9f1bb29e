import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from headstart.display.errors import show_error
from headstart.display.results import show_result, show_scores
from headstart.display.scores import compare_with_baselines, format_interval, format_value
from headstart.errors import ColumnError, DataError, HeadstartError
from headstart.runlog import RunLog, StopRecord


def interval(value: float | None, half: float = 0.03) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - half, "high": value + half}


SCORES: dict[str, Any] = {
    "validation": {"accuracy": interval(0.812), "matthews_correlation": interval(None)},
    "test": {"accuracy": interval(0.836), "matthews_correlation": interval(0.661)},
    "baselines": {
        "majority": {"validation": {"accuracy": interval(0.5)}, "test": {"accuracy": interval(0.501)}},
        "tfidf_logistic": {"validation": {"accuracy": interval(0.7)}, "test": {"accuracy": interval(0.766)}},
    },
}


def shown_result(scores: dict[str, Any], run_dir: Path, seconds: float | None = None, width: int = 80) -> str:
    file = io.StringIO()
    show_result(scores, run_dir=run_dir, seconds=seconds, console=Console(file=file, width=width))
    return file.getvalue()


def test_scores_stand_beside_the_baselines_test_first(tmp_path: Path) -> None:
    shown = shown_result(SCORES, tmp_path)
    (header,) = (line for line in shown.splitlines() if "majority" in line)
    assert header.split() == ["this", "run", "majority", "tfidf_logistic"]
    lines = [line.split() for line in shown.splitlines() if line.strip().startswith("accuracy")]
    assert lines == [
        ["accuracy", "0.836", "[0.806,", "0.866]", "0.501", "0.766"],
        ["accuracy", "0.812", "[0.782,", "0.842]", "0.500", "0.700"],
    ]
    assert "not defined" in shown
    assert max(len(line) for line in shown.splitlines() if "headstart" not in line) <= 80


def test_commands_are_whole_and_quoted(tmp_path: Path) -> None:
    run_dir = tmp_path / ("a long name " * 8)
    shown = shown_result(SCORES, run_dir)
    assert f"headstart predict '{run_dir}' \"a text\"" in shown
    assert f"headstart show '{run_dir}'" in shown


def test_time_comes_from_the_log_when_it_is_not_given(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append(StopRecord(40, "done", "all 40 steps made", 252.0))
    log.close()
    assert "4 min 12 s of training" in shown_result(SCORES, tmp_path)
    assert "10 s of training" in shown_result(SCORES, tmp_path, seconds=10.0)


def test_a_run_without_labelled_rows_says_so(tmp_path: Path) -> None:
    assert "no labelled rows" in shown_result({"baselines": {}}, tmp_path)


def test_scores_can_be_shown_without_baselines(tmp_path: Path) -> None:
    shown = shown_result({"test": SCORES["test"]}, tmp_path)
    assert "majority" not in shown
    assert "0.836 [0.806, 0.866]" in shown


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("accuracy", 0.5, ""),
        ("accuracy", 0.79, "lies inside the interval"),
        ("accuracy", 0.9, "tfidf_logistic is better"),
        ("log_loss", 0.5, "tfidf_logistic is better"),
        ("log_loss", 0.9, ""),
        ("accuracy", None, ""),
    ],
)
def test_a_baseline_that_is_as_good_is_named(name: str, other: float | None, words: str) -> None:
    remarks = compare_with_baselines(
        ("test", {name: interval(0.8)}), {"tfidf_logistic": {"test": {name: {"value": other}}}}
    )
    assert words in " ".join(remarks)
    assert bool(remarks) == bool(words)


def test_a_score_that_is_not_defined_is_compared_with_nothing() -> None:
    baselines = {"majority": {"test": {"f1": interval(0.5)}}}
    assert compare_with_baselines(("test", {"f1": interval(None)}), baselines) == []


def test_scores_without_a_number_have_words() -> None:
    assert format_value(float("nan")) == "not defined"
    assert format_interval({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert format_interval(None) == ""


def test_one_evaluation_can_be_shown() -> None:
    file = io.StringIO()
    show_scores(SCORES["test"], "[red]reviews.csv", Console(file=file, width=80))
    assert "[red]reviews.csv" in file.getvalue()
    assert "0.836 [0.806, 0.866]" in file.getvalue()


def test_an_error_has_the_words_of_its_message() -> None:
    file = io.StringIO()
    error = ColumnError('a.csv: no column "[red]".\n- one\n- two', "the label's column. " * 20, "Name it: --label.")
    show_error(error, Console(file=file, width=80))
    assert file.getvalue() == f"Error: {error}\n"


@pytest.mark.parametrize("error", [DataError("found"), HeadstartError("found", fix="mend")])
def test_an_error_leaves_out_what_it_lacks(error: HeadstartError) -> None:
    file = io.StringIO()
    show_error(error, Console(file=file, width=80))
    assert file.getvalue() == f"Error: {error}\n"


def test_an_error_moves_no_cursor() -> None:
    file = io.StringIO()
    show_error(DataError("label \x1b[2J"), Console(file=file, width=80))
    assert "\x1b" not in file.getvalue()
