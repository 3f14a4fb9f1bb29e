"""Checks: what is skipped, kept and counted, or an error; and the cut of a validation split."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data.checks import Finding, check_rows, cut_validation
from headstart.data.columns import Columns
from headstart.errors import DataError, LabelError, RecipeError

SINGLE = Columns("text", None, "label", {})
PAIR = Columns("text", "pair", "label", {})


def table(texts: list[Any], labels: list[Any] | None = None, **more: list[Any]) -> datasets.Dataset:
    columns = {"text": texts} if labels is None else {"text": texts, "label": labels}
    return datasets.Dataset.from_dict({**columns, **more})


def good(num_rows: int = 200, prefix: str = "text") -> datasets.Dataset:
    return table([f"{prefix} {i}" for i in range(num_rows)], [i % 2 for i in range(num_rows)])


def changed(num_rows: int, column: str, values: dict[int, Any]) -> datasets.Dataset:
    rows = good(num_rows).to_dict()
    for row, value in values.items():
        rows[column][row] = value
    return datasets.Dataset.from_dict(rows)


def check(
    tables: dict[str, datasets.Dataset], columns: Columns = SINGLE, *, strict: bool = False
) -> tuple[dict[str, Any], dict[tuple[str, str], Finding]]:
    kept, findings = check_rows(tables, columns, strict=strict)
    return kept, {(finding.split, finding.kind): finding for finding in findings}


def fail(
    tables: dict[str, datasets.Dataset],
    columns: Columns = SINGLE,
    *,
    strict: bool = False,
    kind: type[DataError] = DataError,
) -> str:
    with pytest.raises(DataError) as caught:
        check_rows(tables, columns, strict=strict)
    assert type(caught.value) is kind
    return str(caught.value)


def test_good_data_gives_no_finding() -> None:
    kept, findings = check({"train": good(), "test": good(20, "other")})
    assert findings == {}
    assert kept["train"].tolist() == list(range(200))
    assert kept["train"].dtype == np.int64


@pytest.mark.parametrize(("column", "kind"), [("text", "missing_text"), ("label", "missing_label")])
def test_up_to_one_percent_is_skipped_and_more_is_an_error(column: str, kind: str) -> None:
    kept, findings = check({"train": changed(200, column, {7: None, 9: None})})
    assert 7 not in kept["train"]
    assert len(kept["train"]) == 198
    finding = findings["train", kind]
    assert (finding.count, finding.rows, finding.level) == (2, [7, 9], "warning")
    assert "rows 7, 9" in finding.message
    error = LabelError if column == "label" else DataError
    message = fail({"train": changed(200, column, {1: None, 2: None, 3: None})}, kind=error)
    assert "3 rows" in message
    assert "1.5%" in message
    fail({"train": changed(200, column, {7: None})}, strict=True, kind=error)


def test_more_than_five_rows_are_counted() -> None:
    _, findings = check({"train": changed(2_000, "text", dict.fromkeys(range(8), None))})
    assert "rows 0, 1, 2, 3, 4 and 3 more" in findings["train", "missing_text"].message
    many = table(["same"] * 3_000, [0, 1] * 1_500)
    _, findings = check({"train": many})
    assert findings["train", "duplicates"].count == 2_999
    assert len(findings["train", "duplicates"].rows) == 1_000
    assert "and 2,994 more" in findings["train", "duplicates"].message


def test_column_that_is_no_text_or_is_missing() -> None:
    assert "holds int64, not text" in fail({"train": table([1, 2], [0, 1])})
    assert "not text" in fail({"train": table([["a"], ["b"]], [0, 1])})
    assert 'no column "pair"' in fail({"train": good()}, PAIR)
    assert "2 rows without text" in fail({"train": table([None, None], [0, 1])})


def test_all_faults_stand_in_one_message() -> None:
    message = fail({
        "train": changed(20, "text", {3: None}),
        "validation": table(["a"], [7]),
        "test": table([2], [0]),
    })  # fmt: skip
    assert "train: 1 row without text" in message
    assert "validation: the label 7, but train has only the labels 0, 1" in message
    assert "test: the column" in message


def test_one_class_in_train() -> None:
    assert 'the same label "0"' in fail({"train": table(["a", "b"], [0, 0])}, kind=LabelError)
    one_left = table(["a", "b", *["c"] * 200], ["x", None, *["x"] * 200])
    fail({"train": one_left}, kind=LabelError)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_label_that_train_does_not_have(split: str) -> None:
    tables = {"train": good(), split: table(["a", "b", "c"], [0, 5, 5])}
    message = fail(tables, kind=LabelError)
    assert "the label 5" in message
    assert "rows 1, 2" in message
    names = {"train": table(["a", "b"], ["1", "2"]), split: table(["c", "d"], [1, 2])}
    check(names)  # the same classes, once as text and once as numbers


@pytest.mark.parametrize("labels", [None, [None, None], [-1, -1]])
def test_split_without_labels_is_kept(labels: list[Any] | None) -> None:
    kept, findings = check({"train": good(), "test": table(["a", "b"], labels)})
    assert kept["test"].tolist() == [0, 1]
    assert findings["test", "unlabelled"].level == "info"


def test_train_without_labels() -> None:
    fail({"train": table(["a", "b"])}, kind=LabelError)
    fail({"train": table(["a", "b"], [None, None])}, kind=LabelError)
    kept, findings = check({"test": table(["a", "b"])}, Columns("text", None, None, {}))
    assert kept["test"].tolist() == [0, 1]
    assert findings == {}


def test_class_with_one_row() -> None:
    _, findings = check({"train": changed(200, "label", {8: 2})})
    assert findings["train", "rare_class"].rows == [8]
    assert 'the class "2" has one row' in findings["train", "rare_class"].message
    message = fail({"train": changed(200, "label", {8: 2})}, strict=True)
    assert 'the class "2" has one row' in message and "or set data.strict=false." in message


def test_empty_text_is_kept_and_counted() -> None:
    rows = changed(200, "text", {4: "", 5: " \n\t", 6: "\u00a0"})
    kept, findings = check({"train": rows})
    assert len(kept["train"]) == 200
    assert findings["train", "empty_text"].rows == [4, 5, 6]
    assert "3 rows with empty text" in fail({"train": rows}, strict=True)
    check({"train": changed(200, "text", {4: "", 5: "  "})}, strict=True)


def test_duplicates_and_conflicts() -> None:
    rows = changed(200, "text", {10: "text 0", 11: " text 0 ", 13: "text 1"})
    kept, findings = check({"train": rows})
    assert len(kept["train"]) == 200
    assert findings["train", "duplicates"].rows == [10, 11, 13]
    assert findings["train", "conflicting_labels"].rows == [11]
    fail({"train": rows}, strict=True)
    pairs = table(["a", "a", "a", "b"], [0, 1, 0, 1], pair=["x", "y", "x", "ab"])
    _, findings = check({"train": pairs}, PAIR)
    assert findings["train", "duplicates"].rows == [2]


def test_duplicates_are_counted_among_kept_rows_only() -> None:
    _, findings = check({"train": changed(300, "text", {0: None, 5: None, 20: "text 21"})})
    assert findings["train", "duplicates"].rows == [21]


def test_rows_that_occur_in_two_splits() -> None:
    tables = {
        "train": good(),
        "validation": table(["text 3", "new"], [1, 0]),
        "test": table(["new", "text 4", "text 5"], [0, 1, 1]),
    }
    _, findings = check(tables)
    assert findings["validation", "leakage"].rows == [0]
    assert findings["test", "leakage"].rows == [1, 2]
    assert findings["test", "leakage_validation"].rows == [0]
    assert "of train" in fail(tables, strict=True)


def test_sorted_rows_are_said() -> None:
    _, findings = check({"train": table([f"t{i}" for i in range(40)], [0] * 20 + [1] * 20)})
    assert findings["train", "sorted"].level == "info"
    assert "shuffle" in findings["train", "sorted"].message


def test_no_row_left() -> None:
    rows = table(["a"] * 2, ["", ""])
    fail({"train": good(), "test": table([None], [0])})
    fail({"train": rows}, kind=LabelError)
    assert "no row is left" in fail({"train": good(), "test": good().select([])})


def test_messages_never_quote_a_text() -> None:
    secret = "a private sentence"
    rows = table([secret] * 10 + [None], [0, 1] * 5 + [0])
    assert secret not in fail({"train": rows, "test": table([secret], [4])})


LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200)


@given(labels=LABELS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_cut_is_a_stratified_partition(labels: list[int], fraction: float, seed: int) -> None:
    array = np.array(labels)
    train, validation = cut_validation(array, fraction, seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    assert train.dtype == validation.dtype == np.int64
    assert set(array[train]) == set(labels)
    counts = np.bincount(array, minlength=6)
    cut = np.bincount(array[validation], minlength=6)
    assert (validation.size > 0) == bool((counts > 1).any())
    room = int((counts[counts > 0] - 1).sum())
    assert validation.size == min(max(1, round(len(labels) * fraction)), room)
    again = cut_validation(array, fraction, seed)
    assert np.array_equal(train, again[0])
    if validation.size < room and fraction < 0.5:
        assert (cut >= np.minimum(np.floor(counts * fraction), np.maximum(counts - 1, 0))).all()


def test_cut_depends_on_the_seed_and_takes_any_labels() -> None:
    labels = np.array(["a", "b"] * 50)
    cuts = [tuple(cut_validation(labels, 0.2, seed)[1]) for seed in range(5)]
    assert len(set(cuts)) == 5
    assert all(len(cut) == 20 for cut in cuts)
    assert all(sum(labels[list(cut)] == "a") == 10 for cut in cuts)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_cut_with_a_wrong_fraction(fraction: float) -> None:
    with pytest.raises(RecipeError, match="validation_fraction"):
        cut_validation(np.array([0, 1]), fraction, 0)
