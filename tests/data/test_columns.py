"""Columns and task: a guess where one column fits, else a description of the columns."""

from __future__ import annotations

import datetime
from typing import Any

import datasets
import pytest

from headstart.data.column_kinds import read_labels
from headstart.data.columns import Columns, find_columns
from headstart.data.labels import find_labels
from headstart.errors import ColumnError, LabelError

LONG = [f"a rather long text about thing number {i}" for i in range(12)]
SHORT = [f"note {i}" for i in range(12)]
CLASSES = ["good", "bad", "good", "fine"] * 3


def table(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def roles(found: Columns) -> tuple[str, str | None, str | None]:
    assert set(found.reasons) == {role for role in ("text", "pair", "label") if getattr(found, role)}
    return found.text, found.pair, found.label


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": LONG, "label": CLASSES}, ("text", None, "label")),
        (
            {"Review": LONG, "Sentiment": CLASSES, "id": list(range(12))},
            ("Review", None, "Sentiment"),
        ),
        (
            {"premise": LONG, "hypothesis": SHORT, "label": CLASSES},
            ("premise", "hypothesis", "label"),
        ),
        (
            {"sentence1": LONG, "sentence2": LONG, "gold_label": CLASSES},
            ("sentence1", "sentence2", "gold_label"),
        ),
        ({"text": LONG, "label": [0, 1] * 6, "label_text": CLASSES}, ("text", None, "label")),
        ({"words": LONG, "kind": CLASSES}, ("words", None, "kind")),
        ({"note": SHORT, "words": LONG, "kind": CLASSES}, ("words", None, "kind")),
        (
            {"words": LONG, "flag": [True, False] * 6, "number": list(range(12))},
            ("words", None, "flag"),
        ),
        ({"label": LONG, "text": CLASSES}, ("text", None, "label")),
    ],
)
def test_columns_are_found(columns: dict[str, list[Any]], expected: tuple[str, str | None, str | None]) -> None:
    assert roles(find_columns(table(**columns), {})) == expected


def test_named_columns_win_and_a_named_text_is_a_single_text() -> None:
    rows = table(sentence1=LONG, sentence2=SHORT, label=CLASSES, other=CLASSES)
    found = find_columns(rows, {"text": "sentence2", "label": "other"})
    assert roles(found) == ("sentence2", None, "other")
    assert found.reasons == {"text": "named by you", "label": "named by you"}
    assert roles(find_columns(rows, {"pair": "sentence2"})) == ("sentence1", "sentence2", "label")
    assert roles(find_columns(rows, {"label": "other"})) == ("sentence1", "sentence2", "other")


@pytest.mark.parametrize(
    ("requested", "parts"),
    [
        (
            {"text": "txt"},
            ['"txt"', "data.columns.text", "text, label, number", 'Set data.columns.text = "text"'],
        ),
        ({"label": "lable"}, ['Set data.columns.label = "label"']),
        ({"text": "zzz"}, ["to one of them"]),
        ({"text": "number"}, ["does not hold text: integer"]),
        ({"text": "text", "pair": "text"}, ["more than one role: text, pair"]),
        ({"txet": "text"}, ["the role", 'Did you mean "text"?']),
    ],
)
def test_named_columns_that_do_not_fit(requested: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(ColumnError) as caught:
        find_columns(table(text=LONG, label=CLASSES, number=list(range(12))), requested)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"a": LONG, "b": LONG, "kind": CLASSES}, "more than one column may be the text"),
        (
            {"words": LONG, "kind": CLASSES, "other": [0, 1] * 6},
            "more than one column may be the label",
        ),
        ({"words": LONG, "number": list(range(12))}, "no column looks like the label"),
        ({"tokens": [["a"]] * 12, "label": CLASSES, "n": [{"x": 1}] * 12}, "tokens: list"),
        ({"number": list(range(12)), "none": [None] * 12}, "No column holds text"),
    ],
)
def test_doubt_is_an_error_that_describes_the_columns(columns: dict[str, list[Any]], part: str) -> None:
    if "tokens" in columns:
        columns = {**columns, "label": [0, 1] * 6}
    with pytest.raises(ColumnError) as caught:
        find_columns(table(**columns), {})
    message = str(caught.value)
    assert part in message
    assert all(f"- {name}: " in message for name in columns)
    assert LONG[0] not in message


def test_file_without_header_is_said_without_quoting_its_text() -> None:
    rows = datasets.Dataset.from_dict({"x" * 500: LONG, "y" * 500: LONG})
    with pytest.raises(ColumnError, match="no header line") as caught:
        find_columns(rows, {})
    assert len(str(caught.value)) < 700


def test_label_is_not_needed_for_prediction() -> None:
    assert roles(find_columns(table(words=LONG), {}, need_label=False)) == ("words", None, None)
    assert roles(find_columns(table(words=CLASSES), {}, need_label=False)) == ("words", None, None)
    assert roles(find_columns(table(text=LONG, label=CLASSES), {}, need_label=False))[2] == "label"
    with pytest.raises(ColumnError):
        find_columns(table(text=LONG), {"label": "stars"}, need_label=False)
    with pytest.raises(ColumnError):
        find_columns(table(text=LONG), {})


def test_large_table_is_described_from_a_sample() -> None:
    rows = table(words=[f"text {i}" for i in range(30_000)], kind=["a", "b", "c"] * 10_000)
    found = find_columns(rows, {})
    assert roles(found) == ("words", None, "kind")
    assert "(3)" in found.reasons["label"]


@pytest.mark.parametrize(
    "labels",
    [
        CLASSES,
        [0, 1] * 6,
        [True, False] * 6,
        [0.0, 1.0] * 6,
        [1.0, None, 2.0],
        ["only"] * 3,
        ["a", ""],
        [5, -1, 5],
    ],
)
def test_task_of_classes(labels: list[Any]) -> None:
    form, reason = find_labels(table(label=labels), ["label"])
    assert form.task == "sequence_classification"
    assert '"label"' in reason


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ([{"x": 1}], "objects"),
        ([[["a"]]], "lists of"),
        ([None, None], "no label in any row"),
        (["", " "], "no label in any row"),
        ([f"id {i}" for i in range(300)], "300 different values in 300 rows"),
        ([datetime.date(2020, 1, 1)] * 2, "date"),
    ],
)
def test_task_of_what_is_no_class(labels: list[Any], part: str) -> None:
    with pytest.raises(LabelError, match=part):
        find_labels(table(label=labels), ["label"])


def test_task_of_a_missing_column() -> None:
    with pytest.raises(ColumnError, match="Did you mean"):
        find_labels(table(label=CLASSES), ["lable"])


def test_labels_are_plain_values() -> None:
    names = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"label": [1, 0, -1, None]}, features=names)
    assert read_labels(rows, "label").to_pylist() == ["yes", "no", None, None]
    assert read_labels(rows.select([3, 0]), "label").to_pylist() == [None, "yes"]
    assert read_labels(table(label=["a", "", None, " "]), "label").to_pylist() == [
        "a",
        None,
        None,
        None,
    ]
    assert read_labels(table(label=[1.0, None, float("nan")]), "label").to_pylist() == [
        1,
        None,
        None,
    ]
    assert read_labels(table(label=[1.5, 2.0]), "label").to_pylist() == [1.5, 2.0]
    assert read_labels(table(label=[-1, 1]), "label").to_pylist() == [-1, 1]
    assert read_labels(table(label=[None, True]), "label").to_pylist() == [None, True]
