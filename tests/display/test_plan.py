import dataclasses
import io

import pytest
from rich.console import Console

from headstart.display.plan import PlanSummary, show_plan

SUMMARY = PlanSummary(
    source="reviews.csv",
    task="sequence_classification",
    task_reason='the column "label" holds 2 classes (text)',
    columns=[("text", "review", "the only column that holds text"), ("label", "label", "named by you")],
    splits=[
        ("train", 3668, "reviews.csv"),
        ("validation", 408, "10% of the training rows, stratified by label, seed 0"),
    ],
    labels=[("negative", 1194), ("positive", 2474)],
    lengths={"median": 53, "p95": 80, "longest": 103, "max_length": 104, "truncated_rows": 0, "lost_tokens": 0},
    model="all-MiniLM-L6-v2",
    parameters=22_713_986,
    new_parameters=["classifier.bias", "classifier.weight"],
    precision="bf16",
    device="cpu",
    threads=2,
    epochs=3.0,
    total_steps=345,
    rows_per_step="32 rows",
    padding_fraction=0.081,
    order="length",
    learning_rate=2e-4,
    estimated_seconds=252.0,
    findings=[("warning", "train: 12 rows with empty text kept")],
    run_dir="runs/reviews-1",
    notes=["delimiter ';'"],
)


def show(width: int = 80, **changes: object) -> str:
    file = io.StringIO()
    show_plan(dataclasses.replace(SUMMARY, **changes), Console(file=file, width=width))  # type: ignore[arg-type]
    return file.getvalue()


def test_the_plan_says_what_was_found_and_what_will_be_done() -> None:
    shown = show()
    for part in (
        "learn from reviews.csv",
        "sequence_classification",
        "the only column that holds text",
        "3,668",
        "67%",
        "median 53, 95% up to 80, longest 103 tokens",
        "the limit is 104 tokens: no row is cut",
        "22.7 million parameters",
        "classifier.bias, classifier.weight",
        "345 steps of 32 rows, 3 epochs, like lengths together, 8% padding",
        "learning rate 0.0002",
        "cpu, 2 threads, bf16",
        "about 4 min",
        "train: 12 rows with empty text kept",
        "delimiter ';'",
        "runs/reviews-1",
    ):
        assert part in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_console(width: int) -> None:
    shown = show(width, labels=[("x" * 100, 5), ("y", 1)], source="a" * 90, run_dir="/very/long" * 20)
    assert max(len(line) for line in shown.splitlines()) <= width


def test_markup_and_escapes_in_the_data_are_shown_as_they_are() -> None:
    shown = show(labels=[("[red]", 3), ("a\x1b[2Jb\n", 4)], columns=[("text", "[bold]x", "[/]")])
    assert "[red]" in shown
    assert "a\\x1b[2Jb\\n" in shown
    assert "[bold]x" in shown
    assert "\x1b" not in shown


def test_colours_go_to_a_terminal_only_and_respect_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    show_plan(SUMMARY, Console(file=file, width=80, force_terminal=True))
    assert "\x1b[36m" in file.getvalue()
    file = io.StringIO()
    monkeypatch.setenv("NO_COLOR", "1")
    show_plan(SUMMARY, Console(file=file, width=80, force_terminal=True))
    assert "\x1b[36m" not in file.getvalue()


def test_truncation_is_counted() -> None:
    lengths = {"median": 53, "p95": 80, "longest": 900, "max_length": 64, "truncated_rows": 20, "lost_tokens": 345}
    assert "20 rows (0.5%) cut, 345 tokens lost" in show(lengths=lengths)


def test_of_many_labels_the_largest_are_shown() -> None:
    labels = [(f"intent {number}", 10 + number) for number in range(77)]
    shown = show(labels=labels)
    assert "intent 76" in shown
    assert "intent 0 " not in shown
    assert "68 more" in shown
    assert "10 to 77 rows each" in shown


def test_ten_labels_stay_in_their_order() -> None:
    shown = show(labels=[(f"class {number}", number) for number in range(10)])
    assert shown.index("class 0") < shown.index("class 9")
    assert "more" not in shown


def test_what_is_not_known_is_left_out() -> None:
    shown = show(
        estimated_seconds=None, findings=[], notes=[], new_parameters=[], labels=[], lengths={}, device="cuda:0"
    )
    assert "no estimate" in shown
    assert "remarks" not in shown
    assert "starting at random" not in shown
    assert "threads" not in shown


def test_labels_without_rows_are_no_error() -> None:
    assert "negative" in show(labels=[("negative", 0), ("positive", 0)])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.3, "about 10 s"),
        (34.0, "about 30 s"),
        (58.0, "about 1 min"),
        (3555.0, "about 59 min"),
        (8000.0, "about 2 h 15 min"),
    ],
)
def test_estimates_are_round(seconds: float, expected: str) -> None:
    assert expected in show(estimated_seconds=seconds)
