"""From predictions to scores with intervals and to the table of predictions."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headstart
from headstart.errors import DataError, RecipeError
from headstart.metrics import CLASSIFICATION_SCORES, compute_scores
from headstart.scoring import prediction_table, score_with_intervals
from headstart.tasks import SequenceClassification
from headstart.tasks.sequence_classification import MAX_STORED_PROBABILITIES

NOT_DEFINED = {"value": None, "low": None, "high": None}


def score(predictions: np.ndarray, targets: np.ndarray, *names: str) -> dict[str, dict[str, float | None]]:
    task = classes(*range(predictions.shape[1]))
    return score_with_intervals(task, predictions, targets, names, confidence=0.95, seed=0)


def draw(num_rows: int, num_labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    predictions = rng.dirichlet(np.ones(num_labels), num_rows).astype(np.float32)
    return predictions, rng.integers(0, num_labels, num_rows)


def classes(*values: Any) -> SequenceClassification:
    return SequenceClassification(values, "text", None, "label")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(0, 10))
def test_rows_without_a_label_do_not_count(seed: int, num_labelled: int, num_unlabelled: int) -> None:
    predictions, targets = draw(num_labelled, 2, seed)
    unlabelled, _ = draw(num_unlabelled, 2, seed + 1)
    order = np.random.default_rng(seed).permutation(num_labelled + num_unlabelled)
    order = np.concatenate([np.sort(order[:num_labelled]), order[num_labelled:]])
    mixed = np.zeros((len(order), 2), dtype=np.float32)
    mixed[order] = np.concatenate([predictions, unlabelled])
    mixed_targets = np.full(len(order), -1)
    mixed_targets[order[:num_labelled]] = targets
    names = ("accuracy", "f1", "log_loss")
    assert score(mixed, mixed_targets, *names) == score(predictions, targets, *names)


@pytest.mark.parametrize("num_rows", [0, 3])
def test_scores_are_none_when_no_row_has_a_label(num_rows: int) -> None:
    predictions, _ = draw(num_rows, 2)
    found = score(predictions, np.full(num_rows, -1), *CLASSIFICATION_SCORES)
    assert found == dict.fromkeys(CLASSIFICATION_SCORES, NOT_DEFINED)


def test_only_the_score_that_is_not_defined_is_none() -> None:
    predictions, _ = draw(10, 2)
    found = score(predictions, np.ones(10, dtype=int), "roc_auc", "accuracy", "log_loss")
    assert list(found) == ["roc_auc", "accuracy", "log_loss"]
    assert found["roc_auc"] == NOT_DEFINED
    assert all(value is not None for name in ("accuracy", "log_loss") for value in found[name].values())


def test_scores_are_none_when_a_prediction_is_not_finite() -> None:
    predictions, targets = draw(10, 2)
    predictions[3] = np.nan
    assert score(predictions, targets, "accuracy") == {"accuracy": NOT_DEFINED}


def test_a_sure_mistake_costs_a_baseline_as_much_as_the_model() -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    targets = np.array([1, 1])
    assert score(sure, targets, "log_loss") == score(sure.astype(np.float32), targets, "log_loss")


def test_values_are_those_of_the_metrics() -> None:
    predictions, targets = draw(60, 3)
    names = ("accuracy", "f1_macro", "roc_auc", "log_loss")
    plain = compute_scores(names, targets, predictions)
    assert {name: parts["value"] for name, parts in score(predictions, targets, *names).items()} == plain


@pytest.mark.parametrize(
    ("values", "kind"), [(("bad", "good"), pa.string()), ((1, 5), pa.int64()), ((False, True), pa.bool_())]
)
def test_labels_of_the_table_have_the_type_of_the_source(values: tuple[Any, ...], kind: pa.DataType) -> None:
    predictions = np.array([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]], dtype=np.float32)
    table = prediction_table(classes(*values), "test", np.array([4, 7, 9]), np.array([0, -1, 1]), predictions)
    assert table.schema.field("label").type == table.schema.field("prediction").type == kind
    assert table.to_pydict() == {
        "split": ["test"] * 3,
        "row": [4, 7, 9],
        "label": [values[0], None, values[1]],
        "prediction": [values[0], values[1], values[0]],
        "probabilities": predictions.tolist(),
    }
    file = io.BytesIO()
    pq.write_table(table, file)
    assert pq.read_table(file).equals(table)


def test_table_of_no_rows_has_the_same_columns() -> None:
    task = classes("bad", "good")
    none = np.zeros(0, dtype=int)
    table = prediction_table(task, "test", none, none, np.zeros((0, 2), dtype=np.float32))
    assert table.num_rows == 0
    assert table.schema == task.schema()


def test_probabilities_are_all_stored_when_there_are_a_hundred_classes() -> None:
    predictions, targets = draw(5, 100)
    table = prediction_table(classes(*range(100)), "test", np.arange(5), targets, predictions)
    np.testing.assert_array_equal(table["probabilities"].to_pylist(), predictions)


def test_only_the_largest_probabilities_are_stored_when_there_are_more_classes() -> None:
    predictions, targets = draw(5, 101)
    table = prediction_table(classes(*range(101)), "test", np.arange(5), targets, predictions)
    stored = np.array(table["probabilities"].to_pylist(), dtype=np.float32)
    assert stored.shape == (5, MAX_STORED_PROBABILITIES)
    np.testing.assert_array_equal(stored, np.sort(predictions)[:, ::-1][:, :MAX_STORED_PROBABILITIES])
    assert table["prediction"].to_pylist() == predictions.argmax(1).tolist()


def test_logits_probabilities_and_tensors_score_alike() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, 3, 50)
    probabilities = torch.softmax(torch.from_numpy(logits), -1)
    names = ["accuracy", "f1_macro", "balanced_accuracy", "matthews_correlation", "log_loss"]
    expected = score(probabilities.numpy(), targets, *names)
    with_gradient = torch.from_numpy(logits).requires_grad_()
    for predictions in (logits, probabilities, with_gradient, logits.tolist()):
        found = headstart.score(predictions, torch.from_numpy(targets))
        assert list(found) == list(expected)
        for name, parts in expected.items():
            assert found[name] == pytest.approx(parts, abs=1e-6)
    classes_alone = headstart.score(logits.argmax(1), targets)
    assert list(classes_alone) == names[:-1]
    assert classes_alone["f1_macro"] == pytest.approx(expected["f1_macro"])
    in_bfloat16 = headstart.score(torch.from_numpy(logits).bfloat16(), targets, ["accuracy"])
    assert in_bfloat16["accuracy"]["value"] == pytest.approx(expected["accuracy"]["value"], abs=0.05)


def test_confidence_seed_and_names_of_an_own_score_count() -> None:
    predictions, targets = draw(60, 2)
    usual = headstart.score(predictions, targets, ["accuracy"])["accuracy"]
    narrow = headstart.score(predictions, targets, ["accuracy"], confidence=0.5)["accuracy"]
    assert narrow["high"] - narrow["low"] < usual["high"] - usual["low"]  # type: ignore[operator]
    assert headstart.score(predictions, targets, ["roc_auc"], seed=1) != headstart.score(
        predictions, targets, ["roc_auc"]
    )
    assert list(headstart.score(predictions, targets, ["glue/mrpc"])) == ["accuracy", "f1"]
    assert headstart.score([0, 1, 1], [0, 1, -1], ["accuracy"])["accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    ("predictions", "labels", "what"),
    [
        ([0, 1], [0], r"shape \(2,\) and labels of shape \(1,\)"),
        ([], [], "at least one row"),
        ([[0.5, 0.5]], [2], "labels from 2 to 2, and 2 classes"),
        ([0, -1], [0, 1], "class indices"),
        ([0, 1], [0, -2], "class indices"),
        ([0.5, 1], [0, 1], "class indices"),
        ([[[1.0]]], [0], "shape"),
    ],
)
def test_what_cannot_be_scored_is_told(predictions: Any, labels: Any, what: str) -> None:
    with pytest.raises(DataError, match=what):
        headstart.score(predictions, labels)


def test_rounded_probabilities_are_not_taken_for_logits() -> None:
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(200) % 3
    exact = headstart.score(logits, labels, "log_loss")["log_loss"]["value"]
    rounded = headstart.score(logits.softmax(-1).bfloat16(), labels, "log_loss")["log_loss"]["value"]
    assert exact is not None
    assert rounded == pytest.approx(exact, rel=0.01)


def test_what_is_no_number_and_no_share_is_told() -> None:
    for predictions in (["a", "b"], [[0.1, 0.9], [1.0]], None):
        with pytest.raises(DataError, match="something other than numbers"):
            headstart.score(predictions, [0, 1])
    with pytest.raises(RecipeError, match="confidence is 95"):
        headstart.score([0, 1], [0, 1], confidence=95)


def test_a_score_of_probabilities_needs_them() -> None:
    with pytest.raises(RecipeError, match="roc_auc needs probabilities"):
        headstart.score([0, 1], [0, 1], ["accuracy", "roc_auc"])
    with pytest.raises(RecipeError, match="unknown"):
        headstart.score([0, 1], [0, 1], ["acuracy"])


def test_several_labels_a_row_score_as_scikit_learn_has_them() -> None:
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(60, 3)), draw.integers(0, 2, size=(60, 3))
    probabilities = 1 / (1 + np.exp(-logits))
    for predictions in (logits, torch.tensor(probabilities)):
        found = headstart.score(predictions, labels, ["f1_micro", "exact_match"], task="multi_label_classification")
        expected = sklearn.metrics.f1_score(labels, probabilities >= 0.5, average="micro")
        assert found["f1_micro"]["value"] == pytest.approx(expected)
        assert found["f1_micro"]["low"] < expected < found["f1_micro"]["high"]  # type: ignore[operator]
    own = headstart.score(
        probabilities, labels, "f1_micro", task="multi_label_classification", threshold=[0.2, 0.5, 0.9]
    )
    expected = sklearn.metrics.f1_score(labels, probabilities >= [0.2, 0.5, 0.9], average="micro")
    assert own["f1_micro"]["value"] == pytest.approx(expected)
    labels[:30] = -1
    half = headstart.score(probabilities, labels, "f1_micro", task="multi_label_classification")
    assert half["f1_micro"]["value"] == pytest.approx(
        sklearn.metrics.f1_score(labels[30:], probabilities[30:] >= 0.5, average="micro")
    )


def test_numbers_score_as_scikit_learn_has_them() -> None:
    draw = np.random.default_rng(0)
    labels = draw.normal(size=40)
    predicted = labels + draw.normal(size=40)
    for predictions in (predicted, torch.tensor(predicted)[:, None]):
        found = headstart.score(predictions, labels, ["mae", "pearson"], task="regression")
        assert found["mae"]["value"] == pytest.approx(sklearn.metrics.mean_absolute_error(labels, predicted), rel=1e-6)
        assert found["pearson"]["value"] == pytest.approx(np.corrcoef(labels, predicted)[0, 1], rel=1e-6)
    labels[:10] = np.nan
    left = headstart.score(predicted, labels, "mae", task="regression")
    assert left["mae"]["value"] == pytest.approx(np.abs(labels[10:] - predicted[10:]).mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("predictions", "labels", "options", "message"),
    [
        ([0.5], [[1, 0]], {"task": "multi_label_classification"}, r"shape \(1,\) and labels of shape \(1, 2\)"),
        ([[0.5, 0.5]], [[1, 2]], {"task": "multi_label_classification"}, "labels of 1, 0"),
        ([1.0, 2.0], [1.0], {"task": "regression"}, "numbers of one shape"),
        ([], [], {"task": "regression"}, "at least one row"),
        ([1.0], [1.0], {"task": "regresion"}, 'Did you mean "regression"'),
        ([0], [0], {"threshold": 0.2}, "threshold has no effect"),
        ([1.0], [1.0], {"task": "regression", "names": ["accuracy"]}, "accuracy"),
    ],
)
def test_what_cannot_be_scored_of_other_tasks_is_told(
    predictions: Any, labels: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(headstart.HeadstartError, match=message):
        headstart.score(predictions, labels, **options)
