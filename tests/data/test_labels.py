"""How labels are written: each way is found, said, and read to the same arrays."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data.labels import (
    LabelForm,
    find_labels,
    find_same_labels,
    order_labels,
    read_label_sets,
    read_numbers,
    read_probabilities,
)
from headstart.errors import ColumnError, LabelError


def table(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def find(columns: dict[str, list[Any]], **options: Any) -> tuple[LabelForm, str]:
    return find_labels(table(**columns), list(columns), **options)


@pytest.mark.parametrize(
    ("columns", "kind", "writing", "said"),
    [
        ({"label": ["a", "b", "a"]}, "class", "value", "2 classes (text)"),
        ({"label": [1.0, None, 2.0]}, "class", "value", "2 classes (whole numbers)"),
        ({"tags": [["a"], [], ["b", "a"]]}, "classes", "list", "lists of labels"),
        ({"tags": [[3, 7], [3], []]}, "classes", "list", "lists of labels"),
        ({"tags": [[1, 0, 1], [0, 0, 0], [0, 1, 0]]}, "classes", "numbers", "0 or 1 for each of 3 labels"),
        ({"tags": [[1.0, 1.0], [0.0, 1.0], None]}, "classes", "numbers", "0 or 1 for each of 2 labels"),
        ({"tags": ["a|b", "b", "a | c", "c", ""]}, "classes", "delimited", 'with "|" between them'),
        ({"tags": ["x;y;z", "y", "z;y", "x;z"]}, "classes", "delimited", 'with ";" between them'),
        ({"rude": [1, 0, 0], "mad": [True, True, False]}, "classes", "columns", "0 or 1 for each of 2 labels"),
        ({"p": [[0.25, 0.75], [1.0, 0.0]]}, "probabilities", "numbers", "a probability for each of 2 classes"),
        ({"no": [0.25, 1.0], "yes": [0.75, 0.0]}, "probabilities", "columns", "a probability for each of 2"),
        ({"score": [0.5, 1.5, 4.0]}, "number", "value", "numbers, from 0.5 to 4"),
        ({"x": [0.5, 1.5], "y": [1, 2]}, "number", "columns", "numbers for each of 2 targets"),
        ({"xy": [[0.5, 2.5], [1.0, 2.0]]}, "number", "numbers", "numbers for each of 2 targets"),
    ],
)
def test_labels_are_found(columns: dict[str, list[Any]], kind: str, writing: str, said: str) -> None:
    form, reason = find(columns)
    assert (form.kind, form.writing) == (kind, writing)
    assert said in reason


@pytest.mark.parametrize(
    "labels",
    [
        ["Washington, D.C.", "New York", "Washington, D.C.", "New York"],  # a class with a comma
        ["A;x", "A;y", "B;x", "B;y"],  # a class and its kind: always two parts
        ["a|b", "c|d", "e|f"],  # no part is shared
    ],
)
def test_a_delimiter_is_not_guessed_where_cells_may_be_classes(labels: list[str]) -> None:
    assert find({"label": labels})[0].kind == "class"


def test_what_the_user_wants_decides() -> None:
    stars = {"stars": [1, 2, 3, 2]}
    assert find(stars)[0].kind == "class"
    assert find(stars, task="regression")[0].kind == "number"
    assert find(stars, task="multi_label_classification")[0].kind == "classes"
    cells = {"tags": ["a,b", "c,d"]}
    assert find(cells)[0].kind == "class"
    assert find(cells, task="multi_label_classification")[0].delimiter == ","
    assert find({"tags": ["a-b", "c"]}, delimiter="-")[0].delimiter == "-"
    shares = {"p": [[1.0, 0.0], [0.0, 1.0]]}
    assert find(shares)[0].kind == "probabilities"
    assert find(shares, task="multi_label_classification")[0].kind == "classes"
    assert find(shares, task="regression")[0].kind == "number"


@pytest.mark.parametrize(
    ("columns", "options", "part"),
    [
        ({"label": ["a", "b"]}, {"task": "regression"}, "task.name is regression, but the column"),
        ({"label": [0.5, 1.5]}, {"task": "sequence_classification"}, "numbers, from 0.5"),
        ({"a": [0, 2], "b": [1, 1]}, {"task": "multi_label_classification"}, r"other numbers than 0 and 1 .*rows 1"),
        ({"label": [[1, 2], [3]]}, {"task": "regression"}, r"different lengths: 1 rows do not have \d numbers"),
        ({"a": ["x", "y"], "b": [1, 2]}, {}, "no numbers"),
        ({"label": [["a"], []]}, {"delimiter": ";"}, "task.delimiter has no effect"),
        ({"label": [None, None], "b": [None, None]}, {}, "no label in any row"),
        ({"label": [f"id {i}" for i in range(300)]}, {}, "looks like an id"),
        ({"label": list(range(300))}, {}, "set task.name=regression"),
    ],
)
def test_what_does_not_fit_is_an_error(columns: dict[str, list[Any]], options: dict[str, Any], part: str) -> None:
    with pytest.raises(LabelError, match=part):
        find(columns, **options)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ColumnError, match="Did you mean"):
        find_labels(table(label=["a"]), ["lable"])


EXPECTED = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [-1, -1, -1]]


@pytest.mark.parametrize(
    "columns",
    [
        {"tags": [["a", "b"], ["b"], [], None]},
        {"tags": ["a;b", " b ;", "", None]},
        {"tags": [[1, 1, 0], [0, 1, 0], [0, 0, 0], None]},
        {"a": [1, 0, 0, None], "b": [1.0, 1.0, 0.0, None], "c": [False, False, False, None]},
    ],
)
def test_every_writing_gives_the_same_matrix(columns: dict[str, list[Any]]) -> None:
    rows = table(**columns)
    form, _ = find_labels(
        rows,
        list(columns),
        task="multi_label_classification",
        delimiter=";" if columns.get("tags", [0])[0] == "a;b" else None,
    )
    matrix = read_label_sets(rows, form).matrix
    assert matrix.dtype == np.int8
    assert matrix.tolist() == [row[: matrix.shape[1]] for row in EXPECTED]


def test_one_label_a_row_and_named_classes() -> None:
    sets = read_label_sets(table(tag=["b", None, "a"]), LabelForm("classes", ("tag",)))
    assert (sets.values, sets.matrix.tolist()) == (("a", "b"), [[0, 1], [-1, -1], [1, 0]])
    features = datasets.Features({"tags": datasets.List(datasets.ClassLabel(names=["x", "y", "z"]))})
    rows = datasets.Dataset.from_dict({"tags": [[2], [0, 2], []]}, features=features)
    form, _ = find_labels(rows, ["tags"])
    sets = read_label_sets(rows, form)
    assert sets.values == ("x", "y", "z")
    assert sets.matrix.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_an_unknown_entry_of_a_known_row_is_kept_apart() -> None:
    sets = read_label_sets(table(a=[1, 0], b=[None, 1]), LabelForm("classes", ("a", "b"), "columns"))
    assert sets.matrix.tolist() == [[1, -1], [0, 1]]


def test_columns_of_something_else_are_an_error() -> None:
    with pytest.raises(LabelError, match=r"Rows 1 .* other numbers than 0 and 1"):
        read_label_sets(table(a=[1, 2]), LabelForm("classes", ("a",), "columns"))


def test_numbers_of_every_kind() -> None:
    rows = table(a=[1, None], b=[True, False], c=[[1.0, 2.0], None])
    np.testing.assert_array_equal(read_numbers(rows, LabelForm("number", ("a", "b"), "columns")), [[1, 1], [np.nan, 0]])
    np.testing.assert_array_equal(
        read_numbers(rows, LabelForm("number", ("c",), "numbers")), [[1, 2], [np.nan, np.nan]]
    )


def test_probabilities_are_checked_and_sum_to_one() -> None:
    form = LabelForm("probabilities", ("p",), "numbers")
    found = read_probabilities(table(p=[[0.2505, 0.7501], None]), form)
    assert found.dtype == np.float32
    assert found[0].sum() == pytest.approx(1, abs=1e-7) and np.isnan(found[1]).all()
    with pytest.raises(LabelError, match=r"(?s)Rows 1 .*softmax"):
        read_probabilities(table(p=[[0.5, 0.5], [2.0, -1.0]]), form)


def test_another_table_of_the_same_task_may_write_labels_otherwise() -> None:
    task = "multi_label_classification"
    assert find_same_labels(table(tags=["a", "b"]), ["tags"], task, ";").writing == "delimited"
    assert find_same_labels(table(tags=[["a"], ["b"]]), ["tags"], task, ";").writing == "list"


def test_slices_and_selections_are_read_by_their_own_rows() -> None:
    rows = table(tags=[["a"], ["b"], ["a", "b"], []]).select([2, 0])
    assert read_label_sets(rows, find_labels(rows, ["tags"])[0]).matrix.tolist() == [[1, 1], [1, 0]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcdef"))), st.sampled_from(["|", ";", ","]))
def test_cells_with_a_delimiter_say_what_lists_say(rows: list[set[str]], delimiter: str) -> None:
    lists = table(tags=[sorted(row) for row in rows] + [["a"]])
    cells = table(tags=[delimiter.join(sorted(row)) for row in rows] + ["a"])
    from_lists = read_label_sets(lists, LabelForm("classes", ("tags",), "list"))
    from_cells = read_label_sets(cells, LabelForm("classes", ("tags",), "delimited", delimiter))
    assert from_lists.values == from_cells.values
    np.testing.assert_array_equal(from_lists.matrix, from_cells.matrix)


@given(st.lists(st.integers(-5, 200), min_size=1))
def test_numbers_in_texts_go_by_size(numbers: list[int]) -> None:
    assert order_labels(map(str, numbers)) == tuple(map(str, sorted(set(numbers))))
